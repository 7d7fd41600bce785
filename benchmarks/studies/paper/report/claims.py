"""What the paper claims, and whether it holds here: a line each, with the figure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median, stdev
from typing import Any, Literal

from scipy.stats import spearmanr, wilcoxon

from benchmarks.studies.paper.norms import OUTPUTS
from benchmarks.studies.paper.report import published
from benchmarks.studies.paper.report.tables import gammas_of, runs_of, seconds
from benchmarks.studies.paper.ways import OURS

Study = dict[str, Any]
Verdict = Literal["holds", "holds in part", "does not hold here"]
STRONG, CLEAR = 0.95, 0.6  # rank correlations that hold, and that hold in part
MIN_RUNS, TOO_FEW = 3, "too few runs to say"
MINUTE = 60.0
MANY_TIMES = 10.0  # an order of magnitude
ALLOWED_WRONG = 0.005  # epsilon of Eq. (12)
SIGNIFICANT = 0.05
K = 2.0**0.5  # Lipschitz constant of cross-entropy: the gradient is a difference of two distributions


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, whether it holds, and the figure.

    Attributes:
        text: what the paper says.
        study: the network.
        verdict: by our figures.
        figure: those.
        runs: the fewest that one of them comes from.
    """

    text: str
    study: str
    verdict: Verdict
    figure: str
    runs: int

    @property
    def said(self) -> str:
        """The verdict, where there are runs enough for one."""
        return self.verdict if self.runs >= MIN_RUNS else TOO_FEW


def verdict_of(is_whole: bool, is_part: bool) -> Verdict:
    """The verdict on a claim that holds as a whole, or in part."""
    return "holds" if is_whole else "holds in part" if is_part else "does not hold here"


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(first, second).statistic)


def of_methods(study: Study) -> Iterator[Claim]:
    """Table 2: against random search and Fabolas."""
    name = study["network"]
    ours = _points(study, OURS)
    for way in ("random", "fabolas"):
        others = _points(study, way)
        count = fewest(study, way)
        if not others or not ours:
            continue
        beaten = sum(any(_dominates(one, other) for one in ours) for other in others)
        text = f"Pareto-dominates {'random search' if way == 'random' else 'Fabolas'} (Fig. 1)"
        figure = f"{beaten} of {len(others)} of its means over runs are dominated in ratio and top-1"
        yield Claim(text, name, verdict_of(beaten == len(others), beaten > 0), figure, count)
        gains = _gains_by_seed(study, way)
        if any(gains):
            p = float(wilcoxon(gains, alternative="greater").pvalue)
            text = f"better than {'random search' if way == 'random' else 'Fabolas'}, Wilcoxon signed-rank test"
            passes = " against ".join(
                f"{median(row['passes'] for row in runs_of(study, way=each)):,.0f}" for each in (OURS, way)
            )
            figure = f"J, means over gammas of {len(gains)} seeds: p = {p:.3g}; image passes {passes}"
            if way == "fabolas":
                figure += f" (the paper: {published.FABOLAS_P_VALUE})"
            wins = sum(gain > 0 for gain in gains)
            yield Claim(text, name, verdict_of(p < SIGNIFICANT, wins > len(gains) / 2), figure, len(gains))
    fabolas = runs_of(study, way="fabolas")
    if fabolas:
        beside = {(row["paper_gamma"], row["seed"]): row for row in runs_of(study, way=OURS)}
        times = sum(map(seconds, fabolas)) / sum(seconds(beside[row["paper_gamma"], row["seed"]]) for row in fabolas)
        evaluations = median(row["evaluations"] for row in fabolas)
        figure = f"Fabolas takes {times:.1f} times as long for {evaluations:.0f} evaluations"
        yield Claim(
            "orders of magnitude faster than Fabolas",
            name,
            verdict_of(times >= MANY_TIMES**2, times >= MANY_TIMES),
            figure,
            len(fabolas),
        )


def fewest(study: Study, way: str = OURS, fidelity: str | None = None) -> int:
    """The fewest runs that a search has at one of its gammas."""
    rows = [row for row in runs_of(study, way=way) if fidelity in (None, row["fidelity"])]
    gammas = [row["paper_gamma"] for row in rows]
    return min((gammas.count(gamma) for gamma in gammas), default=0)


def _gains_by_seed(study: Study, way: str) -> list[float]:
    """What J gains over another way with each seed, the mean over gammas: runs of one seed are not independent."""
    beside = {(row["paper_gamma"], row["seed"]): row["objective"] for row in runs_of(study, way=way)}
    gains: dict[int, list[float]] = {}
    for row in runs_of(study, way=OURS):
        if (key := (row["paper_gamma"], row["seed"])) in beside:
            gains.setdefault(row["seed"], []).append(row["objective"] - beside[key])
    return [mean(of_seed) for of_seed in gains.values()]


def _points(study: Study, way: str) -> list[tuple[float, float]]:
    """Means over runs (ratio, top-1) by gamma."""
    rows = [runs_of(study, way=way, paper_gamma=gamma) for gamma in gammas_of(study, way=way)]
    return [(mean(row["ratio"] for row in own), mean(row["top1"] for row in own)) for own in rows]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def of_norms(study: Study) -> Iterator[Claim]:
    """Figs. 2 and 3, and the supplement's bound."""
    errors = [1 - row["top1"] for row in study["rows"]]
    found = {
        depth: correlation([row["norms"][depth] for row in study["rows"]], errors)
        for depth in study["rows"][0]["norms"]
    }
    figure = "rank correlation " + ", ".join(f"{value:.2f} at {depth}" for depth, value in found.items())
    is_part = found[OUTPUTS] >= CLEAR
    yield Claim(
        "the norm is monotone in the top-1 error (Figs. 2, 3)",
        study["network"],
        verdict_of(min(found.values()) >= STRONG, is_part),
        figure,
        len(study["rows"]),
    )
    gaps = [(row["risk"] - study["original"]["risk"], K * row["norms"][OUTPUTS] ** 0.5) for row in study["rows"]]
    kept = sum(gap <= bound for gap, bound in gaps)
    risen = [bound / gap for gap, bound in gaps if gap > 0]
    figure = f"in {kept} of {len(gaps)} plans; the bound is {median(risen):.1f} times the rise, in the median"
    yield Claim(
        "the norm bounds the rise of the risk (supplement)",
        study["network"],
        verdict_of(kept == len(gaps), kept > 0),
        figure,
        len(gaps),
    )


def of_fidelities(study: Study) -> Iterator[Claim]:
    """Tables 3 and 4: the norm does as well as the error, in less time."""
    norm, error = (runs_of(study, way=OURS, fidelity=kind) for kind in ("norm", "error"))
    if not norm or not error:
        return
    best = min(
        (_means(norm, gamma) for gamma in gammas_of(study, way=OURS, fidelity="norm")),
        key=lambda means: -means["objective"],
    )
    of_error = min(
        (_means(error, gamma) for gamma in gammas_of(study, way=OURS, fidelity="error")),
        key=lambda means: -means["objective"],
    )
    figure = "; ".join(
        f"{kind} {100 * means['top1']:.1f} % at {100 * means['ratio']:.1f} % in {means['seconds']:.1f} s"
        for kind, means in (("norm", best), ("error", of_error))
    )
    is_as_good = best["objective"] >= of_error["objective"] - 0.01
    is_faster = median(map(seconds, norm)) <= median(map(seconds, error))
    figure += f"; over all gammas {median(map(seconds, norm)):.1f} s against {median(map(seconds, error)):.1f} s"
    yield Claim(
        "the norm does as well as the error, in less time and without labels (Tables 3, 4)",
        study["network"],
        verdict_of(is_as_good and is_faster, is_as_good or is_faster),
        figure,
        fewest(study),
    )


def _means(rows: list[dict[str, Any]], gamma: float) -> dict[str, float]:
    """Means over runs at a gamma; "objective" is the share of right decisions less the ratio, the same for all."""
    own = [row for row in rows if row["paper_gamma"] == gamma]
    found = {name: mean(row[name] for row in own) for name in ("ratio", "top1")}
    return found | {"seconds": mean(map(seconds, own)), "objective": found["top1"] - found["ratio"]}


def of_gammas(study: Study, fidelity: str = "norm") -> Iterator[Claim]:
    """Tables 6 and 7, Figs. 4 and 5."""
    name = study["network"]
    gammas = gammas_of(study, way=OURS, fidelity=fidelity)
    runs = [runs_of(study, way=OURS, paper_gamma=gamma, fidelity=fidelity) for gamma in gammas]
    if len(gammas) < 3:
        return
    count = fewest(study, fidelity=fidelity)
    for text, values in (
        ("the ratio grows with γ (Tables 3, 6, 7)", [100 * mean(row["ratio"] for row in own) for own in runs]),
        ("the time grows with γ", [mean(map(seconds, own)) for own in runs]),
    ):
        rising = all(second >= first for first, second in pairwise(values))
        figure = ", ".join(f"{value:.3g}" for value in values)
        yield Claim(text, name, verdict_of(rising, correlation(gammas, values) >= CLEAR), figure, count)
    spreads = [100 * stdev(row["ratio"] for row in own) for own in runs if len(own) > 1]
    if len(spreads) == len(runs):
        figure = "deviations of the ratio " + ", ".join(f"{value:.1f}" for value in spreads)
        falls = correlation(gammas, spreads)
        yield Claim(
            "a small γ varies more (Fig. 4)", name, verdict_of(falls <= -STRONG, falls <= -CLEAR), figure, count
        )
    times = [seconds(row) for own in runs for row in own]
    met = sum(row["certified"] for own in runs for row in own)
    figure = f"{median(times):.0f} s in the median, {max(times):.0f} s at most; {met} of {len(times)} certified"
    yield Claim(
        "minutes on a desktop to the certificate",
        name,
        verdict_of(
            max(times) < 60 * MINUTE and met == len(times), median(times) < 60 * MINUTE and met > len(times) / 2
        ),
        figure,
        len(times),
    )
    if len(study["layers"]) > 3:
        yield from _of_blocks(study, [row for own in runs for row in own], count)


def _of_blocks(study: Study, rows: list[dict[str, Any]], count: int) -> Iterator[Claim]:
    by_block = list(zip(*(row["blocks"] for row in rows), strict=True))
    depth = list(range(len(by_block)))
    means = correlation(depth, [mean(block) for block in by_block])
    figure = f"rank correlation of depth and mean ratio {means:.2f}"
    verdict = verdict_of(means <= -STRONG, means <= -CLEAR)
    yield Claim("deeper blocks compress more (Fig. 5)", study["network"], verdict, figure, count)
    if len(rows) > 2:
        spreads = correlation(depth, [stdev(block) for block in by_block])
        figure = f"rank correlation of depth and deviation {spreads:.2f}"
        verdict = verdict_of(spreads <= -STRONG, spreads <= -CLEAR)
        yield Claim("deeper blocks vary less (Fig. 5)", study["network"], verdict, figure, count)


def of_certificates(study: Study, fidelity: str, where: str = "") -> Iterator[Claim]:
    """Eq. (6): with the same gamma no search of the table finds a plan that is better by more than delta = 0.05."""
    rows = runs_of(study, fidelity=fidelity)
    certified = [row for row in rows if row["way"] == OURS and row["certified"]]
    if not certified or all(row["way"] == OURS for row in rows):
        return
    best = {
        row["paper_gamma"]: max(own["objective"] for own in rows if own["paper_gamma"] == row["paper_gamma"])
        for row in rows
    }
    wrong = sum(best[row["paper_gamma"]] > row["objective"] + 0.05 for row in certified)
    figure = f"{wrong} of {len(certified)} certified plans are beaten by more than 0.05 (allowed: 0.5 %)"
    yield Claim(
        "what Eq. (12) certifies is within δ of the best, in J by the "
        + ("norm" if fidelity == "norm" else "error")
        + where,
        study["network"],
        verdict_of(wrong <= ALLOWED_WRONG * len(certified), wrong <= MANY_TIMES * ALLOWED_WRONG * len(certified)),
        figure,
        len(certified),
    )
