"""What a sweep leaves in its folder: the list of jobs, a folder and a log of each, the table and the page."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError, field_validator

from compressor.errors import InputError
from compressor.files import check_folder, prepare_folder, read_sealed, remove_leftovers, write_sealed
from compressor.files.writing import PARTIAL
from compressor.pipeline.outputs import remove_outputs, require_replaceable
from compressor.schema import Record
from compressor.sweep.jobs import LIST, Job
from compressor.version import VERSION

LOGS = "logs"  # a folder
TABLE, RECORD, PAGE = "sweep.csv", "sweep.json", "sweep.html"
FILES = (LIST, TABLE, RECORD, PAGE)
WHAT = "list of a sweep's jobs"
FOLDER = re.compile(r"[\w+][\w.+-]*")


def log_of(out: Path, job: str) -> Path:
    """Where a job says what it does."""
    return out / LOGS / f"{job}.log"


class ModelFile(Record):
    """What tells that a model is still the same file; reading thousands of them whole would take long."""

    label: str
    bytes: int
    modified_ns: int


class _JobList(Record):
    """What `jobs.json` holds beside its checksum."""

    version: str
    models: dict[str, ModelFile]
    jobs: list[Job]

    @field_validator("jobs")
    @classmethod
    def _name_folders(cls, jobs: list[Job]) -> list[Job]:
        """A job's name is that of its folder, which --overwrite removes: it must not lead elsewhere."""
        for job in jobs:
            if not FOLDER.fullmatch(job.name) or job.name in (*FILES, LOGS):
                raise ValueError(f"{job.name!r} is no name of a job")
        return jobs


def _read_list(out: Path) -> _JobList:
    """The list of a sweep's jobs, empty where there is none.

    Raises:
        InputError: it was altered, or is another version's.
    """
    if not (out / LIST).exists():
        return _JobList(version=VERSION, models={}, jobs=[])
    content = read_sealed(out / LIST, WHAT)
    version = content.get("version")
    if version != VERSION:
        raise InputError(f"{out} holds a sweep of bocompress {version}, this is {VERSION}: choose another --out")
    try:
        return _JobList.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{out / LIST} is not a {WHAT}: {error.errors()[0]['msg']}") from error


def read_jobs(out: Path) -> dict[str, Job]:
    """The jobs of a sweep by their names; none where there is no list of them; errors as of `read_models`."""
    return {job.name: job for job in _read_list(out).jobs}


def read_models(out: Path) -> dict[str, ModelFile]:
    """Label, size and time of every model of a sweep, by its absolute path.

    Raises:
        InputError: the list of jobs was altered, or is another version's.
    """
    return _read_list(out).models


def write_jobs(out: Path, jobs: Mapping[str, Job], labels: Mapping[Path, str]) -> None:
    """Write the list of jobs, and make the folder of logs.

    Args:
        out: the sweep's folder.
        jobs: by their names.
        labels: of the models; those of an earlier run stay.

    Raises:
        InputError: a model is not the file that an earlier run began with.
    """
    prepare_folder(out / LOGS)
    models = read_models(out)
    for path, label in labels.items():
        found = _describe_model(path, label)
        if models.setdefault(str(path.absolute()), found) != found:
            raise InputError(f"{path} has changed since the sweep in {out} began: choose another --out")
    listed = _JobList(version=VERSION, models=models, jobs=list(jobs.values()))
    write_sealed(out / LIST, listed.model_dump(mode="json"))


def _describe_model(model: Path, label: str) -> ModelFile:
    status = os.stat(model)
    return ModelFile(label=label, bytes=status.st_size, modified_ns=status.st_mtime_ns)


def require_sweep_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Check the folder to write before any work.

    Args:
        out: the sweep's folder.
        resume: whether a sweep there is gone on with.
        overwrite: whether a sweep there is replaced.

    Raises:
        InputError: it holds other files, or a sweep that is neither to resume nor to overwrite.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other: give one of them")
    try:
        check_folder(out, keep=(*FILES, LOGS, *read_jobs(out)) if resume or overwrite else ())
    except InputError as error:
        if resume or overwrite or not (out / LIST).exists():
            raise
        raise InputError(f"{error}; --resume goes on with the sweep there, --overwrite replaces it") from error
    if overwrite:
        _require_replaceable(out)


def require_same(stored: Mapping[str, Job], jobs: Sequence[Job]) -> None:
    """Raise InputError where a job of this name was begun with other options."""
    for job in jobs:
        before = stored.get(job.name)
        if before is not None and before.arguments != job.arguments:
            different = sorted(set(before.arguments) ^ set(job.arguments)) or ["the order of options"]
            raise InputError(
                f"the job {job.name} was begun with other options ({', '.join(different)}): --resume needs the same"
            )


def remove_sweep(out: Path) -> None:
    """Remove an earlier sweep, the list of its jobs last, so that a stop midway can be repeated.

    Raises:
        InputError: it holds what no sweep wrote, or something cannot be removed.
    """
    _require_replaceable(out)
    jobs = read_jobs(out)
    try:
        for name in jobs:
            remove_outputs(out / name)
            (out / name).rmdir() if (out / name).is_dir() else None
            log_of(out, name).unlink(missing_ok=True)
        if (out / LOGS).is_dir():
            (out / LOGS).rmdir()
        for name in (PAGE, RECORD, TABLE, LIST):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot remove the earlier sweep in {out}: {error.strerror}") from error


def _require_replaceable(out: Path) -> None:
    jobs = read_jobs(out)
    if out.is_dir() and any(out.iterdir()) and not jobs:
        raise InputError(f"the folder {out} holds no sweep that --overwrite could recognize: choose another --out")
    for name in jobs:
        require_replaceable(out / name)
    logs = {f"{name}.log" for name in jobs}
    others = [entry for entry in (out / LOGS).glob("*") if entry.name not in logs]
    if others:
        raise InputError(f"{others[0]} is not of an earlier sweep: move it, or choose another --out")


def tidy_sweep(out: Path) -> None:
    """Remove what killed sweeps left half written of their own files; jobs remove theirs."""
    remove_leftovers(out, lambda path: PARTIAL.sub(r"\1", path.name) in FILES and len(path.parts) == 1)
