"""What hidden channels are worth: a network at shares of its operations, without training and without labels.

    python -m benchmarks.studies.network.channels MODEL DATA --synsets FILE --operations 0.9 --operations 0.8

Half of the photographs are fitted on; function norm and top-1 are on the other half. With --orders the single-group
losses of three orders are compared as well: by elimination, by pivoted QR of the channels' values, and by norm.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks.studies.study import write_results
from compressor.channels.allocation import Curve, allocate, masked, measure_curve
from compressor.channels.costs import ChannelCosts
from compressor.channels.elimination import Elimination
from compressor.channels.factors import ChannelFactors, regularized
from compressor.channels.groups import find_groups
from compressor.channels.orders import by_norm, by_pivoted_qr
from compressor.channels.reduction import Reduction
from compressor.channels.statistics import ReaderMoments, reader_moments
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.attention import open_attention
from compressor.network.checkpoint import load_model
from compressor.network.macs import count_macs

CPU = torch.device("cpu")
NUM_CHECK = 32
ORDER_SHARE = 0.7  # of a group's units, at which orders are compared


class Study:
    """One network with its images."""

    def __init__(self, model: nn.Module, fit: ImageSet, test: ImageSet, multiple: int) -> None:
        self.model, self.multiple = model, multiple
        self.fit, self.check = (
            fit.subset(range(len(fit) - NUM_CHECK)),
            fit.subset(range(len(fit) - NUM_CHECK, len(fit))),
        )
        example = fit.batch([0])
        self.groups = find_groups(model, example)
        self.costs = ChannelCosts(model, self.groups, example)
        readers = {name: group.num_units for group in self.groups for name in group.reader_names}
        self.moments = reader_moments(model, readers, self.fit, CPU, 0)
        self.factors = [self._factors(number) for number in range(len(self.groups))]
        self.check_norm, self.test_norm = FunctionNorm(model, self.check, CPU), FunctionNorm(model, test, CPU)
        self.labels = test.labels

    def _factors(self, number: int, order: Elimination | None = None) -> ChannelFactors:
        group = self.groups[number]
        layers: dict[str, Any] = {name: self.model.get_submodule(name) for name in group.reader_names}
        return ChannelFactors(group, layers, self.moments, order)

    def loss(self, network: nn.Module) -> float:
        """The function norm on the check images."""
        return self.check_norm.losses(network, np.arange(NUM_CHECK)).mean

    def curves(self) -> list[Curve]:
        """Of all groups."""
        return [measure_curve(self.model, factors, self.loss, self.multiple) for factors in self.factors]

    def row(self, curves: list[Curve], share: float, passes: int) -> dict[str, Any]:
        """One network at a share of the operations."""
        began = time.perf_counter()
        widths = allocate(curves, self.costs, share * self.costs.macs(self.costs.num_units))
        reduction = Reduction(self.model, self.factors, self.fit, self.check_norm, CPU)
        start = self._evaluate(reduction.start(widths))
        network = reduction.run(widths, passes)
        macs, _ = count_macs(network, self.fit.batch([0]))
        return {
            "operations": macs / self.costs.macs(self.costs.num_units),
            "params": self.costs.params(widths) / self.costs.params(self.costs.num_units),
            "widths": {g.name: int(w) for g, w in zip(self.groups, widths, strict=True)},
            "passes": passes,
            "kept": sum(step.kept for step in reduction.steps),
            "before_refits": start,
            **self._evaluate(network),
            "seconds": round(time.perf_counter() - began, 1),
        }

    def _evaluate(self, network: nn.Module) -> dict[str, float]:
        every = torch.arange(len(self.test_norm.images))
        outputs = self.test_norm.outputs(network, every)
        squares = self.test_norm.compare(outputs, every)
        found = {"function_norm": float(squares.mean()), "stderr": float(squares.std(ddof=1) / len(squares) ** 0.5)}
        if self.labels is not None:
            found["top1"] = float((outputs.argmax(1) == self.labels).double().mean())
            found["top1_original"] = float((self.test_norm.targets.argmax(1) == self.labels).double().mean())
        return found

    def orders(self) -> list[dict[str, Any]]:
        """Single-group losses of the three orders at ORDER_SHARE of the units, all refitted by least squares."""
        rows = []
        for number, factors in enumerate(self.factors):
            (name, *_) = reversed(factors.group.reader_names)
            width = max(1, round(ORDER_SHARE * factors.max_rank))
            moments: ReaderMoments = self.moments[name]
            covariance = regularized(moments.covariance).numpy()
            weight: Any = self.model.get_submodule(name).weight
            orders = {
                "elimination": None,
                "pivoted QR": by_pivoted_qr(covariance, factors.max_rank),
                "norm": by_norm(covariance, moments.importance(weight).numpy(), factors.max_rank),
            }
            losses = {
                key: self.loss(masked(self.model, factors if order is None else self._factors(number, order), width))
                for key, order in orders.items()
            }
            rows.append({"group": factors.group.name, "width": width, **losses})
            click.echo(rows[-1], err=True)
        return rows


def numbered(images: ImageSet, synsets: Path | None) -> ImageSet:
    """The images with the number of their folder's line in a file as label."""
    if synsets is None or images.files is None:
        return images
    order = synsets.read_text(encoding="utf-8").split()
    return replace(images, labels=torch.tensor([order.index(file.split("/")[0]) for file in images.files]))


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--arch", default=None, help="Architecture of MODEL, if it is not to be recognized.")
@click.option("--synsets", type=click.Path(path_type=Path), default=None, help="Names of the classes, one per line.")
@click.option("--operations", type=float, multiple=True, default=(0.9, 0.8, 0.7), help="Shares of the operations.")
@click.option("--passes", default=1, help="Refits of all layers front to back.")
@click.option("--multiple", default=8, help="Widths are multiples of it.")
@click.option("--images", "num_images", default=500, help="Photographs: half to fit on, half to evaluate on.")
@click.option("--orders", is_flag=True, help="Compare orders, too.")
@click.option("--name", default="channels", help="Of the results file.")
def main(
    model: Path,
    data: Path,
    arch: str | None,
    synsets: Path | None,
    operations: tuple[float, ...],
    passes: int,
    multiple: int,
    num_images: int,
    orders: bool,
    name: str,
) -> None:
    """Hidden channels of MODEL at shares of its operations, on photographs of DATA."""
    began = time.perf_counter()
    loaded = load_model(model, arch=arch)
    images = load_folder(data, loaded.transform, num_images, seed=0, num_classes=loaded.num_classes)
    images = numbered(images, synsets)
    network = open_attention(loaded.model, images.batch([0]))
    half = len(images) // 2
    study = Study(network, images.subset(range(half)), images.subset(range(half, len(images))), multiple)
    about = {"model": loaded.arch, "fit_on": half, "output_energy": study.test_norm.output_energy, "multiple": multiple}
    compared = study.orders() if orders else []
    curves, rows = study.curves(), []
    for share in operations:
        rows.append(study.row(curves, share, passes))
        click.echo(rows[-1], err=True)
        write_results(name, {**about, "orders": compared}, rows, began)


if __name__ == "__main__":
    main()
