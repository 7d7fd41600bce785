"""The report's words on fine-tuning and on the stages of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.fidelity.records import Metrics
from compressor.recovery.records import TuneRecord
from compressor.report.formatting import format_count, format_duration, format_number, format_percent, format_plural
from compressor.report.records import StageRecord

_TARGETS = {
    "teacher": "towards the original’s outputs, without labels",
    "labels": "by cross-entropy on labels",
}
_SCHEDULES = {
    "cosine": "falling to zero along a cosine",
    "step": "divided by 10 each epoch",
    "cyclic": "up from 1e-7 and back once an epoch",
}


def describe_tuning(record: TuneRecord) -> str:
    """What was trained, how, and what it brought on the images held out."""
    done = record.rows[-1].epoch
    how = (
        f"The weights of the compressed network were trained {_TARGETS[record.by]} for {format_plural(done, 'epoch')} "
        f"of {format_plural(record.train_images, 'image')}, {format_duration(record.seconds)} in all, at learning "
        f"rates of at most {record.learning_rate:g}, {_SCHEDULES[record.schedule]}"
        f"{', in bfloat16' if record.autocast else ''}. "
    )
    if record.kept_epoch == 0:
        return f"{how}The loss on the check images did not fall, and the weights from before were kept."
    return how + _describe_gain(record.before, record.after)


def _describe_gain(before: Metrics | None, after: Metrics | None) -> str:
    if before is None or after is None:
        return ""
    norms = f"from L = {format_number(before.function_norm)} to {format_number(after.function_norm)}"
    sentence = f"On the images held out the function norm went {norms}"
    if before.top1 is not None and after.top1 is not None:
        sentence += f", top-1 accuracy from {format_percent(before.top1)} to {format_percent(after.top1)}"
    return f"{sentence}."


def describe_tuning_limits(record: TuneRecord) -> str:
    """What decided over the epochs."""
    which = "from before the training" if record.kept_epoch == 0 else f"of epoch {record.kept_epoch}"
    return (
        f"After each epoch the loss on {format_plural(record.check_images, 'check image')}, neither trained on nor "
        f"held out, was taken; the weights {which} had the lowest. It ended for this reason: {record.stopped_because}. "
        "Ranks, zeros and the statistics of batch norms did not change; a search and its certificate speak of the "
        "network before."
    )


@dataclass(frozen=True)
class StageRow:
    """One line of the table of stages, ready to print."""

    name: str
    cells: list[str]
    what: str


def list_stage_rows(stages: Sequence[StageRecord]) -> list[StageRow]:
    """Top-1, top-5, ratio, weights that are not zero, function norm and time of the network after each stage."""
    return [StageRow(stage.name, _stage_cells(stage), stage.what) for stage in stages]


def _stage_cells(stage: StageRecord) -> list[str]:
    judgement = stage.judgement
    tops = [judgement.top1, judgement.top5]
    return [
        *("—" if top is None else format_percent(top) for top in tops),
        format_percent(stage.ratio),
        format_count(stage.nonzero_params),
        "—" if stage.kind == "original" else format_number(judgement.function_norm),
        "—" if stage.kind == "original" else format_duration(stage.seconds),
    ]
