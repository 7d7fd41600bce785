"""`compress` and `apply_plan`: the whole job for any network and any images.

    checkpoint -> layers -> factors -> search -> compressed network -> ONNX -> measurements -> report

The command line only loads, calls these and prints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn

from compressor.cost.size import count_params
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.factorization.layers.kinds import weight_of
from compressor.files import claim_folder
from compressor.network.calibration.moments import MAX_INPUTS
from compressor.network.surgery import detach_from_original
from compressor.outputs.rows import whole
from compressor.pipeline.context import Context, Source
from compressor.pipeline.outputs import FACTORS, JOURNAL
from compressor.pipeline.plan import Plan
from compressor.pipeline.prepare import prepare
from compressor.pipeline.recipe import Recipe
from compressor.pipeline.settings import Settings
from compressor.pipeline.stage import Stage, run_stages
from compressor.pipeline.stage_lists import default_stages, plan_stages, recipe_stages
from compressor.pipeline.stages.finetune import FinetuneSpec
from compressor.pipeline.state import CompressedModel, State, needed
from compressor.process.memory import limited_memory
from compressor.progress import Progress


class RunOptions(TypedDict, total=False):
    """How a job runs, beside its settings.

    Attributes:
        source: where the network came from, for the report.
        progress: shows how the job goes; by default nothing does.
        resume: go on from what an interrupted run left in the folder.
        overwrite: replace an earlier run in the folder, once all inputs are checked.
        train_images: to fine-tune on, of the same kind as `images`; None for those of `images` that are not for tests.
    """

    source: Source | None
    progress: Progress | None
    resume: bool
    overwrite: bool
    train_images: ImageSet | Iterable[Any] | None


def compress(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    out: str | Path,
    settings: Settings | None = None,
    recipe: Recipe | None = None,
    **options: Unpack[RunOptions],
) -> CompressedModel:
    """Search ranks, build the compressed network, export, verify and measure it, and write the report.

    Args:
        model: any network from one tensor (N, ...) to one (N, outputs), or to tensors (N, ...) in tuples, lists,
            dictionaries, named tuples and dataclasses; left untouched.
        images: batches (N, ...) or (batch, labels) pairs, or an `ImageSet`. A part is kept for tests alone.
        out: folder to write, new or empty (or holding the run to resume or to replace).
        settings: None for the defaults.
        recipe: stages in place of one search; the settings hold for what they do not say themselves.
        options: see `RunOptions`.

    Returns:
        The network on the CPU, in eval mode, with its plan and report.

    Raises:
        InputError: something about the input, the settings or the folder is not usable.
        VerificationError: the exported file does not compute what the network computes.
    """
    settings = settings or Settings()
    stages = default_stages(settings) if recipe is None else recipe_stages(recipe)
    if recipe is not None:
        if settings.layers or settings.skip or settings.target or settings.method != "auto":
            raise InputError("a recipe's stages have their own layers, method and target: leave them out of Settings")
        settings = _with_tuning(settings, recipe)
    with claim_folder(Path(out)):
        return _run(stages, prepare(model, images, out, settings, **options))


def apply_plan(
    model: nn.Module,
    images: ImageSet | Iterable[Any],
    plan: Plan,
    out: str | Path,
    settings: Settings | None = None,
    **options: Unpack[RunOptions],
) -> CompressedModel:
    """The same job with a given plan in place of a search; arguments, result and errors as of `compress`.

    Without settings the factors are those that the plan names.
    """
    with claim_folder(Path(out)):
        return _run(plan_stages(plan), prepare(model, images, out, settings or Settings(factors=None), **options))


def _run(stages: Sequence[Stage], context: Context) -> CompressedModel:
    weight_bytes, held_bytes = 4 * count_params(context.original), context.search_images.held.nbytes
    try:
        with limited_memory(context.settings.max_memory_bytes, weight_bytes, held_bytes + _moment_bytes(context)):
            state = run_stages(stages, context, State(context.original))
    except InputError:
        # What cannot be had leaves nothing behind; an interrupted run leaves what it can go on from.
        if not context.resume and not (context.folder / JOURNAL).exists():
            (context.folder / FACTORS).unlink(missing_ok=True)
        raise
    result, report = needed(state.result, "a plan"), needed(state.report, "a report")
    return CompressedModel(whole(detach_from_original(state.network)), result.plan, report, context.folder)


def _moment_bytes(context: Context) -> int:
    """The second moments of the largest layer's inputs, with their root, its inverse and room to find them."""
    sizes = [weight_of(layer.module)[0].numel() for layer in context.layers]
    return 5 * 8 * max((size for size in sizes if size <= MAX_INPUTS), default=0) ** 2


def _with_tuning(settings: Settings, recipe: Recipe) -> Settings:
    """Settings that say whether anything is tuned, and whether by labels: images are prepared and checked for that."""
    specs = [spec for spec in recipe.stage if isinstance(spec, FinetuneSpec)]
    epochs = max((spec.epochs for spec in specs), default=0)
    by_labels = any(spec.by == "labels" for spec in specs)
    tune = replace(settings.tune, epochs=epochs, by="labels" if by_labels else "teacher")
    return replace(settings, prune_fraction=0.0, tune=tune)
