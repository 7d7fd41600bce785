"""The report's sentences about fine-tuning, and its table of a recipe's stages."""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.fidelity.records import Metrics
from compressor.recovery.records import TuneRecord
from compressor.report.formatting import format_count, format_duration, format_number, format_percent, format_plural
from compressor.report.records import StageRecord

_TARGETS = {
    "teacher": "by distillation from the original’s outputs, without labels",
    "labels": "by cross-entropy on labels",
}
_SCHEDULES = {
    "cosine": "falling to zero along a cosine",
    "step": "divided by 10 each epoch",
    "cyclic": "up from 1e-7 and back once an epoch",
}


def describe_tuning(record: TuneRecord, noun: str = "image") -> str:
    """What was trained, how, and what that changed on the test images, or what the noun says."""
    done = record.rows[-1].epoch
    how = (
        f"The weights of the compressed network were trained {_TARGETS[record.by]} for {format_plural(done, 'epoch')} "
        f"of {format_plural(record.train_images, noun)}, {format_duration(record.seconds)} in all, at learning "
        f"rates of at most {record.learning_rate:g}, {_SCHEDULES[record.schedule]}"
        f"{', in bfloat16' if record.autocast else ''}. "
    )
    if record.kept_epoch == 0:
        return f"{how}The loss on the check {noun}s did not fall, so the weights from before were kept."
    return how + _describe_gain(record.before, record.after, noun)


def _describe_gain(before: Metrics | None, after: Metrics | None, noun: str) -> str:
    if before is None or after is None:
        return ""
    norms = f"from L = {format_number(before.function_norm)} to {format_number(after.function_norm)}"
    sentence = f"On the test {noun}s the function norm went {norms}"
    if before.top1 is not None and after.top1 is not None:
        sentence += f", top-1 accuracy from {format_percent(before.top1)} to {format_percent(after.top1)}"
    return f"{sentence}."


def describe_tuning_limits(record: TuneRecord, noun: str = "image") -> str:
    """Which epoch was kept and why, and what did not change."""
    which = "from before the training" if record.kept_epoch == 0 else f"of epoch {record.kept_epoch}"
    return (
        f"After each epoch the loss was measured on {format_plural(record.check_images, f'check {noun}')}, which are "
        f"neither training nor test {noun}s; the weights {which} had the lowest. It stopped because of this: "
        f"{record.stopped_because}. Ranks, zeros and batch-norm statistics did not change. A search and its "
        "certificate are about the network before fine-tuning."
    )


@dataclass(frozen=True)
class StageRow:
    """One row of the table of stages, formatted."""

    name: str
    cells: list[str]
    what: str


def list_stage_rows(stages: Sequence[StageRecord]) -> list[StageRow]:
    """Top-1, top-5, ratio, weights that are not zero, function norm and time of the network after each stage."""
    return [StageRow(stage.name, _stage_cells(stage), stage.what) for stage in stages]


def _stage_cells(stage: StageRecord) -> list[str]:
    metrics = stage.metrics
    return [
        *("—" if top is None else format_percent(top) for top in (metrics.top1, metrics.top5)),
        format_percent(stage.ratio),
        format_count(stage.nonzero_params),
        "—" if stage.kind == "original" else format_number(metrics.function_norm),
        "—" if stage.kind == "original" else format_duration(stage.seconds),
    ]
