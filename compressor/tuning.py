"""Fine-tuning within a run: where its checkpoint lies, and what it brought on images outside the search."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.fidelity import FunctionNorm
from compressor.finetune import FineTuning, TuneSettings
from compressor.hashing import hash_images, hash_tensors
from compressor.job import CHECKPOINT, Job, Realised
from compressor.layers import factorised_ranks
from compressor.precision import share
from compressor.records import Judgement, TuneRecord


class Judge:
    """Figures of any network on the images outside the search, for the report alone."""

    def __init__(self, job: Job) -> None:
        self._norm = FunctionNorm(job.teacher, job.held_out, job.device)

    def judge(self, network: nn.Module) -> Judgement:
        """Function norm to the original, and accuracies where there are labels."""
        every = torch.arange(len(self._norm.images))
        outputs = self._norm.outputs(network, every)
        norm = float(self._norm.compare(outputs, every).mean())
        if self._norm.labels is None:
            return Judgement(function_norm=norm)
        hits = outputs.cpu().topk(min(5, outputs.shape[1])).indices == self._norm.labels[:, None]
        return Judgement(
            function_norm=norm,
            top1=share(hits[:, 0]),
            top5=share(hits.any(1)) if outputs.shape[1] > 5 else None,
        )


def tune_as_asked(job: Job, realised: Realised) -> Realised:
    """The network fine-tuned, where the settings say so; weights that were pruned stay zero."""
    if not job.settings.tune.epochs:
        return realised
    choice = realised.choice
    about = {
        "weights": hash_tensors(job.teacher.state_dict().values()),
        "ranks": factorised_ranks(choice.layers, choice.ranks),
        "pruned share": choice.plan.prune_fraction,
    }
    network, record = tune_network(job, realised.network, job.settings.tune, job.folder / CHECKPOINT, about)
    return replace(realised, network=network, tuning=record)


def tune_network(
    job: Job, network: nn.Module, settings: TuneSettings, checkpoint: Path, about: Mapping[str, Any]
) -> tuple[nn.Module, TuneRecord]:
    """The network tuned on the job's training images towards the job's original, and what that brought.

    `about` is what the run depends on beside images and settings, for the checkpoint.
    """
    assert job.training is not None
    training = job.training
    judge = Judge(job)
    before = judge.judge(network)
    steps = settings.epochs * -(-len(training.train) // settings.batch_size)
    with job.progress.stage("fine-tuning", steps) as stage:
        tuning = FineTuning(
            network=network,
            teacher=job.teacher,
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
    figures = {"before": before, "after": judge.judge(tuned), "excluded": training.excluded}
    return tuned, record.model_copy(update=figures)
