"""The paper's tables in its own columns: its figures, and ours as means over runs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.studies.markdown import table
from benchmarks.studies.paper.report import published
from benchmarks.studies.paper.ways import OURS, WAYS
from benchmarks.studies.search.baselines import DEFAULT

Row = dict[str, Any]
Study = dict[str, Any]
COLUMNS = {"#W": "weights", "ratio": "ratio", "top-1": "top1", "top-5": "top5", "time": "seconds"}


def runs_of(study: Study, **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in study["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def seconds(row: Row) -> float:
    """Time of a search: of one thread's processor on the CPU, where others may use the machine, else by the clock."""
    return float(row["cpu_seconds"])


def figure(rows: Sequence[Row], name: str) -> str:
    """The mean over runs of a column, in the paper's units; empty without runs."""
    if not rows:
        return ""
    if name == "seconds":
        return f"{mean(map(seconds, rows)):.3g}"
    values = [row[name] for row in rows]
    if name == "weights":
        return f"{mean(values) / 1e6:.3f}M" if mean(values) < 1e6 else f"{mean(values) / 1e6:.2f}M"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}"


def of_paper(row: Row | None, name: str) -> str:
    """A figure as the paper prints it; empty where it prints none."""
    if row is None or name not in row:
        return ""
    return f"{row[name]:g}M" if name == "weights" else f"{row[name]:g}"


def spelled(gamma: float) -> str:
    """A gamma as the paper writes it, without an exponent."""
    return np.format_float_positional(gamma, trim="-")


def counted(rows: Sequence[Row]) -> str:
    """How many runs, and how many of them stopped by their certificate."""
    return f"{len(rows)} ({sum(row['certified'] for row in rows)})" if rows else "0"


def gammas_of(study: Study, **wanted: Any) -> list[float]:
    """The paper's gammas that the study has rows of, ascending."""
    return sorted({row["paper_gamma"] for row in runs_of(study, **wanted)})


def tables_2(study: Study) -> str:
    """Table 2, and other searches beside it."""
    return joined(table_2(study), others(study, "error"))


def tables_3_and_4(study: Study) -> str:
    """Tables 3 and 4, and other searches beside them."""
    parts = [part for kind in ("norm", "error") for part in (of_fidelity(study, kind), others(study, kind))]
    return joined(*parts)


def of_fidelity(study: Study, kind: str) -> str:
    """Table 3 by the norm, or Table 4 by the error."""
    paper = {"norm": published.TABLE_3, "error": published.TABLE_4}[kind] if study["arch"] == "fc3" else None
    return table_of_gammas(study, paper, published.ORIGINALS["fc3"], kind)


def tables_6(study: Study) -> str:
    """Table 6 or 7, and other searches beside it."""
    return joined(of_network(study), others(study))


def of_network(study: Study) -> str:
    """Table 6 or 7; of a network that the paper does not have, its columns without the paper's."""
    arch = study["arch"]
    return table_of_gammas(study, published.OF_GAMMAS.get(arch), published.ORIGINALS.get(arch, {}))


def joined(*parts: str) -> str:
    """Parts of a page, without those that are empty."""
    return "\n\n".join(part for part in parts if part)


def correlations(study: Study) -> str:
    """Rank correlation of norm and top-1 error by depth."""
    rows = study["rows"]
    errors = [1 - row["top1"] for row in rows]
    columns: dict[str, Callable[[str], str]] = {
        "norm of": str,
        "rank correlation with the top-1 error": lambda depth: (
            f"{float(spearmanr([row['norms'][depth] for row in rows], errors).statistic):.3f}"
        ),
    }
    return table(columns, list(rows[0]["norms"]))


def table_1(study: Study) -> str:
    """Parameters of each network."""
    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda r: r["network"],
        "paper's parameters": lambda r: str(published.TABLE_1[r["network"]]),
        "layers here": lambda r: str(r["parameters"]),
        "paper's #W": lambda r: of_millions(published.WEIGHTS_IN_MILLIONS.get(r["network"])),
        "their weights": lambda r: f"{r['weights']:,}",
    }
    return table(columns, study["rows"])


def of_millions(value: float | None) -> str:
    """Millions of weights as the paper prints them; empty where it does not."""
    return "" if value is None else f"{value}M"


def ninth_layers(study: Study) -> list[tuple[str, int]]:
    """For ResNet-18 every layer outside the set, with the weights that the set would hold with it."""
    (row,) = runs_of(study, network="ResNet18")
    return sorted(row["with_one_more"].items(), key=lambda item: item[1])


def table_2(study: Study) -> str:
    """Random, Fabolas and ours by gamma: for each the paper's figures, then ours."""
    rows: list[Row] = []
    for gamma in gammas_of(study):
        rows += [{"gamma": gamma, "of": "paper"}, {"gamma": gamma, "of": "here"}]
    columns: dict[str, Callable[[Row], str]] = {"γ": lambda r: spelled(r["gamma"]), "": lambda r: r["of"]}
    for way, title in (("random", "Random"), ("fabolas", "Fabolas"), (OURS, "Ours")):
        for column in ("ratio", "top1", "seconds"):
            columns[f"{title}: {column.replace('seconds', 'time')}"] = _of_way(study, way, column)
        columns[f"{title}: runs"] = _runs_of_way(study, way)
    return table(columns, rows)


def _of_way(study: Study, way: str, column: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if row["of"] == "paper":
            return of_paper(published.TABLE_2[way].get(row["gamma"]), column)
        return figure(runs_of(study, way=way, paper_gamma=row["gamma"]), column)

    return show


def _runs_of_way(study: Study, way: str) -> Callable[[Row], str]:
    return lambda row: "10" if row["of"] == "paper" else str(len(runs_of(study, way=way, paper_gamma=row["gamma"])))


def table_of_gammas(study: Study, paper: dict[float, Row] | None, original: Row, fidelity: str = "norm") -> str:
    """Tables 3, 4, 6 and 7: gamma against size, accuracy and time.

    Args:
        study: the results file.
        paper: the paper's rows by gamma; None where it has none of such a network.
        original: the paper's row "original".
        fidelity: which rows.
    """
    has_five = study["classes"] > 5 and fidelity == "norm" and study["arch"] != "fc3"
    names = {title: name for title, name in COLUMNS.items() if title != "top-5" or has_five}
    columns: dict[str, Callable[[Any], str]] = {"γ": lambda g: "original" if g is None else spelled(g)}
    if paper is not None:
        for title, name in names.items():
            columns[f"paper: {title}"] = partial(_gamma_of_paper, paper, original, name)

    def here(gamma: float) -> list[Row]:
        return runs_of(study, way=OURS, paper_gamma=gamma, fidelity=fidelity)

    def shown(name: str, gamma: float | None) -> str:
        return _original(study, name) if gamma is None else figure(here(gamma), name)

    scaled = {row["paper_gamma"]: row["gamma"] for row in runs_of(study, way=OURS, fidelity=fidelity)}
    if any(abs(key - value) > 1e-9 for key, value in scaled.items()):
        columns["γ here"] = lambda g: "" if g is None else f"{scaled[g]:.3g}"
    for title, name in names.items():
        columns[f"here: {title}"] = partial(shown, name)
    columns["runs (certified)"] = lambda g: "" if g is None else counted(here(g))
    return table(columns, [*gammas_of(study, way=OURS, fidelity=fidelity), None])


def _gamma_of_paper(rows: Mapping[float, Row], original: Row, name: str, gamma: float | None) -> str:
    return of_paper(original if gamma is None else rows.get(gamma), name)


def _original(study: Study, name: str) -> str:
    values = {"weights": f"{study['weights'] / 1e6:.2f}M", "ratio": "100", "seconds": ""}
    return values[name] if name in values else f"{100 * study['original'][name]:.2f}"


def others(study: Study, fidelity: str = "norm") -> str:
    """What other searches find at the same gammas: medians over runs, and J paired with the paper's search."""
    rows = [
        (way, gamma)
        for gamma in gammas_of(study, fidelity=fidelity)
        for way in WAYS
        if runs_of(study, way=way, paper_gamma=gamma, fidelity=fidelity)
    ]
    if all(way == OURS for way, _ in rows):
        return ""

    def own(row: tuple[str, float]) -> list[Row]:
        return runs_of(study, way=row[0], paper_gamma=row[1], fidelity=fidelity)

    columns: dict[str, Callable[[Any], str]] = {
        "γ": lambda r: spelled(r[1]),
        "search": lambda r: WAYS[r[0]].search.about,
        "runs": lambda r: str(len(own(r))),
        "J": lambda r: f"{median(row['objective'] for row in own(r)):.4f}",
        "better J than the paper's": lambda r: wins(study, r[0], r[1], fidelity),
        "ratio": lambda r: figure(own(r), "ratio"),
        "top-1": lambda r: figure(own(r), "top1"),
        "image passes": lambda r: f"{median(row['passes'] for row in own(r)):,.0f}",
        "time": lambda r: figure(own(r), "seconds"),
    }
    return table(columns, rows)


def wins(study: Study, way: str, gamma: float, fidelity: str) -> str:
    """In how many runs a search ends with a higher J than the paper's with the same seed."""
    pairs = paired(study, way, OURS, gamma, fidelity)
    return "" if way == OURS else f"{sum(one > other for one, other in pairs)} of {len(pairs)}"


def paired(study: Study, way: str, other: str, gamma: float | None, fidelity: str) -> list[tuple[float, float]]:
    """J of two searches with the same gamma and seed, wherever there are both; of all gammas where it is None."""
    wanted = {"fidelity": fidelity} if gamma is None else {"fidelity": fidelity, "paper_gamma": gamma}
    values = {(row["paper_gamma"], row["seed"]): row["objective"] for row in runs_of(study, way=other, **wanted)}
    return [
        (row["objective"], values[key])
        for row in runs_of(study, way=way, **wanted)
        if (key := (row["paper_gamma"], row["seed"])) in values
    ]


def table_5(study: Study) -> str:
    """VGG by stages."""

    def here(way: str, stage: str) -> Row | None:
        return next(iter(runs_of(study, way=way, network=stage)), None)

    def shown(way: str, name: str, row: Row) -> str:
        return _percent(here(way, row["stage"]), name)

    columns: dict[str, Callable[[Row], str]] = {
        "network": lambda r: r["network"],
        "paper: top-1": lambda r: f"{r['top1']:.2f}",
        "top-5": lambda r: f"{r['top5']:.2f}",
        "ratio": lambda r: r["ratio"],
    }
    for way, title in ((OURS, "paper's search here"), (DEFAULT, "default here")):
        for name in ("top1", "top5", "ratio"):
            label = f"{title}: {name.replace('top', 'top-')}"
            columns[label] = partial(shown, way, name)
    return table(columns, published.TABLE_5)


def _percent(row: Row | None, name: str) -> str:
    return "" if row is None or row[name] is None else f"{100 * row[name]:.2f}"


def table_of_switches(study: Study) -> str:
    """What each departure from the paper's text does."""
    ways = [way for way in WAYS if runs_of(study, way=way)]

    def own(way: str) -> list[Row]:
        return runs_of(study, way=way)

    columns: dict[str, Callable[[str], str]] = {
        "switch": lambda way: WAYS[way].search.about,
        "runs (certified)": lambda way: counted(own(way)),
        "J, median": lambda way: f"{median(row['objective'] for row in own(way)):.4f}",
        "worst J": lambda way: f"{min(row['objective'] for row in own(way)):.4f}",
        "ratio": lambda way: figure(own(way), "ratio"),
        "top-1": lambda way: figure(own(way), "top1"),
        "evaluations": lambda way: f"{median(row['evaluations'] for row in own(way)):.0f}",
        "time": lambda way: figure(own(way), "seconds"),
    }
    return table(columns, ways)


def table_of_samples(study: Study) -> str:
    """What the number of images per evaluation does."""
    sizes = [row["samples"] for row in runs_of(study, what="estimates")]

    def estimate(size: int) -> Row:
        return runs_of(study, what="estimates", samples=size)[0]

    def own(size: int) -> list[Row]:
        return runs_of(study, way=OURS, samples=size)

    columns: dict[str, Callable[[int], str]] = {
        "images": str,
        "deviation of an estimate": lambda size: f"{100 * estimate(size)['deviation']:.1f} %",
        "skewness": lambda size: f"{estimate(size)['skewness']:.2f}",
        "excess kurtosis": lambda size: f"{estimate(size)['excess_kurtosis']:.2f}",
        "runs (certified)": lambda size: counted(own(size)),
        "J, median": lambda size: f"{median(row['objective'] for row in own(size)):.4f}" if own(size) else "",
        "image passes": lambda size: f"{median(row['passes'] for row in own(size)):,.0f}" if own(size) else "",
        "time": lambda size: figure(own(size), "seconds"),
    }
    return table(columns, sizes)
