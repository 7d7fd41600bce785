"""What a run leaves in its folder; `--resume` finds some of it there, and `--overwrite` removes it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from compressor.errors import InputError
from compressor.files import check_folder, is_sealed, open_regular, remove_leftovers
from compressor.files.writing import PARTIAL
from exporters.onnx import DATA_SUFFIX
from exporters.ort_format import CONFIG_SUFFIX, ORT_SUFFIX, ZIP_SUFFIX
from exporters.records import Precision

FACTORS = "factors.jsonl"
JOURNAL = "search.jsonl"
CHECKPOINT = "finetune.safetensors"
STAGES = "stages"  # a folder
PLANS = "plans"  # a folder
PLAN = "plan.json"
ORIGINAL, MODEL = "original.onnx", "model.onnx"
REPORT, PAGE = "report.json", "report.html"
SCRIPT, TIMING_SCRIPT = "infer.py", "measure.py"
DETECTION_SCRIPT, ANCHORS = "detect.py", "anchors.npy"  # the latter of one-stage detectors
WEIGHTS = "compressed.safetensors"
DETECTOR = "detector.onnx"  # of two-stage detectors


def precision_file(precision: Precision) -> str:
    """'model.int8.onnx': the name says the precision."""
    return f"model.{precision}.onnx"


NETWORKS = (ORIGINAL, MODEL, DETECTOR, precision_file("int8"), precision_file("fp16"))
OUTPUTS = (
    FACTORS,
    JOURNAL,
    CHECKPOINT,
    STAGES,
    PLAN,
    PLANS,
    WEIGHTS,
    REPORT,
    PAGE,
    SCRIPT,
    TIMING_SCRIPT,
    DETECTION_SCRIPT,
    ANCHORS,
    *(f"{name}{suffix}" for name in NETWORKS for suffix in ("", DATA_SUFFIX, ZIP_SUFFIX, DATA_SUFFIX + ZIP_SUFFIX)),
    *(f"{Path(name).stem}{suffix}" for name in NETWORKS for suffix in (ORT_SUFFIX, CONFIG_SUFFIX)),
)
PLAN_OF_FRONT = re.compile(r"\d+-ratio-[\d.]+\.json")
MAX_HEADER_BYTES = 10_000_000
STAGE_FOLDER = re.compile(r"\d+-[\w.-]+")
STAGE_OUTPUTS = ("stage.json", "network.safetensors", *OUTPUTS)


def require_replaceable(folder: Path) -> None:
    """Check that a folder is missing, empty, or holds a run of ours and nothing else.

    Raises:
        InputError: it holds other files, also within folders of ours, or files with our names but no sign of a run.
    """
    check_folder(folder, keep=OUTPUTS)
    files = list(_files_below(folder))
    others = [str(file) for file in files if not is_output(file)]
    if others:
        raise InputError(f"{folder / others[0]} is not of an earlier run: move it, or choose another --out")
    if files and not holds_run(folder):
        raise InputError(f"the folder {folder} holds no run that --overwrite could recognize: choose another --out")


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run of ours, complete or not, whatever else is there."""
    from compressor.pipeline.plan import read_plan

    if _is_journal(folder / JOURNAL) or any((folder / name).exists() for name in (FACTORS, CHECKPOINT, STAGES)):
        return True
    try:
        read_plan(folder / PLAN)
    except InputError:
        return False
    return True


def _is_journal(path: Path) -> bool:
    """Whether a file begins as a search journal, altered or not."""
    from compressor.search.evaluation.journal import VERSION_KEY

    try:
        with open_regular(path) as file:
            return f'"{VERSION_KEY}"'.encode() in file.readline(MAX_HEADER_BYTES)
    except InputError:
        return False


def prepare_resumption(folder: Path) -> None:
    """Remove what killed runs left half written in a folder that this run holds.

    Raises:
        InputError: a plan there, which the run would write anew, was edited since.
    """
    remove_leftovers(folder, is_output)
    for path in (folder / PLAN, *written_plans(folder)):
        if path.exists() and not is_sealed(path):
            raise InputError(
                f"{path} was edited, or is of another version, and this run would replace it: move it, and apply it "
                "elsewhere"
            )


def written_plans(folder: Path) -> list[Path]:
    """The plans of the Pareto front in a run's folder, by their names."""
    return sorted(path for path in (folder / PLANS).glob("*.json") if PLAN_OF_FRONT.fullmatch(path.name))


def remove_outputs(folder: Path) -> None:
    """Remove what an earlier run left, the files that `holds_run` reads last, so that a stop midway can be repeated.

    Raises:
        InputError: see `require_replaceable`, or a file cannot be removed.
    """
    require_replaceable(folder)
    last = (FACTORS, JOURNAL, CHECKPOINT, PLAN)
    try:
        for file in sorted(_files_below(folder), key=lambda file: str(file) in last):
            (folder / file).unlink()
        for parent, folders, _ in os.walk(folder, topdown=False):
            for name in folders:
                (Path(parent) / name).rmdir()
    except OSError as error:
        raise InputError(f"cannot remove the earlier run in {folder}: {error.strerror}") from error


def _files_below(folder: Path) -> Iterator[Path]:
    """Files, and links to folders, relative to `folder`."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from ((Path(parent) / name).relative_to(folder) for name in (*files, *links))


def is_output(file: Path) -> bool:
    """Whether a path within the folder of a run is one that a run writes."""
    match [PARTIAL.sub(r"\1", part) for part in file.parts]:
        case [name]:
            return name in OUTPUTS and name not in (STAGES, PLANS)
        case [name, inner] if name == inner:  # files of a network in a partial folder
            return name in NETWORKS
        case ["plans", name]:
            return bool(PLAN_OF_FRONT.fullmatch(name))
        case ["stages", "recipe.json"]:
            return True
        case ["stages", stage, name]:
            return bool(STAGE_FOLDER.fullmatch(stage)) and name in STAGE_OUTPUTS
    return False
