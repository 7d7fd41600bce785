"""The original's outputs on the search's images, the fidelity measured against them, and the gamma that weighs it."""

import time
from dataclasses import dataclass, replace

from compressor.errors import InputError
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.risk import make_measure
from compressor.files import prepare_folder
from compressor.network.layers import compressible
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.choose_warnings import early_warnings
from compressor.pipeline.expected_costs import expected_costs
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State
from compressor.search.objective import default_gamma


def function_norm(context: Context) -> FunctionNorm:
    """The function norm on the images that the search and choices of factors may see."""
    with context.progress.stage("outputs of the original"):
        return FunctionNorm(context.original, context.search_images, context.device)


@dataclass(frozen=True)
class EvaluateOriginal(Stage):
    """Fills in `norm`, `measure` and `gamma`, and says early what a search of them may come to.

    Attributes:
        is_whole_run: whether the rest of the run is this search's: then its time is known, too.
    """

    is_whole_run: bool = True

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        began, settings = time.perf_counter(), context.settings
        norm = function_norm(context)
        seconds_per_image = (time.perf_counter() - began) / len(context.search_images)
        if self.is_whole_run:
            context.progress.expect(expected_costs(context, seconds_per_image))
        if not compressible(context.layers):
            raise InputError("no layer is left to compress; `bocompress inspect` lists the reasons")
        measure = make_measure(norm, settings.fidelity)
        gamma = settings.gamma if settings.gamma is not None else default_gamma(measure.uninformative_loss)
        for warning in early_warnings(context, gamma, measure.uninformative_loss):
            context.progress.log(f"note: {warning}")
        prepare_folder(context.folder)
        return replace(state, norm=norm, measure=measure, gamma=gamma, seconds_per_image=seconds_per_image)
