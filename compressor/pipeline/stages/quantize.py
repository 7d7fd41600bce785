"""The compressed network in further precisions: written from model.onnx, judged and measured beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressor.cost.latency import available_providers, measure_latency
from compressor.cost.records import LatencyRecord
from compressor.cost.size import file_bytes, gzip_bytes
from compressor.errors import BocompressError, VerificationError
from compressor.fidelity.evaluation import TestOutputs, agreement, make_fidelity, share, squared_distances
from compressor.files import replace_files_when_whole
from compressor.pipeline.state import Job
from compressor.progress import Stage
from compressor.report.records import PrecisionRecord
from exporters.float16 import RANGE_IMAGES, convert_fp16
from exporters.int8 import CALIBRATION_IMAGES, CHECK_IMAGES, quantize_int8
from exporters.records import Precision, QuantizationRecord
from exporters.session import open_session, run_batches

# What int8 may add to the function norm before layers are left in float: a share of the compression's own, or of the
# outputs' energy where compression itself cost next to nothing. ResNet-18 adds 0.1 % of its energy with all in int8.
SHARE_OF_NORM = 0.05
SHARE_OF_ENERGY = 0.002
TEST_BATCH = 16


def precision_file(precision: Precision) -> str:
    """'model.int8.onnx': the name says the precision."""
    return f"model.{precision}.onnx"


def write_precisions(
    job: Job, evaluated: TestOutputs, provenance: Mapping[str, str]
) -> tuple[list[PrecisionRecord], list[str]]:
    """Every precision asked for beside float32, and a sentence for each that could not be had.

    `model.onnx` and `original.onnx` lie in the job's folder; a precision that fails leaves no file.
    """
    records, failures = [], []
    for precision in job.settings.precisions:
        if precision == "fp32":
            continue
        try:
            records.append(_write_precision(job, precision, evaluated, provenance))
        except BocompressError as error:
            failures.append(f"no {precision_file(precision)}: {error}; model.onnx, in float32, is not affected")
            job.progress.log(f"note: {failures[-1]}")
    return records, failures


def _write_precision(
    job: Job, precision: Precision, evaluated: TestOutputs, provenance: Mapping[str, str]
) -> PrecisionRecord:
    path = job.folder / precision_file(precision)
    signed = {**provenance, "precision": precision}
    with replace_files_when_whole(path) as partial:
        if precision == "int8":
            quantization = _quantize(job, partial, evaluated, signed)
        else:
            quantization = None
            with job.progress.stage(f"converting to {precision}"):
                convert_fp16(
                    job.folder / "model.onnx", partial, job.search_images.batch(slice(0, RANGE_IMAGES)), signed
                )
        with job.progress.stage(f"judging {path.name}"):
            outputs = _outputs(job, partial, path)
    squares = squared_distances(outputs, evaluated.targets)
    return PrecisionRecord(
        precision=precision,
        file=path.name,
        onnx_bytes=file_bytes(path),
        gzip_bytes=gzip_bytes(path),
        fidelity=make_fidelity(squares, evaluated.fidelity.output_energy, outputs, evaluated.targets),
        norm_to_float32=float(squared_distances(outputs, evaluated.outputs).mean()),
        agreement_to_float32=agreement(outputs, evaluated.outputs),
        top1=None if evaluated.labels is None else share(outputs.argmax(1) == evaluated.labels),
        latency=_measure(job, "original.onnx", path),
        latency_to_float32=_measure(job, "model.onnx", path),
        quantization=quantization,
    )


def _quantize(job: Job, partial: Path, evaluated: TestOutputs, metadata: Mapping[str, str]) -> QuantizationRecord:
    """Ranges from calibration images; trials are judged on images of the search. Neither are those outside it."""
    images = job.search_images
    evaluator = images.batch(slice(0, min(CHECK_IMAGES, len(images) // 2 if not len(job.calibration) else len(images))))
    fitted = job.calibration if len(job.calibration) else images.subset(range(len(evaluator), len(images)))
    norm, energy = evaluated.fidelity.function_norm, evaluated.fidelity.output_energy
    with job.progress.stage("quantizing to int8") as stage:
        return quantize_int8(
            job.folder / "model.onnx",
            partial,
            fitted.batch(slice(0, CALIBRATION_IMAGES)),
            evaluator,
            max(SHARE_OF_NORM * norm, SHARE_OF_ENERGY * energy),
            [layer.name for layer in job.layers],
            metadata,
            stage.update,
        )


def _outputs(job: Job, partial: Path, path: Path) -> Tensor:
    """Outputs of the file on the images outside the search, checked at two batch sizes."""
    session, test_images = open_session(partial), job.test_images
    parts = [
        run_batches(session, path, test_images.batch(slice(start, start + TEST_BATCH)), TEST_BATCH)
        for start in range(0, len(test_images), TEST_BATCH)
    ]
    outputs = torch.from_numpy(np.concatenate(parts)).float()
    single = torch.from_numpy(run_batches(session, path, test_images.batch(slice(0, 2)), 1)).float()
    for found in (outputs, single):
        if not torch.isfinite(found).all():
            lost = int((~torch.isfinite(found).all(dim=1)).sum())
            raise VerificationError(f"it gives NaN or infinity on {lost} of {len(found)} real images (values overflow)")
    if not torch.allclose(single, outputs[: len(single)], rtol=1e-3, atol=1e-3 * float(outputs.abs().max())):
        raise VerificationError("it computes something else for one image than for a batch")
    return outputs


def _measure(job: Job, against: str, path: Path) -> dict[str, LatencyRecord]:
    """Latency beside another file of the run, without every single sample: the report has those of the float files."""
    records = latency_beside(job, against, path.name, f"latency of {path.name} beside {against}")
    without: dict[str, list[float]] = {"original_samples_ms": [], "compressed_samples_ms": []}
    return {provider: record.model_copy(update=without) for provider, record in records.items()}


def latency_beside(job: Job, against: str, name: str, words: str) -> dict[str, LatencyRecord]:
    """Latency of two files of the run's folder, in turn, on every provider; `words` for the progress."""
    records = {}
    for provider in available_providers():
        with job.progress.stage(f"{words} on {provider}") as stage:
            records[provider] = measure_latency(
                job.folder / against,
                job.folder / name,
                job.example,
                provider,
                threads=job.settings.threads,
                batch_size=job.settings.batch_size,
                seed=job.settings.search.seed,
                on_step=log(stage),
            )
    return records


def log(stage: Stage, what: str = "runs") -> Callable[[int, int], None]:
    """Steps of a measurement as the stage's progress."""
    return lambda done, total: stage.update(done, f"of {total} {what}")
