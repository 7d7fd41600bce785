"""Every network of torchvision: inspected, compressed at half of every break-even rank, exported, checked.

    python -m benchmarks.studies.export.coverage [--channels]

With --channels every group of a classifier's layers keeps seven tenths of its hidden channels instead, the counts are
held against those that the search takes for exact, and the network is written and read again; images are smaller where
they may be.

Segmentation networks are at 96 px, without their auxiliary heads; networks for clips and pairs of frames are at the
smallest that they take, and so are detectors, of which everything up to their heads' raw outputs is meant. What
cannot be compressed has a row with the sentence that says why.

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
import torch
from torch import Tensor, nn

from benchmarks.studies.study import earlier_rows, write_results
from compressor.channels.costs import ChannelCosts
from compressor.channels.grouping import find_groups
from compressor.channels.narrowing import kept_in_front, narrow
from compressor.cost.size import count_params
from compressor.data.synthetic import synthetic_images
from compressor.data.transforms import Transform
from compressor.network.architectures import (
    COMPRESSED,
    Task,
    import_torchvision,
    list_task,
    published_transform,
    task_of,
    why_not,
)
from compressor.network.attention import open_attention
from compressor.network.checkpoint import load_model
from compressor.network.inputs import of_one_input
from compressor.network.layers import compressible, find_layers
from compressor.network.macs import count_macs
from compressor.network.serialization import load_network, save_network
from compressor.network.surgery import build_candidate
from compressor.outputs.auxiliary import drop_auxiliary
from compressor.outputs.structure import named_tensors
from compressor.pipeline.stages.factorize import weight_factors
from exporters.onnx import export_onnx
from exporters.verify import verify_onnx

NUM_IMAGES = 4
SECONDS_PER_ARCH = 3600
MAX_ZERO = 1e-3  # weights all below are taken for zero
# Side in pixels where the default weights' transform would not do: one size only, that of other published weights, for
# vision transformers; and likewise for the one network that takes over an hour at its 384.
SIZES = {"vit": 224, "regnet_y_128gf": 224}
SMALL, WHOLE_ONLY = 96, ("vit", "swin", "maxvit")  # pixels with --channels, but for networks of one size
CLIPS = {"mvit": (16, 224), "s3d": (16, 224), "swin3d": (8, 64)}  # frames, and pixels of their sides
SMALL_CLIPS = 8, 64  # of all others
DETECTORS = {"ssdlite320": 320, "ssd300": 300}  # of one size
PAIRS = 128  # pixels of the sides of frames, of which optical flow takes two
SHARE = 0.7  # of every group's units that are left


def cover(arch: str, channels: bool = False) -> dict[str, Any]:
    """The row of one architecture."""
    began = time.perf_counter()
    task = task_of(arch)
    if task not in COMPRESSED:
        assert task is not None
        return {"arch": arch, "task": task, "refused": why_not(arch)}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        images = synthetic_images(NUM_IMAGES, transform_for(arch, channels), seed=0)
        batch = images.batch(slice(None))
        torch.save(initialize(make(arch), batch), checkpoint)
        loaded = load_model(checkpoint)
        model = loaded.model.eval().requires_grad_(False)
        drop_auxiliary(model)
        row: dict[str, Any] = {"arch": arch, "recognized": loaded.arch, "input_size": batch.shape[-1]}
        row |= {"frames": batch.shape[2]} if batch.ndim > 4 else {}
        if channels:
            row |= narrow_all(model, batch, Path(folder))
        else:
            row["macs_published"] = published_macs(arch, batch.shape[-1])
            row |= compress_half(model, batch, Path(folder) / "model.onnx")
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def make(arch: str) -> nn.Module:
    """The network with random weights; where there is a backbone, its are, too."""
    arguments = {"weights_backbone": None} if task_of(arch) in ("segmentation", "detection") else {}
    return of_one_input(import_torchvision().models.get_model(arch, weights=None, **arguments))


def transform_for(arch: str, channels: bool) -> Transform:
    """How the images or clips are made, as small as the network takes them where that is not as published."""
    transform = published_transform(arch, size_for(arch, channels))
    if task_of(arch) == "detection":
        side = size_for(arch, channels)
        assert side is not None
        return replace(transform, input_size=side, resize_size=side)
    if transform.adjacent:
        return replace(transform, input_size=PAIRS, resize_size=PAIRS)
    if transform.frames is None:
        return transform
    frames, side = next((size for start, size in CLIPS.items() if arch.startswith(start)), SMALL_CLIPS)
    return replace(transform, frames=frames, input_size=side, resize_size=side)


def size_for(arch: str, channels: bool) -> int | None:
    """Side of the images in pixels; None for that of the published weights."""
    if task_of(arch) == "detection":
        return next((size for start, size in DETECTORS.items() if arch.startswith(start)), SMALL)
    if task_of(arch) == "segmentation" or (channels and not arch.startswith(WHOLE_ONLY)):
        return SMALL
    return next((size for start, size in SIZES.items() if arch.startswith(start)), None)


def initialize(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The model's state with no weights next to zero, and with the batch-norm statistics of the images (n, 3, ...)."""
    model.eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and float(parameter.abs().max()) < MAX_ZERO:
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
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


def narrow_all(original: nn.Module, images: Tensor, folder: Path) -> dict[str, Any]:
    """Groups, counts, and the checks of the network with SHARE of every group's units, saved and exported.

    Raises:
        ValueError: the network does not have the parameters and MACs that its widths should give.
    """
    model = open_attention(original, images[:1])
    groups = find_groups(model, images[:1])
    costs = ChannelCosts(model, groups, images[:1])
    widths = [max(1, int(SHARE * group.num_units)) for group in groups]
    named = {group.name: width for group, width in zip(groups, widths, strict=True)}
    network = narrow(model, groups, kept_in_front(groups, named))
    counted = count_params(network), count_macs(network, images[:1])[0]
    if counted != (costs.params(widths), costs.macs(widths)):
        raise ValueError(f"counted {counted}, expected {costs.params(widths)} and {costs.macs(widths)}")
    save_network(model, network, folder / "network.safetensors")
    again = load_network(model, folder / "network.safetensors")
    with torch.inference_mode():
        reloaded = float((again(images) - network(images)).abs().max())
    export_onnx(again, images, folder / "model.onnx", {})
    export_check = verify_onnx(folder / "model.onnx", network, images)
    return {
        "groups": len(groups),
        "params": count_params(model),
        "params_compressed": counted[0],
        "macs": count_macs(model, images[:1])[0],
        "macs_compressed": counted[1],
        "reloaded": reloaded,
        "spread": spread(network, images),
        "export_check": export_check.max_rel_error,
    }


def spread(network: nn.Module, images: Tensor) -> float:
    """Largest difference between images over the largest output: an export check of constant outputs proves nothing."""
    with torch.inference_mode():
        outputs = next(iter(named_tensors(network(images)).values()))
    return float((outputs.amax(0) - outputs.amin(0)).max() / outputs.abs().max())


def published_macs(arch: str, input_size: int) -> int | None:
    """MACs for one image by the metadata of the architecture's default weights; None where those are for another size.

    torchvision rounds them to a million.
    """
    if task_of(arch) in ("detection", "optical_flow"):  # its boxes are others, and so are its sides
        return None
    weights = import_torchvision().models.get_model_weights(arch).DEFAULT
    if getattr(weights.transforms(), "crop_size", None) != [input_size]:
        return None
    return round(1e9 * weights.meta["_ops"])


def run_alone(arch: str, channels: bool) -> dict[str, Any]:
    """`cover` in a process of its own, where there is anything to run."""
    if task_of(arch) not in COMPRESSED:
        return cover(arch)
    command = [sys.executable, "-m", "benchmarks.studies.export.coverage", "--only", arch]
    command += ["--channels"] if channels else []
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
    """Parameters, without allocating them; none where a network is refused, which then need not be built."""
    if task_of(arch) not in COMPRESSED:
        return 0
    try:
        with torch.device("meta"):
            return count_params(make(arch))
    except Exception:  # RegNets cannot be built there
        return count_params(make(arch))


@click.command()
@click.option("--only", help="One architecture; prints its row.")
@click.option("--channels", is_flag=True, help="Hidden channels in place of ranks.")
@click.option("--add", is_flag=True, help="Keep the rows of the results file that passed.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Networks at a time.")
@click.option("--name", help="Name of the results file; coverage or coverage-channels if not given.")
def main(only: str | None, channels: bool, add: bool, jobs: int, name: str | None) -> None:
    """Run the study, small networks first, and write benchmarks/results/NAME.json after each."""
    if only:
        try:
            click.echo(json.dumps(cover(only, channels)))
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(1) from error
        return
    name = name or ("coverage-channels" if channels else "coverage")
    left = f"{SHARE} of every group's hidden channels" if channels else "half of every break-even rank"
    rows, began = earlier_rows(name, add, time.perf_counter())
    rows = [row for row in rows if "failed" not in row]
    every = [arch for task in get_args(Task) if not channels or task == "classification" for arch in list_task(task)]
    left_out = sorted(set(every) - {row["arch"] for row in rows}, key=size_of)
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(lambda arch: run_alone(arch, channels), left_out):
            rows.append(row)
            click.echo(json.dumps(row), err=True)
            write_results(name, {"about": f"every network of torchvision at {left}"}, rows, began)
    refused = sum("refused" in row for row in rows)
    passed = sum("failed" not in row for row in rows) - refused
    click.echo(f"{passed} of {len(rows)} passed, {refused} cannot be compressed")


if __name__ == "__main__":
    main()
