"""Latency of the files written, on every provider that works here."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from compressor.cost.latency import LatencySettings, measure_latency
from compressor.cost.records import Cost, LatencyRecord
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.interface import file_batch
from compressor.pipeline.outputs import MODEL, ORIGINAL
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State, needed
from compressor.progress import ProgressStage
from compressor.search.records import TargetRecord
from exporters.providers import PROVIDERS, available_providers


@dataclass(frozen=True)
class MeasureLatency(Stage):
    """Fills in `latency`; a target of time is held against it."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        latency = latency_beside(context, ORIGINAL, MODEL, "latency")
        if state.target is None:
            return replace(state, latency=latency)
        last = latency.get(PROVIDERS[context.settings.provider])
        target = with_last_timing(state.target, needed(state.result, "a plan").cost, last)
        return replace(state, latency=latency, target=target)


def with_last_timing(target: TargetRecord, cost: Cost, last: LatencyRecord | None) -> TargetRecord:
    """A target of time with the delivered file's latency; any other as it is.

    Args:
        target: what was asked for, with what the search reached.
        cost: in which the search counted.
        last: the delivered file's latency beside the original's; None where it was not measured.
    """
    if cost != "latency" or target.kind not in ("latency", "ratio") or last is None:
        return target
    reached = last.compressed_ms if target.kind == "latency" else last.ratio
    return target.model_copy(update={"reached": reached, "at_most": reached, "met": reached <= target.asked})


def latency_beside(context: Context, against: str, name: str, words: str) -> dict[str, LatencyRecord]:
    """Latency of two files of the run's folder, in turn, by provider.

    Args:
        context: the folder, images and settings.
        against: name of the file that counts as the original.
        name: of the other.
        words: what the progress shows.
    """
    records = {}
    for provider in available_providers():
        with context.progress.stage(f"{words} on {provider}") as stage:
            records[provider] = measure_latency(
                context.folder / against,
                context.folder / name,
                file_batch(context, context.search_images, slice(0, 1)),
                LatencySettings(
                    provider,
                    threads=context.settings.threads,
                    batch_size=context.settings.timed_batch,
                    seed=context.settings.search.seed,
                ),
                report_steps(stage),
            )
    return records


def report_steps(stage: ProgressStage, what: str = "runs") -> Callable[[int, int], None]:
    """Steps of a measurement as the stage's progress."""
    return lambda done, total: stage.update(done, f"of {total} {what}")
