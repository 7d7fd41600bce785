"""Fine-tuning within a run: where its checkpoint lies, and what it brought on images outside the search."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.data.fingerprint import hash_images, hash_tensors
from compressor.fidelity.evaluation import TestEvaluator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import factorized_ranks
from compressor.pipeline.state import CHECKPOINT, BuiltNetwork, Job
from compressor.recovery.finetuning import FineTuning
from compressor.recovery.records import TuneRecord
from compressor.recovery.schedules import TuneSettings


def tune_as_asked(job: Job, built: BuiltNetwork) -> BuiltNetwork:
    """The network fine-tuned, where the settings say so; weights that were pruned stay zero."""
    if not job.settings.tune.epochs:
        return built
    result = built.result
    about = {
        "weights": hash_tensors(job.original.state_dict().values()),
        "ranks": factorized_ranks(result.layers, result.ranks),
        "pruned share": result.plan.prune_fraction,
    }
    network, record = tune_network(job, built.network, job.settings.tune, job.folder / CHECKPOINT, about)
    return replace(built, network=network, tuning=record)


def tune_network(
    job: Job, network: nn.Module, settings: TuneSettings, checkpoint: Path, about: Mapping[str, Any]
) -> tuple[nn.Module, TuneRecord]:
    """The network tuned on the job's training images towards the job's original, and what that brought.

    `about` is what the run depends on beside images and settings, for the checkpoint.
    """
    assert job.training is not None
    training = job.training
    evaluator = TestEvaluator(FunctionNorm(job.original, job.test_images, job.device))
    before = evaluator.evaluate(network)
    steps = settings.epochs * -(-len(training.train) // settings.batch_size)
    with job.progress.stage("fine-tuning", steps) as stage:
        tuning = FineTuning(
            network=network,
            teacher=job.original,
            images=training.train,
            check=training.check,
            settings=settings,
            device=job.device,
            seed=job.settings.search.seed,
            checkpoint=checkpoint,
            about={
                **about,
                "images to train on": hash_images(training.train),
                "check images": hash_images(training.check),
            },
            resume=job.resume,
            on_step=stage.update,
        )
        tuned, record = tuning.run()
    figures = {"before": before, "after": evaluator.evaluate(tuned), "excluded": training.excluded}
    return tuned, record.model_copy(update=figures)
