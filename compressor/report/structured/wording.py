"""Sentences on outputs that are not one matrix of scores."""

from compressor.fidelity.records import DetectionRecord, FidelityRecord, FlowRecord, SegmentationRecord
from compressor.report.formatting import GAP, format_number, format_percent, format_plural, format_points
from compressor.text import join_words
from exporters.records import Agreement, ExportCheckRecord

_SAME: dict[Agreement, str] = {
    "top-1 class": "the most likely class is the same for {} of the {}s",
    "sign": "the sign of the one output is the same for {} of the {}s",
    "class of a pixel": "the class is the same at {} of the pixels",
    "integers": "the whole numbers are the same for {} of the {}s",
}


def describe_export_check(export_check: ExportCheckRecord, noun: str = "image") -> str:
    """The export check on images, or what the noun says: the ONNX file compared with the torch network it came from."""
    sizes = join_words([str(size) for size in export_check.batch_sizes])
    batch_sizes = "batch size" if len(export_check.batch_sizes) == 1 else "batch sizes"
    several = f"all {len(export_check.outputs)} outputs" if len(export_check.outputs) > 1 else "the outputs"
    agreement = _SAME.get(export_check.agreement_of)
    same = (
        ""
        if agreement is None or export_check.top1_agreement is None
        else (f", and {agreement.format(format_percent(export_check.top1_agreement), noun)}")
    )
    return (
        f"The compressed ONNX file was run in ONNX Runtime on {format_plural(export_check.images, noun)} at "
        f"{batch_sizes} {sizes}{_describe_sizes(export_check)} and compared with the compressed torch network: "
        f"{several} differ by at most {format_number(export_check.max_abs_error)}, which is "
        f"{format_number(export_check.max_rel_error)} of the largest output (tolerance {export_check.tolerance:.2g}"
        f"{_describe_rounding(export_check)})"
        f"{same}."
    )


def _describe_rounding(export_check: ExportCheckRecord) -> str:
    if export_check.rounding is None:
        return ""
    own = format_number(export_check.rounding)
    return f", since torch's own outputs round by {own}: large numbers cancel in this network"


def _describe_sizes(export_check: ExportCheckRecord) -> str:
    sizes = [f"{height}{GAP}×{GAP}{width}" for height, width in export_check.image_sizes]
    return f" and of {join_words(sizes)} pixels, since it takes images of any size," if sizes else ""


def describe_agreement(fidelity: FidelityRecord, noun: str = "image") -> str:
    """How many decisions are the same, or why none are compared."""
    if fidelity.outputs and fidelity.top1_agreement is None:
        return describe_outputs(fidelity)
    if fidelity.top1_agreement is None:
        return "The one output never changes its sign on them: it is taken for a quantity, and no decision is compared."
    same = "sign of the one output" if fidelity.by_sign else "most likely class"
    return f"The {same} is the same for {format_percent(fidelity.top1_agreement)} of the {noun}s."


def describe_outputs(fidelity: FidelityRecord) -> str:
    """What L is made of, and what each output lost of its energy."""
    shares = [
        f"{output.name} {'—' if output.relative is None else f'{format_number(100 * output.relative)}{GAP}%'}"
        for output in fidelity.outputs
    ]
    counted = [output for output in fidelity.outputs if output.weight > 0]
    weighted = any(output.weight != 1 for output in counted)
    rule = "Squared distances are averaged over the positions of an output"
    if len(counted) > 1:
        how = " by weight" if weighted else ""
        rule += f", divided by its energy and added{how} over {join_words([output.name for output in counted])}"
    return f"{rule}. Of its own energy each output moved by: {join_words(shares)}."


def describe_kept(
    segmentation: SegmentationRecord | None, detection: DetectionRecord | None, flow: FlowRecord | None
) -> str:
    """The headline's words on what is no classifier's; empty where nothing is known."""
    if detection is not None and detection.kept is not None:
        return f"{format_percent(detection.kept)} of detections kept"
    if flow is not None:
        return f"flow within 1 px at {format_percent(flow.near)} of pixels"
    return f"{format_percent(segmentation.pixel_agreement)} of pixels keep their class" if segmentation else ""


def describe_task(
    segmentation: SegmentationRecord | None, detection: DetectionRecord | None, flow: FlowRecord | None
) -> str:
    """How classes of pixels, detections or flows changed; empty where there are none."""
    if segmentation is not None:
        return describe_segmentation(segmentation)
    if detection is not None:
        return " ".join(filter(None, [describe_detection(detection), describe_whole(detection)]))
    return "" if flow is None else describe_flow(flow)


def describe_detection(record: DetectionRecord) -> str:
    """How many detections are kept, and COCO's mean average precision where there are boxes."""
    where = f"On {format_plural(record.images, 'test image')}"
    count = format_plural(record.confident, "detection")
    kept = (
        "no detection of the original has a score of 0.5"
        if record.kept is None
        else (f"{format_percent(record.kept)} of the original’s {count} with a score of 0.5 and more are kept")
    )
    if record.average_precision is None:
        return f"{where} {kept}.{f' {record.note}.' if record.note else ''}"
    moved, pair = record.change, record.average_precision
    change = pair.compressed - pair.original if moved is None else moved.change
    interval = "" if moved is None else f" [{format_points(moved.low)}, {format_points(moved.high)}]"
    return (
        f"{where} {kept}. Mean average precision (mean AP) went from {format_percent(pair.original)} to "
        f"{format_percent(pair.compressed)}, {format_points(change)} points{interval}, over IoU thresholds of 0.5 to "
        f"0.95."
    )


def describe_whole(record: DetectionRecord) -> str:
    """The check of a whole detector's file; empty where there is none."""
    whole = record.whole
    if whole is None:
        return ""
    return (
        f"{whole.file} is the whole detector, for one image at a time: in ONNX Runtime it gives what torch does, "
        f"{format_plural(whole.detections, 'detection')} in {format_plural(whole.images, 'image')} of which at least "
        f"99{GAP}% are the same, with scores that differ by at most {format_number(whole.max_score_error)}."
    )


def describe_flow(record: FlowRecord) -> str:
    """How far the ends of the flow are apart."""
    return (
        f"On {format_plural(record.images, 'test pair')} of frames the end of the flow moved by "
        f"{format_number(record.moved)} pixels on average, where the original’s is {format_number(record.length)} "
        f"long, and by at most one at {format_percent(record.near)} of the pixels."
    )


def describe_segmentation(record: SegmentationRecord) -> str:
    """How classes of pixels changed, and how well they are told where there are masks."""
    where = f"On {format_plural(record.images, 'test image')}"
    kept = f"{where} {format_percent(record.pixel_agreement)} of the pixels keep their class."
    if record.mean_iou is None or record.change is None:
        return kept
    return (
        f"{kept} Mean IoU over {format_plural(len(record.classes), 'class', 'classes')} went from "
        f"{format_percent(record.mean_iou.original)} to {format_percent(record.mean_iou.compressed)}, "
        f"{format_points(record.change.change)} points [{format_points(record.change.low)}, "
        f"{format_points(record.change.high)}]."
    )
