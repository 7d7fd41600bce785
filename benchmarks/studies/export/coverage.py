"""Every torchvision classifier: inspected, compressed at half of every break-even rank, exported, checked.

    python -m benchmarks.studies.export.coverage

Weights are random, since shapes are what is covered here, with batch-norm statistics of synthetic images, so that
activations neither vanish nor explode. Weights that are initialized to zero (heads of ViT, scales of ConvNeXt's blocks)
are random, too, since an error in what has no effect would go unseen. Factors are the weights' own. MACs are compared
with those that torchvision publishes with its weights. Every architecture has a process of its own, which frees its
memory, and a row; rows of failures hold the error.
"""

import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.studies.study import read_results, write_results
from compressor.cost.size import count_params
from compressor.data.synthetic import synthetic_images
from compressor.network.architectures import import_torchvision, list_architectures, published_transform
from compressor.network.attention import open_attention
from compressor.network.checkpoint import load_model
from compressor.network.layers import compressible, find_layers
from compressor.network.macs import count_macs
from compressor.network.surgery import build_candidate
from compressor.pipeline.stages.factorize import weight_factors
from exporters.onnx import export_onnx
from exporters.verify import verify_onnx

NUM_IMAGES = 4
SECONDS_PER_ARCH = 3600
MAX_ZERO = 1e-3  # weights all below are taken for zero
# Side in pixels where the default weights' transform would not do: one size only, that of other published weights, for
# vision transformers; and likewise for the one network that takes over an hour at its 384.
SIZES = {"vit": 224, "regnet_y_128gf": 224}


def cover(arch: str) -> dict[str, Any]:
    """The row of one architecture."""
    began = time.perf_counter()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        size = next((size for start, size in SIZES.items() if arch.startswith(start)), None)
        images = synthetic_images(NUM_IMAGES, published_transform(arch, size), seed=0).batch(slice(None))
        torch.save(initialize(import_torchvision().models.get_model(arch, weights=None), images), checkpoint)
        loaded = load_model(checkpoint)
        row: dict[str, Any] = {"arch": arch, "recognized": loaded.arch, "input_size": images.shape[-1]}
        row["macs_published"] = published_macs(arch, images.shape[-1])
        row |= compress_half(loaded.model.eval().requires_grad_(False), images, Path(folder) / "model.onnx")
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def initialize(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The model's state with no weights next to zero, and with the batch-norm statistics of the images (n, 3, s, s)."""
    model.eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and float(parameter.abs().max()) < MAX_ZERO:
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        model(images)
    return model.state_dict()


def compress_half(original: nn.Module, images: Tensor, path: Path) -> dict[str, Any]:
    """Layers and MACs, and the export check of the network with every layer at half its break-even rank."""
    model = open_attention(original, images[:1])
    found = find_layers(model, images[:1])
    layers = compressible(found)
    macs, _ = count_macs(model, images[:1])
    ranks = {layer.name: max(1, layer.break_even_rank // 2) for layer in layers}
    network = build_candidate(model, {layer.name: weight_factors(layer) for layer in layers}, ranks)
    compressed_macs, _ = count_macs(network, images[:1])
    export_onnx(network, images, path, {})
    export_check = verify_onnx(path, network, images)
    return {
        "layers": len(found),
        "compressed": dict(Counter(layer.method for layer in layers)),
        "skipped": dict(Counter(layer.skipped for layer in found if layer.skipped)),
        "params": count_params(original),
        "params_compressed": count_params(network),
        "macs": macs,
        "macs_compressed": compressed_macs,
        "onnx_bytes": path.stat().st_size,
        "spread": spread(network, images),
        "export_check": export_check.max_rel_error,
        "batch_sizes": export_check.batch_sizes,
    }


def spread(network: nn.Module, images: Tensor) -> float:
    """Largest difference between images over the largest output: an export check of constant outputs proves nothing."""
    with torch.inference_mode():
        outputs = network(images)
    return float((outputs.amax(0) - outputs.amin(0)).max() / outputs.abs().max())


def published_macs(arch: str, input_size: int) -> int | None:
    """MACs for one image by the metadata of the architecture's default weights; None where those are for another size.

    torchvision rounds them to a million.
    """
    weights = import_torchvision().models.get_model_weights(arch).DEFAULT
    if weights.transforms().crop_size != [input_size]:
        return None
    return round(1e9 * weights.meta["_ops"])


def run_alone(arch: str) -> dict[str, Any]:
    """`cover` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.studies.export.coverage", "--only", arch]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_ARCH, check=False)
    except subprocess.TimeoutExpired:
        return {"arch": arch, "failed": f"not done after {SECONDS_PER_ARCH} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"arch": arch, "failed": last, "seconds": round(time.perf_counter() - began, 1)}
    return json.loads(done.stdout.splitlines()[-1])


def size_of(arch: str) -> int:
    """Parameters, without allocating them."""
    try:
        with torch.device("meta"):
            return count_params(import_torchvision().models.get_model(arch, weights=None))
    except Exception:  # RegNets cannot be built there
        return count_params(import_torchvision().models.get_model(arch, weights=None))


@click.command()
@click.option("--only", help="One architecture; prints its row.")
@click.option("--add", is_flag=True, help="Keep the rows of the results file that passed.")
@click.option("--name", default="coverage", show_default=True, help="Name of the results file.")
def main(only: str | None, add: bool, name: str) -> None:
    """Run the study, small networks first, and write benchmarks/results/NAME.json after each."""
    if only:
        try:
            click.echo(json.dumps(cover(only)))
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(1) from error
        return
    began = time.perf_counter()
    rows = [row for row in read_results(name)["rows"] if "failed" not in row] if add else []
    known = {row["arch"] for row in rows}
    for arch in sorted(set(list_architectures()) - known, key=size_of):
        rows.append(run_alone(arch))
        click.echo(json.dumps(rows[-1]), err=True)
        write_results(name, {"about": "every torchvision classifier at half of every break-even rank"}, rows, began)
    click.echo(f"{sum('failed' not in row for row in rows)} of {len(rows)} passed")


if __name__ == "__main__":
    main()
