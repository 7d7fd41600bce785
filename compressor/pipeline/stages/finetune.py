"""Fine-tuning: where its checkpoint lies, and what it brought on the test images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field
from torch import nn

from compressor.data.fingerprint import hash_images, hash_tensors
from compressor.fidelity.evaluation import TestEvaluator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import factorized_ranks
from compressor.outputs.rows import counted_outputs
from compressor.pipeline.context import Context
from compressor.pipeline.outputs import CHECKPOINT
from compressor.pipeline.stage import RecipeStage, Stage, StageSpec
from compressor.pipeline.state import Outcome, State, needed
from compressor.recovery.finetuning import FineTuning
from compressor.recovery.records import Schedule, TuneRecord, TuneTarget
from compressor.recovery.settings import TuneSettings


class FinetuneSpec(StageSpec):
    """A fine-tuning of the network as it is, towards the original's outputs or the labels."""

    kind: Literal["finetune"]
    epochs: int = Field(ge=1)
    by: TuneTarget = "teacher"
    schedule: Schedule = "cosine"
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    batch_size: int = Field(default=32, ge=1)
    patience: int = Field(default=3, ge=1)


@dataclass(frozen=True)
class Finetune(Stage):
    """Fine-tunes the built network where the settings say so; weights that were pruned stay zero."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        if not context.settings.tune.epochs:
            return state
        result = needed(state.result, "a plan")
        about = {
            "weights": hash_tensors(context.original.state_dict().values()),
            "ranks": factorized_ranks(result.layers, result.ranks),
            "pruned share": result.plan.prune_fraction,
        }
        network, record = tune_network(context, state.network, context.settings.tune, about)
        return replace(state, network=network, tuning=record)


@dataclass(frozen=True)
class FinetuneAsRecipeSays(RecipeStage):
    """Fine-tunes the network as it is, as the recipe says."""

    spec: FinetuneSpec

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        settings = replace(context.settings.tune, **self.spec.model_dump(exclude={"kind", "name"}))
        about = {"network": hash_tensors(state.network.state_dict().values())}
        network, record = tune_network(context, state.network, settings, about)
        what = f"epoch {record.kept_epoch} of {record.epochs} kept, by {record.by}, {record.schedule}"
        return replace(state, network=network, outcome=Outcome(what, {"tuning": record}))


def tune_network(
    context: Context, network: nn.Module, settings: TuneSettings, about: Mapping[str, Any]
) -> tuple[nn.Module, TuneRecord]:
    """The network tuned on the training images towards the original, and what that brought on the test images.

    Args:
        context: the original, images, and the folder of the checkpoint.
        network: to tune.
        settings: of the fine-tuning.
        about: what the run depends on beside images and settings, JSON values only, for the checkpoint.
    """
    training = needed(context.training, "images to train on")
    evaluator = TestEvaluator(FunctionNorm(context.original, context.test_images, context.device))
    before = evaluator.evaluate(network)
    steps = settings.epochs * -(-len(training.train) // settings.batch_size)
    with context.progress.stage("fine-tuning", steps) as stage:
        tuning = FineTuning(
            network=network,
            original=context.original,
            images=training.train,
            check=training.check,
            settings=settings,
            device=context.device,
            seed=context.settings.search.seed,
            checkpoint=context.folder / CHECKPOINT,
            about={
                **about,
                **counted_outputs(context.original),
                "images to train on": hash_images(training.train),
                "check images": hash_images(training.check),
            },
            resume=context.resume,
            on_step=stage.update,
        )
        tuned, record = tuning.run()
    figures = {"before": before, "after": evaluator.evaluate(tuned), "excluded": training.excluded}
    return tuned, record.model_copy(update=figures)
