"""Runs without what comes after the search: files, latency and pages are other tests', and take most of the time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from compressor.files import write_text
from compressor.pipeline.context import Context
from compressor.pipeline.delivery import export, measure, report
from exporters.records import ExportCheckRecord


def write_nothing(context: Context, *_: object) -> ExportCheckRecord:
    for name in ("original.onnx", "model.onnx"):
        write_text(context.folder / name, "no network")
    return ExportCheckRecord(max_abs_error=0, max_rel_error=0, top1_agreement=1, images=2, batch_sizes=[1], tolerance=1)


@contextmanager
def without_latency() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "latency_beside", lambda *_: {})
        yield


@contextmanager
def without_measuring(pages: bool = False) -> Iterator[None]:
    """Neither files that can be run nor times; the report's page only where it is asked for."""
    with pytest.MonkeyPatch.context() as patch, without_latency():
        patch.setattr(export, "export_both", write_nothing)
        if not pages:
            patch.setattr(report, "write_report", lambda _, path: path.touch())
        yield


if __name__ == "__main__":  # the program of a sweep's jobs in tests
    from compressor.cli.sweep.job import main

    with without_measuring():
        main()
