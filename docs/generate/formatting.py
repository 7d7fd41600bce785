"""How studies' figures are written: tables, intervals, shares."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.studies.markdown import table as table
from benchmarks.studies.study import measured
from compressor.report.formatting import format_plural

Row = dict[str, Any]
Study = dict[str, Any]


def load(path: Path) -> Study:
    """A study's JSON, with its name under `study`."""
    study: Study = json.loads(path.read_text(encoding="utf-8"))
    return study


def section(title: str, about: str, *parts: str) -> str:
    """A titled section of a page; the title must stay, since other pages link to it."""
    return "\n\n".join([f"## {title}", about, *parts])


def machine(study: Study) -> str:
    """A sentence: processor, versions, and seconds that the study took; one more where rows are of other machines."""
    info = study["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    here = _where(measured(info))
    counts = Counter(_where(row["measured"]) for row in study["rows"] if "measured" in row)
    others = [f"{count} of {len(study['rows'])} rows on {where}" for where, count in counts.items() if where != here]
    elsewhere = f" Measured elsewhere, {'; '.join(others)}." if others else ""
    return (
        f"Machine: {info['processor']}, {info['cores']} cores; {versions}; {study['seconds']:.0f} s in all.{elsewhere}"
    )


def _where(row: Row) -> str:
    return f"{row['processor']}, torch {row['torch']}"


def count_seeds(study: Study) -> str:
    """How many seeds a study has rows of, in words."""
    return format_plural(len({row["seed"] for row in study["rows"] if "seed" in row}), "seed")


def asked_for(row: Row) -> str:
    """What a run was asked for: a gamma, or a share of the operations."""
    return f"gamma {row['gamma']:g}" if "gamma" in row else f"{row['operations']:g} of the MACs"


def accuracy_change(original: float | None, compressed: float | None) -> str:
    """Two accuracies in per cent; empty without labels."""
    if original is None or compressed is None:
        return ""
    return f"{100 * original:.1f} → {100 * compressed:.1f}"


def flat_interval(row: Row, name: str) -> str:
    """A figure with its interval, `name`_low and `name`_high; empty where the row lacks it."""
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})" if name in row else ""


def nested_interval(ratio: dict[str, float]) -> str:
    """A figure with its interval, given as value, low and high."""
    return f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def signed_percent(share: float) -> str:
    """A difference in per cent, with its sign."""
    return f"{100 * share:+.1f} %"


def grouped(rows: Sequence[Row], *names: str) -> list[list[Row]]:
    """Rows that agree in these columns, group by group in the order of their first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def median_of(rows: Sequence[Row], name: str) -> float:
    """Median of a column."""
    return median(float(row[name]) for row in rows)
