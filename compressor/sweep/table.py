"""The table of a sweep: a row per file that its jobs delivered, from their reports."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.cost.records import LatencyRecord
from compressor.errors import InputError
from compressor.pipeline.outputs import MODEL, REPORT
from compressor.report.page import read_report
from compressor.report.records import PrecisionRecord, Report
from compressor.report.verdict import describe_failure
from compressor.sweep.jobs import Job
from compressor.sweep.records import JobState, SweepRow


@dataclass(frozen=True)
class _File:
    """A network in one precision."""

    name: str
    precision: str
    file_bytes: int
    gzip_bytes: int
    latency: LatencyRecord | None
    relative_norm: float
    agreement: float | None
    top1: float | None


def rows_of(job: Job, folder: Path, failure: str | None = None) -> list[SweepRow]:
    """The rows of a job: of its files; one without a file where there is no report.

    Args:
        job: what was asked.
        folder: the job's.
        failure: what it failed with; None where it did not, or has not been run.
    """
    known: dict[str, Any] = {"job": job.name, "model": job.model, "asked": job.asked, "seed": job.seed}
    if failure is not None:
        return [SweepRow(**known, state="failed", reason=failure)]
    if not (folder / REPORT).exists():
        return [SweepRow(**known, state="waiting")]
    try:
        report = read_report(folder / REPORT)
    except InputError as error:
        return [SweepRow(**known, state="failed", reason=str(error))]
    failed = report.verdict is not None and not report.verdict.success
    state: JobState = "no success" if failed else "done"
    known |= {"state": state, "reason": describe_failure(report.verdict) if failed and report.verdict else ""}
    known |= _of_report(report)
    return [SweepRow(**known, **_of_file(file)) for file in _files(report)]


def _of_report(report: Report) -> dict[str, Any]:
    """What all files of a job have in common."""
    return {
        "arch": report.arch,
        "gamma": report.gamma,
        "original_bytes": report.onnx_bytes.original,
        "params": report.params.compressed,
        "original_params": report.params.original,
        "macs": report.macs.compressed,
        "original_macs": report.macs.original,
        "original_top1": report.top1.original if report.top1 else None,
        "seconds": report.seconds,
        "peak_memory_bytes": max((cost.peak_memory_bytes or 0 for cost in report.stage_costs), default=0) or None,
        "processor": report.machine.processor,
    }


def _of_file(file: _File) -> dict[str, Any]:
    return {
        "precision": file.precision,
        "file": file.name,
        "file_bytes": file.file_bytes,
        "gzip_bytes": file.gzip_bytes,
        "latency_ms": file.latency.compressed_ms if file.latency else None,
        "original_latency_ms": file.latency.original_ms if file.latency else None,
        "relative_norm": file.relative_norm,
        "top1": file.top1,
        "agreement": file.agreement,
    }


def _files(report: Report) -> list[_File]:
    first = _File(
        name=MODEL,
        precision="fp32",
        file_bytes=report.onnx_bytes.compressed,
        gzip_bytes=report.gzip_bytes.compressed,
        latency=_latency(report, report.latency),
        relative_norm=report.fidelity.relative,
        agreement=report.fidelity.top1_agreement,
        top1=report.top1.compressed if report.top1 else None,
    )
    return [first, *(_of_precision(report, record) for record in report.precisions)]


def _of_precision(report: Report, record: PrecisionRecord) -> _File:
    return _File(
        name=record.file,
        precision=record.precision,
        file_bytes=record.onnx_bytes,
        gzip_bytes=record.gzip_bytes,
        latency=_latency(report, record.latency),
        relative_norm=record.fidelity.relative,
        agreement=record.fidelity.top1_agreement,
        top1=record.top1,
    )


def _latency(report: Report, by_provider: dict[str, LatencyRecord]) -> LatencyRecord | None:
    """Where the job's own costs are measured, else on the first provider."""
    return by_provider.get(report.provider) or next(iter(by_provider.values()), None)


def as_csv(rows: Iterable[SweepRow]) -> str:
    """The rows as CSV, with a header; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SweepRow.model_fields), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _safe(value) for name, value in row.model_dump().items()})
    return text.getvalue()


def _safe(value: Any) -> Any:
    """Spreadsheets take a text that begins like a formula for one: strangers name files."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def is_labelled(rows: Sequence[SweepRow]) -> bool:
    """Whether all files have a top-1, so that models can be compared by it."""
    files = [row for row in rows if row.file]
    return bool(files) and all(row.top1 is not None for row in files)
