"""Rows of tables: what each output of a network lost, and how well classes of pixels are told."""

from collections.abc import Iterator

from compressor.fidelity.records import DetectionRecord, FlowRecord, OutputRecord, SegmentationRecord
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


def detection_rows(record: DetectionRecord | None) -> Iterator[Cells]:
    """Yields average precision, where there are boxes, and the share of confident detections that are kept."""
    if record is None:
        return
    for name, pair in (("mean AP", record.average_precision), ("AP at IoU 0.5", record.average_precision_50)):
        if pair is not None:
            yield name, format_percent(pair.original), format_percent(pair.compressed), _points(pair)
    if record.kept is not None:
        yield "detections kept", str(record.confident), format_percent(record.kept), ""


def flow_rows(record: FlowRecord | None) -> Iterator[Cells]:
    """Yields how long flows are and how far their ends are apart, and at how many pixels that is little."""
    if record is None:
        return
    yield "length of the flow, px", format_number(record.length), "", ""
    yield "end of the flow moved, px", "", format_number(record.moved), ""
    yield "moved by at most 1 px", "", format_percent(record.near), ""


def _points(pair: Pair[float]) -> str:
    return f"{format_points(pair.compressed - pair.original)} points"
