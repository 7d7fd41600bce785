"""The rows of the comparison summed up: medians over seeds, tests against the default, passes to the same J."""

from collections.abc import Mapping, Sequence
from math import inf
from statistics import median
from typing import Any

from benchmarks.studies.search.baselines import DEFAULT, SEARCHES

Row = dict[str, Any]
AT_EQUAL_PASSES = "objective_at_end_of_default"


def summarize(rows: Sequence[Row]) -> list[Row]:
    """One row per search, the best median of J first.

    `p_value` is that of a one-sided Wilcoxon signed-rank test over the seeds both have, the alternative being that the
    default's J is the greater. (With n seeds it is never below 2^-n: 0.03125 for five.) "At equal passes" compares with
    the other's incumbent when the default had stopped.
    """
    mark_passes_to_best_baseline(rows)
    found = []
    for name, own in _by_search(rows).items():
        objectives = [row["objective"] for row in own]
        contradicted = [row["contradicted"] for row in own if row.get("contradicted") is not None]
        compared = [row for row in own if "passes_to_best_baseline" in row]
        found.append(
            {
                "search": name,
                "seeds": len(own),
                "objective": median(objectives),
                "lowest": min(objectives),
                "highest": max(objectives),
                "p_value": None if name == DEFAULT else p_value(rows, name),
                "wins_of_default": None if name == DEFAULT else wins(rows, name),
                "p_value_at_equal_passes": None if name == DEFAULT else p_value(rows, name, AT_EQUAL_PASSES),
                "wins_at_equal_passes": None if name == DEFAULT else wins(rows, name, AT_EQUAL_PASSES),
                "ratio": median(row["ratio"] for row in own),
                "relative": median(row["relative"] for row in own),
                "passes": median(row["passes"] for row in own),
                "evaluations": median(row["evaluations"] for row in own),
                "overhead_seconds": median(row["overhead_seconds"] for row in own),
                "compared": len(compared),
                "reached_best_baseline": sum(row["passes_to_best_baseline"] is not None for row in compared),
                "passes_ratio": median_or_never([row["passes_ratio"] for row in compared]),
                "passes_share": median_or_never([row["passes_share"] for row in compared]),
                "stopped": sum(bool(row["certificate"].get("met")) for row in own),
                "contradicted": sum(contradicted),
            }
        )
    return sorted(found, key=lambda row: -row["objective"])


def best_baseline(rows: Sequence[Row]) -> str | None:
    """The baseline (a search not of bocompress's) with the highest median of J; None where there is none."""
    baselines = {name: own for name, own in _by_search(rows).items() if not SEARCHES[name].ours}
    return max(baselines, key=lambda name: median(row["objective"] for row in baselines[name]), default=None)


def mark_passes_to_best_baseline(rows: Sequence[Row]) -> None:
    """Add to every row the image passes after which its incumbent is as good as the best baseline's last, same seed.

    None where that never happens; nothing is added where the baseline has no row of that seed. `passes_ratio` is over
    the passes after which the baseline found that plan, `passes_share` over all the passes it spent.
    """
    baseline = best_baseline(rows)
    of_baseline = {row["seed"]: row for row in rows if row["search"] == baseline}
    for row in rows:
        for key in ("passes_to_best_baseline", "passes_ratio", "passes_share"):
            row.pop(key, None)
        other = of_baseline.get(row["seed"])
        if other is None:
            continue
        row["passes_to_best_baseline"] = row["passes_ratio"] = row["passes_share"] = None
        final = other["incumbents"][-1]
        reached = [held["since"] for held in row["incumbents"] if held["objective"] >= final["objective"]]
        if reached:
            row["passes_to_best_baseline"] = reached[0]
            last = final["since"]
            row["passes_ratio"] = reached[0] / last if last else None
            row["passes_share"] = reached[0] / other["passes"]


def paired(rows: Sequence[Row], name: str, held: str = "objective") -> list[float]:
    """The default's last J minus another search's value under the key `held`, for every seed where both are known."""
    own = {row["seed"]: row["objective"] for row in rows if row["search"] == DEFAULT}
    others = [row for row in rows if row["search"] == name and row["seed"] in own and row.get(held) is not None]
    return [own[row["seed"]] - row[held] for row in others]


def p_value(rows: Sequence[Row], name: str, held: str = "objective") -> float | None:
    """Wilcoxon's signed-rank test, one-sided; None where the two are equal on all seeds."""
    from scipy.stats import wilcoxon

    differences = paired(rows, name, held)
    return float(wilcoxon(differences, alternative="greater").pvalue) if any(differences) else None


def wins(rows: Sequence[Row], name: str, held: str = "objective") -> int:
    """Seeds on which the default's J is the greater."""
    return sum(difference > 0 for difference in paired(rows, name, held))


def _by_search(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    names = [name for name in SEARCHES if any(row["search"] == name for row in rows)]
    return {name: [row for row in rows if row["search"] == name] for name in names}


def median_or_never(values: Sequence[float | None]) -> float | None:
    """The median, None counting as later than every value; None where that is the median, or there are no values."""
    found = median([inf if value is None else value for value in values] or [inf])
    return found if found < inf else None
