"""The compressed network in other precisions: written from model.onnx, evaluated on the test images, timed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressor.cost.records import LatencyRecord
from compressor.cost.size import file_bytes, gzip_bytes
from compressor.errors import BocompressError, VerificationError
from compressor.fidelity.decisions import agreement, decide, share
from compressor.fidelity.evaluation import TestOutputs, make_fidelity, squared_distances
from compressor.files import replace_files_when_whole
from compressor.outputs.rows import view_of
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.accuracy_of_files import TEST_BATCH, average_precision_of, mean_iou_of
from compressor.pipeline.delivery.evaluate import evaluate_as_in_files, iterate_test_images
from compressor.pipeline.delivery.interface import file_batch, provenance
from compressor.pipeline.delivery.measure import latency_beside
from compressor.pipeline.outputs import MODEL, ORIGINAL, precision_file
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State, needed
from compressor.report.records import PrecisionRecord
from exporters.precision.float16 import RANGE_IMAGES, convert_fp16
from exporters.precision.int8 import CALIBRATION_IMAGES, CHECK_IMAGES, QuantizationImages, quantize_int8
from exporters.records import Precision, QuantizationRecord
from exporters.session import Rows, open_session, run_batches

# What int8 may add to the function norm before layers are left in float: a share of the compression's own, or of the
# outputs' energy where compression itself cost next to nothing. ResNet-18 adds 0.1 % of its energy with all in int8.
SHARE_OF_NORM = 0.25
SHARE_OF_ENERGY = 0.002


@dataclass(frozen=True)
class Quantize(Stage):
    """Fills in `precisions`, and in `failures` a sentence for each precision that could not be had."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        if set(context.settings.precisions) == {"fp32"}:
            return state
        plan, test = needed(state.result, "a plan").plan, needed(state.test, "test outputs")
        test = evaluate_as_in_files(context, state.network, test)
        records, failures = write_precisions(context, test, provenance(context, plan))
        return replace(state, precisions=records, failures=[*state.failures, *failures])


def write_precisions(
    context: Context, evaluated: TestOutputs, provenance: Mapping[str, str]
) -> tuple[list[PrecisionRecord], list[str]]:
    """Every precision asked for beside float32, and a sentence for each that could not be had.

    `model.onnx` and `original.onnx` lie in the context's folder; a precision that fails leaves no file.

    Args:
        context: settings, images and the folder.
        evaluated: what the original and the float32 network give on the test images.
        provenance: texts that the files carry, by key.
    """
    records, failures = [], []
    for precision in context.settings.precisions:
        if precision == "fp32":
            continue
        try:
            records.append(_write_precision(context, precision, evaluated, provenance))
        except BocompressError as error:
            failures.append(f"no {precision_file(precision)}: {error}; model.onnx, in float32, is not affected")
            context.progress.log(f"note: {failures[-1]}")
    return records, failures


def _write_precision(
    context: Context, precision: Precision, evaluated: TestOutputs, provenance: Mapping[str, str]
) -> PrecisionRecord:
    path = context.folder / precision_file(precision)
    signed = {**provenance, "precision": precision}
    with replace_files_when_whole(path) as partial:
        if precision == "int8":
            quantization = _quantize(context, partial, evaluated, signed)
        else:
            quantization = None
            with context.progress.stage(f"converting to {precision}"):
                images = file_batch(context, context.search_images, slice(0, RANGE_IMAGES))
                convert_fp16(context.folder / MODEL, partial, images, signed)
        with context.progress.stage(f"evaluating {path.name}"):
            outputs = _outputs(context, partial, path)
            iou, average = (measure(context, partial, path) for measure in (mean_iou_of, average_precision_of))
    squares, energy = squared_distances(outputs, evaluated.targets), evaluated.fidelity.output_energy
    return PrecisionRecord(
        precision=precision,
        file=path.name,
        onnx_bytes=file_bytes(path),
        gzip_bytes=gzip_bytes(path),
        fidelity=make_fidelity(squares, energy, outputs, evaluated.targets, evaluated.decides),
        norm_to_float32=float(squared_distances(outputs, evaluated.outputs).mean()),
        agreement_to_float32=agreement(outputs, evaluated.outputs) if evaluated.decides else None,
        top1=None if evaluated.labels is None else share(decide(outputs) == evaluated.labels),
        mean_iou=iou,
        average_precision=average,
        latency=_measure(context, ORIGINAL, path),
        latency_to_float32=_measure(context, MODEL, path),
        quantization=quantization,
    )


def _quantize(
    context: Context, partial: Path, evaluated: TestOutputs, metadata: Mapping[str, str]
) -> QuantizationRecord:
    """Ranges come from calibration images, and trials are checked on images of the search; neither are test images."""
    images = context.search_images
    count = min(CHECK_IMAGES, len(images) // 2 if not len(context.calibration) else len(images))
    check = file_batch(context, images, slice(0, count))
    fitted = context.calibration if len(context.calibration) else images.subset(range(len(check), len(images)))
    norm, energy = evaluated.fidelity.function_norm, evaluated.fidelity.output_energy
    with context.progress.stage("quantizing to int8") as stage:
        return quantize_int8(
            context.folder / MODEL,
            partial,
            QuantizationImages(file_batch(context, fitted, slice(0, CALIBRATION_IMAGES)), check, _rows(context)),
            max(SHARE_OF_NORM * norm, SHARE_OF_ENERGY * energy),
            [layer.name for layer in context.layers],
            metadata,
            stage.update,
        )


def _rows(context: Context) -> Rows | None:
    """What makes rows of a file's outputs; None where the first output is a matrix already."""
    view = view_of(context.original)
    return None if view is None else view.rows


def _outputs(context: Context, partial: Path, path: Path) -> Tensor:
    """Outputs of the file on all test images, checked at two batch sizes."""
    session, rows = open_session(partial), _rows(context)
    size = context.test_images.fitting(TEST_BATCH)
    parts = [
        run_batches(session, path, file_batch(context, images, slice(start, start + size)), size, rows)
        for images in iterate_test_images(context)
        for start in range(0, len(images), size)
    ]
    outputs = torch.from_numpy(np.concatenate(parts)).float()
    first = file_batch(context, context.test_images, slice(0, 2))
    single = torch.from_numpy(run_batches(session, path, first, 1, rows)).float()
    for found in (outputs, single):
        if not torch.isfinite(found).all():
            lost = int((~torch.isfinite(found).all(dim=1)).sum())
            raise VerificationError(f"it gives NaN or infinity on {lost} of {len(found)} real images (values overflow)")
    if not torch.allclose(single, outputs[: len(single)], rtol=1e-3, atol=1e-3 * float(outputs.abs().max())):
        raise VerificationError("it computes something else for one image than for a batch")
    return outputs


def _measure(context: Context, against: str, path: Path) -> dict[str, LatencyRecord]:
    """Latency beside another file of the run, without every single sample: the report has those of the float files."""
    records = latency_beside(context, against, path.name, f"latency of {path.name} beside {against}")
    without: dict[str, list[float]] = {"original_samples_ms": [], "compressed_samples_ms": []}
    return {provider: record.model_copy(update=without) for provider, record in records.items()}
