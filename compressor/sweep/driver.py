"""The driver of a sweep: hands jobs to workers, and keeps the table while they come back."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from compressor.files import claim_folder, write_text
from compressor.progress import Progress
from compressor.remaining import describe_remaining
from compressor.report.formatting import format_bytes, format_duration, format_percent
from compressor.sweep.front import mark_fronts
from compressor.sweep.jobs import Job
from compressor.sweep.outputs import (
    PAGE,
    RECORD,
    TABLE,
    log_of,
    read_jobs,
    remove_sweep,
    require_same,
    require_sweep_folder,
    tidy_sweep,
    write_jobs,
)
from compressor.sweep.page import write_page
from compressor.sweep.records import SweepRecord, SweepRow
from compressor.sweep.run_job import JobOutcome, Order, is_finished, run_job
from compressor.sweep.table import as_csv, is_labelled, rows_of
from compressor.version import VERSION
from compressor.workers.registry import DEFAULT_BACKEND, make_backend

SECONDS_BETWEEN_TABLES = 10.0
MAX_WRITING_SHARE = 0.05  # of the time of a large sweep
WORKERS_HERE = ("loky", "multiprocessing")


@dataclass(frozen=True)
class SweepSettings:
    """How jobs are run.

    Attributes:
        program: module that does what `bocompress-export` does.
        command: as typed, for the page.
        workers: jobs at once; None for as many as a cluster has room for, and one elsewhere.
        backend, cluster: see `make_backend`.
        resume: go on with the sweep in the folder; finished jobs are not repeated.
        overwrite: replace an earlier sweep in the folder.
    """

    program: str
    command: str = ""
    workers: int | None = None
    backend: str = DEFAULT_BACKEND
    cluster: str | None = None
    resume: bool = False
    overwrite: bool = False


def run_sweep(
    jobs: Sequence[Job], labels: dict[Path, str], out: Path, settings: SweepSettings, progress: Progress | None = None
) -> SweepRecord:
    """Do all jobs, each in its own folder below `out`, and write the table and the page.

    Args:
        jobs: with names that differ.
        labels: of their models.
        out: folder to write, new or empty (or holding the sweep to go on with or to replace).
        settings: how they are run.
        progress: shows how the whole goes; by default nothing does.

    Returns:
        The table; of a job that failed, why.

    Raises:
        InputError: the folder, the backend or the cluster cannot be used.
        BocompressError: the workers are gone; `resume` goes on.
    """
    backend = make_backend(settings.backend, settings.workers, settings.cluster)
    require_sweep_folder(out, settings.resume, settings.overwrite)
    with claim_folder(out), backend:
        if settings.overwrite:
            remove_sweep(out)
        tidy_sweep(out)
        sweep = _Sweep(jobs, out, settings, progress or Progress())
        write_jobs(out, sweep.jobs, labels)
        with sweep.shown():
            for outcome in backend.run(run_job, [(sweep.order(job),) for job in sweep.to_do], in_order=False):
                sweep.take(outcome)
        return sweep.record()


@dataclass
class _Sweep:
    """What is known of the jobs so far."""

    given: Sequence[Job]
    out: Path
    settings: SweepSettings
    progress: Progress
    began: float = field(default_factory=time.monotonic)
    next_table: float = field(default_factory=lambda: time.monotonic() + SECONDS_BETWEEN_TABLES)
    rows: dict[str, list[SweepRow]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored = read_jobs(self.out)
        require_same(stored, self.given)
        if self.settings.resume and not stored:
            self.progress.log(f"note: nothing to resume in {self.out}: the sweep begins anew")
        self.jobs = stored | {job.name: job for job in self.given}
        self.to_do = [job for job in self.given if not is_finished(self.out / job.name)]
        self.done = len(self.given) - len(self.to_do)
        for job in self.jobs.values():
            self.rows[job.name] = rows_of(job, self.out / job.name)

    def order(self, job: Job) -> Order:
        """What a worker is sent."""
        settings = self.settings
        is_here = settings.cluster is None
        return Order(
            name=job.name,
            program=settings.program,
            arguments=(job.model, *job.arguments),
            folder=str(self.out / job.name),
            log=str(log_of(self.out, job.name).absolute()),
            cwd=os.getcwd(),
            threads=max(1, (os.cpu_count() or 1) // (settings.workers or 1)) if is_here else None,
            watch=settings.backend in WORKERS_HERE and (settings.workers or 1) > 1,
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the whole as one stage; the table is written at its end however that comes."""
        with self.progress.stage("compressing", len(self.given)) as self._stage:
            if self.done:
                self.progress.log(f"{self.done} of {len(self.given)} jobs were finished before")
            self._stage.update(self.done)
            try:
                yield
            finally:
                with suppress(OSError):
                    self._write()

    def take(self, outcome: JobOutcome) -> None:
        """Add what came of a job."""
        self.done += 1
        job = self.jobs[outcome.name]
        folder = self.out / job.name
        failure = outcome.sentence or (
            None if is_finished(folder) else f"ended without a report: see {log_of(self.out, job.name)}"
        )
        rows = rows_of(job, folder, failure)
        self.rows[job.name] = rows
        self.progress.log(f"{job.name}: {_describe(rows[0])}, {format_duration(outcome.seconds)}")
        self._stage.update(self.done, self._remaining())
        if time.monotonic() > self.next_table:
            self._write()

    def _remaining(self) -> str:
        """The time left, by the jobs of this run; they may differ, and are taken in any order."""
        before = len(self.given) - len(self.to_do)
        elapsed, left = time.monotonic() - self.began, len(self.given) - self.done
        return describe_remaining(elapsed / (self.done - before) * left) if left else ""

    def record(self) -> SweepRecord:
        """The table so far."""
        rows = mark_fronts([row for job in self.jobs for row in self.rows[job]])
        return SweepRecord(
            version=VERSION,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=self.settings.command,
            backend=self.settings.backend,
            workers=self.settings.workers,
            seconds=time.monotonic() - self.began,
            labelled=is_labelled(rows),
            rows=rows,
        )

    def _write(self) -> None:
        began = time.monotonic()
        record = self.record()
        write_text(self.out / TABLE, as_csv(record.rows))
        write_text(self.out / RECORD, record.model_dump_json(indent=1) + "\n")
        write_page(record, self.out / PAGE)
        took = time.monotonic() - began
        self.next_table = began + took + max(SECONDS_BETWEEN_TABLES, took / MAX_WRITING_SHARE)


def _describe(row: SweepRow) -> str:
    """What came of a job, in a line."""
    if row.state == "failed":
        return f"failed: {row.reason}"
    share = (row.file_bytes or 0) / row.original_bytes if row.original_bytes else 1.0
    lost = f"{format_percent(row.relative_norm or 0.0)} of the output energy lost"
    if row.top1 is not None:
        lost = f"top-1 {format_percent(row.top1)}"
    kept = "no success, " if row.state == "no success" else ""
    return f"{kept}{format_bytes(row.file_bytes or 0)}, {format_percent(share)} of the original; {lost}"
