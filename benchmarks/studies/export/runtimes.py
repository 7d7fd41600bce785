"""Compressed networks at the lowest operator set that each can have, in an old ONNX Runtime and in OpenVINO.

    python -m benchmarks.studies.export.runtimes --old-python VENV/bin/python

VENV is an environment with ONNX Runtime 1.17 and numpy alone. Networks are those of the coverage study: random weights,
every layer at half its break-even rank. The outputs of each file are compared with torch's in every runtime.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.studies.export.coverage import initialize
from benchmarks.studies.study import write_results
from compressor.data.synthetic import synthetic_images
from compressor.errors import BocompressError
from compressor.network.architectures import import_torchvision, published_transform
from compressor.network.attention import open_attention
from compressor.network.layers import compressible, find_layers
from compressor.network.surgery import build_candidate
from compressor.pipeline.stages.factorize import weight_factors
from exporters.onnx import export_onnx, frozen_copy
from exporters.opsets import lowest_opset, opset_of
from exporters.verify import verify_onnx

ARCHITECTURES = (
    *("resnet18", "mobilenet_v2", "efficientnet_b0", "densenet121"),
    *("convnext_tiny", "swin_t", "vit_b_16"),
)
NUM_IMAGES = 3
# Run by the old environment's Python: prints ONNX Runtime's version and writes the outputs.
PROGRAM = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: images})[0])
print(onnxruntime.__version__)
"""


def try_runtimes(arch: str, old_python: Path) -> dict[str, Any]:
    """The row of one architecture."""
    began = time.perf_counter()
    torch.manual_seed(0)
    images = synthetic_images(NUM_IMAGES, published_transform(arch, 224), seed=0).batch(slice(None))
    network = compress_half(arch, images)
    opset = lowest_opset(frozen_copy(network), images[:2])
    with torch.inference_mode():
        expected = network(images).numpy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.onnx"
        export_onnx(network, images, path, {"architecture": arch}, opset)
        proto = onnx.load(path, load_external_data=False)
        row = {"arch": arch, "opset": opset_of(proto), "ir": proto.ir_version}
        row["onnxruntime"] = verify_onnx(path, network, images).max_rel_error
        old, row["old_version"] = run_old(path, images, folder, old_python)
        row["old"] = relative_error(old, expected)
        row["openvino"] = relative_error(run_openvino(path, images), expected)
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def compress_half(arch: str, images: Tensor) -> nn.Module:
    """The network with random weights and every layer at half its break-even rank."""
    model = import_torchvision().models.get_model(arch, weights=None)
    initialize(model, images)
    model = open_attention(model.eval().requires_grad_(False), images[:1])
    layers = compressible(find_layers(model, images[:1]))
    ranks = {layer.name: max(1, layer.break_even_rank // 2) for layer in layers}
    return build_candidate(model, {layer.name: weight_factors(layer) for layer in layers}, ranks).eval()


def run_old(path: Path, images: Tensor, folder: Path, old_python: Path) -> tuple[NDArray[Any], str]:
    """The file's outputs in the old environment's ONNX Runtime, and its version."""
    given, found = folder / "images.npy", folder / "outputs.npy"
    np.save(given, images.numpy())
    command = [str(old_python), "-c", PROGRAM, str(path), str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BocompressError((done.stderr.strip().splitlines() or ["it failed without a word"])[-1])
    return np.load(found), done.stdout.strip()


def run_openvino(path: Path, images: Tensor) -> NDArray[Any]:
    """The file's outputs in OpenVINO, whose batch size stays free."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([images.numpy()])[0])


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the largest output."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@click.command()
@click.option("--old-python", type=click.Path(path_type=Path, exists=True), required=True, help="Its interpreter.")
@click.option("--only", help="One architecture; prints its row.")
def main(old_python: Path, only: str | None) -> None:
    """Run the study and write benchmarks/results/runtimes.json after each network."""
    if only:
        click.echo(json.dumps(try_runtimes(only, old_python)))
        return
    from importlib.metadata import version

    began, rows = time.perf_counter(), []
    for arch in ARCHITECTURES:
        command = [sys.executable, "-m", __spec__.name, "--old-python", str(old_python), "--only", arch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = ((done.stderr if done.returncode else done.stdout).strip().splitlines() or ["no output"])[-1]
        rows.append({"arch": arch, "failed": last} if done.returncode else json.loads(last))
        click.echo(json.dumps(rows[-1]), err=True)
        write_results("runtimes", {"openvino_version": version("openvino")}, rows, began)


if __name__ == "__main__":
    main()
