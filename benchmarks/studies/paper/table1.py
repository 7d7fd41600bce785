"""Table 1: how many layers of each network get a rank, and how many weights they hold.

    python -m benchmarks.studies.paper.table1

The networks are torchvision's, untrained, since only shapes count. For ResNet-18 the paper counts nine, its rule gives
eight: every candidate for the ninth is listed with the weights that the compressed layers would then hold, to be held
against the 6.27 million of Table 6.
"""

from collections.abc import Callable
from typing import Any

import click
import torch
from torch import nn

from benchmarks.datasets.fashion import new_fc3
from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results
from benchmarks.studies.study import RESULTS, read_results
from compressor.network.layers import compressible, find_layers

IMAGE, FLAT = (1, 3, 224, 224), (1, 784)


def torchvision_network(name: str) -> Callable[[], nn.Module]:
    """What makes an untrained network of torchvision's."""

    def make() -> nn.Module:
        from torchvision.models import get_model

        network: nn.Module = get_model(name, weights=None)
        return network

    return make


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "FC3": (new_fc3, FLAT, "fc3"),
    "VGG-16": (torchvision_network("vgg16"), IMAGE, "vgg16"),
    "ResNet18": (torchvision_network("resnet18"), IMAGE, "resnet18"),
    "ResNet50": (torchvision_network("resnet50"), IMAGE, "resnet50"),
}


def count(make: Callable[[], nn.Module], shape: tuple[int, ...], arch: str) -> dict[str, Any]:
    """Layers of the paper's set and their weights; of the layers outside it, what each would add."""
    network, example = make().eval(), torch.zeros(shape)
    every = compressible(find_layers(network, example, "spatial"))
    chosen = compressible(find_layers(network, example, "spatial", ["paper"], arch=arch))
    names = {layer.name for layer in chosen}
    weights = sum(layer.params for layer in chosen)
    others = {layer.name: weights + layer.params for layer in every if layer.name not in names}
    return {"parameters": len(chosen), "weights": weights, "names": sorted(names), "with_one_more": others}


@click.command()
def main() -> None:
    """Count the layers of the paper's networks and write benchmarks/results/paper-table1.json."""
    results = Results("paper-table1", {}, RESULTS)
    for name, network in NETWORKS.items():
        if not results.has({"network": name}):
            results.add({"network": name, **count(*network)})
    click.echo(tables.table_1(read_results(results.name)))


if __name__ == "__main__":
    main()
