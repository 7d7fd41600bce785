"""Every study writes `benchmarks/results/NAME.json`: machine, versions, seeds, seconds, one row per run."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from compressor.files import write_text

EXPORT_PROGRAM = "from compressor.cli import export; export()"  # for `python -c`
RESULTS = Path(__file__).parent / "results"


def write_results(
    name: str, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], began: float, folder: Path = RESULTS
) -> Path:
    """Write one study's file, whole or not at all; `began` is its time.perf_counter() at the start."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "study": name,
        **about,
        "machine": describe_machine().model_dump(),
        "seconds": round(time.perf_counter() - began, 1),
        "rows": list(rows),
    }
    path = folder / f"{name}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def read_results(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What an earlier run of the study wrote."""
    return dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def earlier_rows(name: str, add: bool, began: float) -> tuple[list[dict[str, Any]], float]:
    """The rows to go on from, none unless `add`, and when the study would have begun had it run at one go."""
    if not add:
        return [], began
    earlier = read_results(name)
    return earlier["rows"], began - earlier["seconds"]
