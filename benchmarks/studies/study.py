"""The files of the studies, `benchmarks/results/NAME.json`: machine, versions, seconds, and a row per run."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from compressor.cli.errors import NO_SUCCESS
from compressor.cost.machine import describe_machine
from compressor.files import write_text
from compressor.report.records import Report

# For `python -c`
EXPORT_PROGRAM = "from compressor.cli.commands import export; export()"
APPLY_PROGRAM = "from compressor.cli.commands import main; main()"
RESULTS = Path(__file__).parents[1] / "results"
SAME = 1e-5  # relative: another network differs by more


def run_reported(program: str, *words: object) -> Report:
    """Run one command in a process of its own and return its report; the last of `words` is its --out.

    A destroyed network or a missed target is a result, too.
    """
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], check=False)
    if done.returncode != NO_SUCCESS:
        done.check_returncode()
    return Report.model_validate_json((Path(str(words[-1])) / "report.json").read_text(encoding="utf-8"))


def write_results(
    name: str, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], began: float, folder: Path = RESULTS
) -> Path:
    """Write a study's file, whole or not at all.

    Args:
        name: of the study and the file.
        about: what holds for all rows.
        rows: one per run.
        began: time.perf_counter() at the start of the study.
        folder: where to write.

    Returns:
        The file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine = describe_machine().model_dump()
    here = measured(machine, str(date.today()))
    content = {
        "study": name,
        **about,
        "machine": machine,
        "seconds": round(time.perf_counter() - began, 1),
        "rows": [{"measured": here, **row} for row in rows],
    }
    path = folder / f"{name}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def measured(machine: Mapping[str, Any], day: str = "") -> dict[str, str]:
    """Where a row was measured, and on which day: rows of one file may come from several machines."""
    return {"processor": machine["processor"], "torch": machine["versions"].get("torch", ""), "date": day}


def read_results(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The content of the file that an earlier run of the study wrote; each row says where it was measured."""
    content = dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    where = measured(content["machine"])
    return content | {"rows": [{"measured": where, **row} for row in content["rows"]]}


def earlier_rows(name: str, add: bool, began: float) -> tuple[list[dict[str, Any]], float]:
    """Rows of an earlier run to keep, if `add` and there are any, and `began` moved back by the time they took."""
    if not add or not (RESULTS / f"{name}.json").exists():
        return [], began
    earlier = read_results(name)
    return earlier["rows"], began - earlier["seconds"]


def changed(about: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Settings of a study that are other than in an earlier run's file, beyond rounding on another machine."""
    return [key for key, value in about.items() if not _is_same(value, earlier.get(key))]


def _is_same(value: Any, earlier: Any) -> bool:
    if isinstance(value, dict) and isinstance(earlier, dict):
        return value.keys() == earlier.keys() and all(_is_same(value[key], earlier[key]) for key in value)
    if isinstance(value, float) and isinstance(earlier, float):
        return math.isclose(value, earlier, rel_tol=SAME)
    return bool(value == earlier)
