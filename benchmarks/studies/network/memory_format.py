"""What a forward pass takes for images that lie channels last in memory, beside channels first, and without norms.

    python -m benchmarks.studies.network.memory_format

Random weights do for time. All are timed in turn in one process, and the least of each is taken: what else the machine
does only adds to it.
"""

import time
from typing import Any

import click
import torch

from benchmarks.studies.study import write_results
from compressor.network.acceleration.folding import fold_norms
from compressor.network.acceleration.memory_format import MIN_PIXELS
from compressor.network.architectures import import_torchvision

FORMATS = (torch.contiguous_format, torch.channels_last)
CONVOLUTIONAL = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "vgg16", "squeezenet1_1")
OTHERS = ("shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16")
SMALLER = (("resnet18", 64), ("resnet18", 96), ("resnet18", 128), ("resnet50", 64), ("mobilenet_v2", 64))


def time_all(arch: str, side: int, count: int, repeats: int) -> dict[str, Any]:
    """The row of one network: seconds of a pass over `count` images by format, and their ratio; and without its batch
    norms, in the format that runs use, beside those with them."""
    torch.manual_seed(0)
    network = import_torchvision().models.get_model(arch, weights=None).eval().requires_grad_(False)
    images = torch.randn(count, 3, side, side)
    first, last = (images.contiguous(memory_format=memory_format) for memory_format in FORMATS)
    is_last = side**2 >= MIN_PIXELS
    folded = fold_norms(network, images[:1])
    passes = [(network, first), (network, last), (folded.network, last if is_last else first)]
    seconds = [float("inf")] * len(passes)
    with torch.inference_mode():
        for _ in range(1 + repeats):
            for number, (model, batch) in enumerate(passes):
                began = time.perf_counter()
                model(batch)
                seconds[number] = min(seconds[number], time.perf_counter() - began)
    of_first, of_last, without_norms = seconds
    return {
        "arch": arch,
        "side": side,
        "images": count,
        "seconds_first": of_first,
        "seconds_last": of_last,
        "ratio": of_last / of_first,
        "used": is_last,
        "norms": len(folded.norms),
        "seconds_without_norms": without_norms,
        "ratio_without_norms": without_norms / (of_last if is_last else of_first),
    }


@click.command()
@click.option("--threads", default=2, help="Of torch.")
@click.option("--repeats", default=7, help="Timed passes of each.")
def main(threads: int, repeats: int) -> None:
    """Write benchmarks/results/memory-format.json."""
    torch.set_num_threads(threads)
    began, rows = time.perf_counter(), []
    for arch, side in [*((arch, 224) for arch in CONVOLUTIONAL + OTHERS), *SMALLER]:
        rows.append(time_all(arch, side, 4 if side == 224 else 25, repeats))
        click.echo(f"{arch} at {side} px: {rows[-1]['ratio']:.2f}, {rows[-1]['ratio_without_norms']:.2f}", err=True)
        write_results("memory-format", {"threads": threads, "repeats": repeats}, rows, began)


if __name__ == "__main__":
    main()
