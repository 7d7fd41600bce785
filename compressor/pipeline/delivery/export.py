"""plan.json, the weights, both networks as verified ONNX files, and the scripts that time and run them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from compressor.errors import VerificationError
from compressor.files import replace_files_when_whole, replace_when_whole, write_text
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.interface import check_file, provenance, selection_of, write_file
from compressor.pipeline.delivery.weights import save_compressed
from compressor.pipeline.outputs import ANCHORS, DETECTION_SCRIPT, MODEL, ORIGINAL, SCRIPT, TIMING_SCRIPT
from compressor.pipeline.plan import Plan, write_plans
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State, needed
from exporters import feeding
from exporters.records import ExportCheckRecord


@dataclass(frozen=True)
class Export(Stage):
    """Writes plans, weights, ONNX files and the scripts that time and run them, and fills in `export_check`.

    Raises:
        VerificationError: an exported file does not compute what its network computes.
    """

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        result = needed(state.result, "a plan")
        write_plans(context.folder, result.plan, result.pareto_front)
        save_compressed(context.original, state.network, context.example, context.folder)
        return replace(state, export_check=export_both(context, context.original, state.network, result.plan))


def export_both(context: Context, original: nn.Module, network: nn.Module, plan: Plan) -> ExportCheckRecord:
    """original.onnx and model.onnx, each checked against torch before it takes its place.

    Args:
        context: of the run, into whose folder both go.
        original: the network before, in eval mode.
        network: the compressed one, likewise.
        plan: goes into the metadata of model.onnx.

    Returns:
        The check of model.onnx.
    """
    with context.progress.stage("exporting and verifying ONNX", 2) as stage:
        _export_verified(context, original, context.folder / ORIGINAL, provenance(context))
        stage.update(1)
        record = _export_verified(context, network, context.folder / MODEL, provenance(context, plan))
    write_text(context.folder / TIMING_SCRIPT, feeding.TIMING_SCRIPT.read_text(encoding="utf-8"))
    if context.source.transform is not None:  # without one the script would not know how to read images
        write_text(context.folder / SCRIPT, feeding.SCRIPT.read_text(encoding="utf-8"))
        _write_selection(context, original)
    return record


def _write_selection(context: Context, original: nn.Module) -> None:
    """What chooses boxes by a one-stage detector's outputs: the anchors, and a script."""
    selection = selection_of(context, original)
    if selection is None:
        return
    with replace_when_whole(context.folder / ANCHORS) as partial, partial.open("wb") as file:
        np.save(file, selection[1])
    write_text(context.folder / DETECTION_SCRIPT, feeding.DETECTION_SCRIPT.read_text(encoding="utf-8"))


def _export_verified(
    context: Context, network: nn.Module, path: Path, metadata: Mapping[str, str]
) -> ExportCheckRecord:
    with replace_files_when_whole(path) as partial:
        write_file(context, network, partial, metadata)
        try:
            return check_file(context, network, partial)
        except VerificationError as error:
            raise VerificationError(str(error).replace(str(partial), str(path))) from error
