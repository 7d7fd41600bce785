"""The one driver: every stage in order, nothing else.

    checkpoint -> layers -> factors -> search -> compressed network -> ONNX -> measurements -> report

`compress` is the whole job for any network and any images; the command line only loads, calls and prints.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from compressor.data.images import ImageSet
from compressor.files import prepare_folder
from compressor.pipeline.plan import Plan, planned_layers
from compressor.pipeline.prepare import function_norm, prepare
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.export import deliver
from compressor.pipeline.stages.factorize import decompose_layers
from compressor.pipeline.stages.finetune import tune_as_asked
from compressor.pipeline.stages.meet_size import reach_target
from compressor.pipeline.stages.search_ranks import RankSearch, make_result
from compressor.pipeline.state import BuiltNetwork, CompressedModel, Job, Source
from compressor.progress import Progress
from compressor.search.objective import default_gamma


def compress(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
) -> CompressedModel:
    """Search ranks, build the compressed network, export, verify and measure it, and write the report.

    Args:
        model: any network from one tensor (N, ...) to one tensor (N, outputs); left untouched.
        images: batches (N, ...) or (batch, labels) pairs, or an `ImageSet`. A part is kept out of the search.
        out: folder to write, new or empty (or holding the search to resume).
        settings, source, progress: see there.
        resume: go on from the journal in `out`, and from the fine-tuning's checkpoint.
        train_images: to fine-tune on, of the same kind as `images`; None for those of `images` that do not judge.

    Raises:
        InputError: something about the input, the settings or the folder is not usable.
        VerificationError: the exported file does not compute what the network computes.
    """
    job = prepare(model, images, out, settings, source, progress, resume, train_images)
    norm = function_norm(job)
    with RankSearch(job, norm, resume) as search:
        built = reach_target(job, search, norm) if job.settings.target else build(job, search.run(), norm)
    return _finish(job, built)


def apply_plan(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    plan: Plan,
    out: str | Path,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    train_images: ImageSet | Iterable[Any] | None = None,
) -> CompressedModel:
    """The same job with a given plan instead of a search; arguments and errors as `compress`.

    ExcludedPoints settings the factors are those that the plan names.
    """
    settings = settings or Settings(factors=None)
    job = prepare(model, images, out, settings, source, progress, resume, train_images)
    layers, ranks = planned_layers(plan, job.layers)
    prepare_folder(job.folder)
    norm = function_norm(job)
    kinds = {row.name: row.factors for row in plan.layers if row.factors} if job.settings.factors is None else {}
    parts = decompose_layers(job, layers, norm, kinds)
    gamma = plan.gamma or job.settings.gamma or default_gamma(norm.output_energy)
    break_even_ranks = {layer.name: layer.break_even_rank for layer in layers}
    used = {part.layer.name: part.kind for part in parts}
    rows = [
        row.model_copy(update={"break_even_rank": break_even_ranks[row.name], "factors": used[row.name]})
        for row in plan.layers
    ]
    kept = plan.model_copy(update={"arch": job.source.arch, "gamma": gamma, "layers": rows})
    return _finish(job, build(job, make_result(parts, ranks, gamma, kept), norm))


# Before the search


# After the search


def _finish(job: Job, built: BuiltNetwork) -> CompressedModel:
    return deliver(job, tune_as_asked(job, built))
