"""The stages from the original to the compressed network, by what is asked for."""

from compressor.pipeline.settings import Settings
from compressor.pipeline.stage import Stage
from compressor.pipeline.stages.build import SearchAndBuild
from compressor.pipeline.stages.cost import TabulateCosts
from compressor.pipeline.stages.evaluate_original import EvaluateOriginal
from compressor.pipeline.stages.factorize import Factorize
from compressor.pipeline.stages.meet_drop import MeetDrop
from compressor.pipeline.stages.meet_size import MeetSize


def search_stages(settings: Settings, is_whole_run: bool = True) -> list[Stage]:
    """Search for a gamma and build its plan, or meet a target, which builds networks on the way."""
    prepared: list[Stage] = [EvaluateOriginal(is_whole_run), Factorize(is_whole_run), TabulateCosts()]
    if settings.target is None:
        return [*prepared, SearchAndBuild()]
    return [*prepared, MeetDrop() if settings.target.kind == "drop" else MeetSize()]
