"""plan.json, the weights, and both networks as verified ONNX files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from compressor.errors import VerificationError
from compressor.files import replace_files_when_whole, replace_when_whole
from compressor.pipeline.context import Context
from compressor.pipeline.outputs import MODEL, ORIGINAL
from compressor.pipeline.plan import Plan, write_plans
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State, needed
from compressor.version import VERSION
from exporters.onnx import export_onnx
from exporters.records import ExportCheckRecord
from exporters.verify import VERIFY_IMAGES, verify_onnx


@dataclass(frozen=True)
class Export(Stage):
    """Writes plans, weights and ONNX files, and fills in `export_check`.

    Raises:
        VerificationError: an exported file does not compute what its network computes.
    """

    def run(self, context: Context, state: State) -> State:
        result = needed(state.result, "a plan")
        write_plans(context.folder, result.plan, result.pareto_front)
        with replace_when_whole(context.folder / "compressed.safetensors") as partial:
            weights = {name: value.contiguous() for name, value in state.network.state_dict().items()}
            partial.write_bytes(save(weights))
        return replace(state, export_check=export_both(context, context.original, state.network, result.plan))


def export_both(context: Context, original: nn.Module, network: nn.Module, plan: Plan) -> ExportCheckRecord:
    """original.onnx and model.onnx, each checked against torch before it takes its place."""
    images = context.test_images.batch(slice(0, VERIFY_IMAGES))
    with context.progress.stage("exporting and verifying ONNX", 2) as stage:
        _export_verified(original, images, context.folder / ORIGINAL, provenance(context), context.settings.opset)
        stage.update(1)
        return _export_verified(
            network, images, context.folder / MODEL, provenance(context, plan), context.settings.opset
        )


def provenance(context: Context, plan: Plan | None = None) -> dict[str, str]:
    """What files carry of where they came from; those of the compressed network its plan, too."""
    source = {"version": VERSION, "architecture": context.source.arch}
    if plan is None:
        return source
    ranks = {layer.name: layer.rank for layer in plan.layers if layer.rank is not None}
    return source | {
        "gamma": repr(plan.gamma),
        "ranks": json.dumps(ranks),
        "prune_fraction": repr(plan.prune_fraction),
    }


def _export_verified(
    model: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str], opset: int | None
) -> ExportCheckRecord:
    with replace_files_when_whole(path) as partial:
        export_onnx(model, images[:2], partial, metadata, opset)
        try:
            return verify_onnx(partial, model, images)
        except VerificationError as error:
            raise VerificationError(str(error).replace(str(partial), str(path))) from error
