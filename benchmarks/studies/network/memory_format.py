"""What a forward pass takes for images that lie channels last in memory, beside channels first.

    python -m benchmarks.studies.network.memory_format

Random weights do for time. Both are timed in turn in one process, and the least of each is taken: what else the machine
does only adds to it.
"""

import time
from typing import Any

import click
import torch

from benchmarks.studies.study import write_results
from compressor.network.architectures import import_torchvision
from compressor.network.memory_format import MIN_PIXELS

FORMATS = (torch.contiguous_format, torch.channels_last)
CONVOLUTIONAL = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "vgg16", "squeezenet1_1")
OTHERS = ("shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16")
SMALLER = (("resnet18", 64), ("resnet18", 96), ("resnet18", 128), ("resnet50", 64), ("mobilenet_v2", 64))


def time_both(arch: str, side: int, count: int, repeats: int) -> dict[str, Any]:
    """The row of one network: seconds of a pass over `count` images, by format, and their ratio."""
    torch.manual_seed(0)
    network = import_torchvision().models.get_model(arch, weights=None).eval().requires_grad_(False)
    images = torch.randn(count, 3, side, side)
    batches = [images.contiguous(memory_format=memory_format) for memory_format in FORMATS]
    seconds = [float("inf")] * len(FORMATS)
    with torch.inference_mode():
        for _ in range(1 + repeats):
            for number, batch in enumerate(batches):
                began = time.perf_counter()
                network(batch)
                seconds[number] = min(seconds[number], time.perf_counter() - began)
    first, last = seconds
    return {
        "arch": arch,
        "side": side,
        "images": count,
        "seconds_first": first,
        "seconds_last": last,
        "ratio": last / first,
        "used": side**2 >= MIN_PIXELS,
    }


@click.command()
@click.option("--threads", default=2, help="Of torch.")
@click.option("--repeats", default=7, help="Timed passes of each.")
def main(threads: int, repeats: int) -> None:
    """Write benchmarks/results/memory-format.json."""
    torch.set_num_threads(threads)
    began, rows = time.perf_counter(), []
    for arch, side in [*((arch, 224) for arch in CONVOLUTIONAL + OTHERS), *SMALLER]:
        rows.append(time_both(arch, side, 4 if side == 224 else 25, repeats))
        click.echo(f"{arch} at {side} px: {rows[-1]['ratio']:.2f}", err=True)
        write_results("memory-format", {"threads": threads, "repeats": repeats}, rows, began)


if __name__ == "__main__":
    main()
