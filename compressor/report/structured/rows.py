"""Rows of tables: what each output of a network lost, and how well classes of pixels are told."""

from collections.abc import Iterator

from compressor.fidelity.records import OutputRecord, SegmentationRecord
from compressor.report.formatting import format_number, format_percent, format_points
from compressor.schema import Pair

Cells = tuple[str, str, str, str]
"""Name, original, compressed, and change or ratio."""


def output_rows(outputs: list[OutputRecord]) -> Iterator[Cells]:
    """Yields a row for each output that is not the only one: the share of its energy that moved."""
    if len(outputs) < 2:
        return
    for output in outputs:
        share = "—" if output.relative is None else f"{format_number(100 * output.relative)} %"
        apart = "" if output.weight else ", not in L"
        yield f"output {output.name} (moved{apart})", "", f"{share} of its energy", ""


def segmentation_rows(record: SegmentationRecord | None) -> Iterator[Cells]:
    """Yields mean IoU and pixel accuracy, where there are masks, and the share of pixels whose class is the same."""
    if record is None:
        return
    for name, pair in (("mean IoU", record.mean_iou), ("pixel accuracy", record.pixel_accuracy)):
        if pair is not None:
            yield name, format_percent(pair.original), format_percent(pair.compressed), _points(pair)
    yield "same class of a pixel", "", format_percent(record.pixel_agreement), ""


def _points(pair: Pair[float]) -> str:
    return f"{format_points(pair.compressed - pair.original)} points"
