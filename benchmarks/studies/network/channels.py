"""What hidden channels are worth at shares of a network's operations, beside low rank and torch-pruning.

    python -m benchmarks.studies.network.channels MODEL DATA --synsets FILE --operations 0.9 --operations 0.8
    python -m benchmarks.studies.network.channels MODEL DATA --input-size 64 --train TRAIN --operations 0.5

Some images are fitted on; function norm and top-1 are on others. Widths and ranks are multiples of the same number, and
operations are equal within one per cent where that can be. Every network is evaluated as cut, and again after what
needs no training: refits of hidden channels, reconstruction of low rank, new batch-norm statistics for torch-pruning.
With --train the better of the two, on check images, is fine-tuned towards the original's outputs. With --orders the
single-group losses of three orders are compared as well: by elimination, by pivoted QR of the channels' values, and by
norm.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks.studies.network.channel_allocation import Curve, allocate, measure_curve
from benchmarks.studies.network.channel_orders import by_norm, by_pivoted_qr
from benchmarks.studies.network.criteria import CRITERIA, SCOPES, TorchPruning, with_new_statistics
from benchmarks.studies.network.low_rank import LowRank
from benchmarks.studies.study import earlier_rows, write_results
from compressor.channels.costs import ChannelCosts
from compressor.channels.elimination import Elimination
from compressor.channels.factors import ChannelFactors, regularized
from compressor.channels.grouping import find_groups
from compressor.channels.reduction import Reduction
from compressor.channels.statistics import ReaderMoments, reader_moments
from compressor.cost.size import count_params
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.transforms import Transform
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.attention import open_attention
from compressor.network.calibration.gradients import OutputGradients
from compressor.network.checkpoint import load_model
from compressor.network.macs import count_macs
from compressor.network.surgery import build_candidate
from compressor.recovery.finetuning import FineTuning
from compressor.recovery.settings import TuneSettings

CPU = torch.device("cpu")
NUM_CHECK = 32  # of the images to fit on
NUM_TRAIN_CHECK = 200  # of the training images, at most a fifth
ORDER_SHARE = 0.7  # of a group's units, at which orders are compared

Networks = tuple[nn.Module, nn.Module]
"""A network as it is cut, and after what needs no training."""


@dataclass(frozen=True)
class Way:
    """A way to make a network smaller.

    Attributes:
        name: of the way.
        criterion: torch-pruning's, else empty.
        scope: the channels that torch-pruning may remove, else empty.
    """

    name: str
    criterion: str = ""
    scope: str = ""


@dataclass(frozen=True)
class Tuning:
    """How networks are fine-tuned.

    Attributes:
        images: to train on; up to NUM_TRAIN_CHECK of them decide which epoch is kept.
        shares: of the operations, at which networks are.
        epochs: of training.
    """

    images: ImageSet
    shares: Sequence[float]
    epochs: int


HIDDEN, LOW_RANK = Way("hidden channels"), Way("low rank")
WAYS = (HIDDEN, LOW_RANK, *(Way("torch-pruning", criterion, scope) for scope in SCOPES for criterion in CRITERIA))


class Study:
    """One network with its images.

    Args:
        model: the network, in eval mode.
        fit: images to fit on, of which the last NUM_CHECK decide on every step.
        test: images to evaluate on.
        multiple: of all widths and ranks.
    """

    def __init__(self, model: nn.Module, fit: ImageSet, test: ImageSet, multiple: int) -> None:
        self.model, self.multiple, self.all_to_fit = model, multiple, fit
        self.fit, self.check = (
            fit.subset(range(len(fit) - NUM_CHECK)),
            fit.subset(range(len(fit) - NUM_CHECK, len(fit))),
        )
        example = fit.batch([0])
        self.groups = find_groups(model, example)
        self.costs = ChannelCosts(model, self.groups, example)
        self.check_norm, self.test_norm = FunctionNorm(model, self.check, CPU), FunctionNorm(model, test, CPU)
        self.labels = test.labels

    @cached_property
    def moments(self) -> dict[str, ReaderMoments]:
        """Of the groups' readers."""
        readers = {name: group.num_units for group in self.groups for name in group.reader_names}
        return reader_moments(OutputGradients(self.model, self.fit, CPU, 0), readers)

    @cached_property
    def factors(self) -> list[ChannelFactors]:
        """Of the groups."""
        return [self._factors(number) for number in range(len(self.groups))]

    @cached_property
    def curves(self) -> list[Curve]:
        """Of the groups."""
        return [measure_curve(self.model, factors, self.loss, self.multiple) for factors in self.factors]

    @cached_property
    def low_rank(self) -> LowRank:
        """Factors of all layers."""
        return LowRank(self.model, self.fit, self.check_norm, self.multiple)

    @cached_property
    def torch_pruning(self) -> TorchPruning:
        """What torch-pruning makes of the network."""
        return TorchPruning(self.model, self.groups, self.all_to_fit, self.multiple)

    def _factors(self, number: int, order: Elimination | None = None) -> ChannelFactors:
        group = self.groups[number]
        layers: dict[str, Any] = {name: self.model.get_submodule(name) for name in group.reader_names}
        return ChannelFactors(group, layers, self.moments, order)

    def loss(self, network: nn.Module) -> float:
        """The function norm on the check images."""
        return self.check_norm.losses(network, np.arange(NUM_CHECK)).mean

    def networks(self, way: Way, share: float) -> Networks | None:
        """The networks at a share of the operations; None where the way gets no network so small."""
        if way == LOW_RANK:
            return self.low_rank.networks(share)
        if way == HIDDEN:
            return self._narrowed(share)
        network = self.torch_pruning.network(way.criterion, way.scope, share)
        return None if network is None else (network, with_new_statistics(network, self.all_to_fit))

    def _narrowed(self, share: float) -> Networks | None:
        limit = share * self.costs.macs(self.costs.num_units)
        if self.costs.macs([int(curve.widths[0]) for curve in self.curves]) > limit:
            return None
        widths = allocate(self.curves, self.costs, limit)
        reduction = Reduction(self.model, self.factors, self.fit, self.check_norm, CPU)
        return reduction.start(widths), reduction.run(widths)

    def row(self, way: Way, share: float, networks: Networks) -> dict[str, Any]:
        """The figures of a way's networks, as cut and fitted."""
        cut, fitted = networks
        macs, _ = count_macs(fitted, self.fit.batch([0]))
        return {
            "way": way.name,
            "criterion": way.criterion,
            "scope": way.scope,
            "share": share,
            "operations": macs / self.costs.macs(self.costs.num_units),
            "params": count_params(fitted) / count_params(self.model),
            "widths": self._widths(fitted) if way != LOW_RANK else {},
            "cut": self.evaluate(cut),
            "fitted": self.evaluate(fitted),
        }

    def _widths(self, network: nn.Module) -> dict[str, int]:
        """Channels of the groups' first producers."""
        layers: dict[str, Any] = {group.name: network.get_submodule(group.producers[0]) for group in self.groups}
        return {name: len(layer.weight) for name, layer in layers.items()}

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Function norm and, with labels, top-1 on the images to evaluate on."""
        every = torch.arange(len(self.test_norm.images))
        outputs = self.test_norm.outputs(network, every)
        squares = self.test_norm.compare(outputs, every)
        found = {"function_norm": float(squares.mean()), "stderr": float(squares.std(ddof=1) / len(squares) ** 0.5)}
        if self.labels is not None:
            found["top1"] = float((outputs.argmax(1) == self.labels).double().mean())
        return found

    def tune(self, networks: Networks, tuning: Tuning) -> dict[str, Any]:
        """The better network on the check images, fine-tuned towards the original's outputs, and its figures."""
        start = min(networks, key=self.loss)
        check, train = tuning.images.split(min(NUM_TRAIN_CHECK, len(tuning.images) // 5), seed=0)
        settings = TuneSettings(epochs=tuning.epochs, patience=tuning.epochs)
        network, record = FineTuning(start, self.model, train, check, settings, CPU).run()
        return {
            "start": "cut" if start is networks[0] else "fitted",
            "kept_epoch": record.kept_epoch,
            "learning_rate": record.learning_rate,
            "seconds": round(record.seconds, 1),
            **self.evaluate(network),
        }

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
            by_order = {key: self._factors(number, order) if order else factors for key, order in orders.items()}
            losses = {
                key: self.loss(build_candidate(self.model, {name: one}, {name: width})) for key, one in by_order.items()
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


def key(row: dict[str, Any]) -> tuple[float, Way]:
    """The share of the operations and the way that a row is of."""
    return row["share"], Way(row["way"], row["criterion"], row["scope"])


def missing(
    rows: Sequence[dict[str, Any]], operations: Sequence[float], tuned: Sequence[float] = ()
) -> Iterator[tuple[float, Way]]:
    """The shares of the operations and ways that have no row yet, or none that is fine-tuned where one should be."""
    known = {key(row) for row in rows if "tuned" in row or "operations" not in row or row["share"] not in tuned}
    for way in WAYS:
        yield from ((share, way) for share in operations if (share, way) not in known)


def run(study: Study, wanted: Sequence[tuple[float, Way]], tuning: Tuning | None) -> Iterator[dict[str, Any]]:
    """A row for every way at every share; where a way gets no network so small, one that says so."""
    for share, way in wanted:
        began = time.perf_counter()
        networks = study.networks(way, share)
        if networks is None:
            yield {"way": way.name, "criterion": way.criterion, "scope": way.scope, "share": share}
            continue
        row = study.row(way, share, networks)
        if tuning is not None and share in tuning.shares:
            row["tuned"] = study.tune(networks, tuning)
        yield {**row, "seconds": round(time.perf_counter() - began, 1)}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--arch", default=None, help="Architecture of MODEL, if it is not to be recognized.")
@click.option("--input-size", type=int, help="Side of the squares that images are resized to; none: as published.")
@click.option("--synsets", type=click.Path(path_type=Path), default=None, help="Names of the classes, one per line.")
@click.option("--operations", type=float, multiple=True, default=(0.9, 0.8, 0.7), help="Shares of the operations.")
@click.option("--multiple", default=8, help="Widths and ranks are multiples of it.")
@click.option("--images", "num_images", default=500, help="Of DATA.")
@click.option("--fit", "num_fit", default=250, help="Of them to fit on; the others are evaluated on.")
@click.option(
    "--train", type=click.Path(path_type=Path), default=None, help="Images to fine-tune on; none: no training."
)
@click.option("--train-images", default=4000, help="Of TRAIN.")
@click.option("--tune-at", type=float, multiple=True, help="Shares at which networks are fine-tuned; none: all.")
@click.option("--epochs", default=5, help="Of fine-tuning.")
@click.option("--orders", is_flag=True, help="Compare orders, too.")
@click.option("--add", is_flag=True, help="Keep the rows that the results file holds already.")
@click.option("--name", default="channels", help="Of the results file.")
def main(
    model: Path,
    data: Path,
    arch: str | None,
    input_size: int | None,
    synsets: Path | None,
    operations: tuple[float, ...],
    multiple: int,
    num_images: int,
    num_fit: int,
    train: Path | None,
    train_images: int,
    tune_at: tuple[float, ...],
    epochs: int,
    orders: bool,
    add: bool,
    name: str,
) -> None:
    """Networks of MODEL at shares of its operations, evaluated on images of DATA."""
    began = time.perf_counter()
    loaded = load_model(model, arch=arch)
    transform = loaded.transform
    if input_size:
        transform = Transform(input_size, input_size, transform.mean, transform.std)
    images = load_folder(data, transform, num_images, seed=0, num_classes=loaded.num_classes)
    images = numbered(images, synsets)
    training = None if train is None else load_folder(train, transform, train_images, seed=0)
    network = open_attention(loaded.model, images.batch([0]))
    study = Study(network, images.subset(range(num_fit)), images.subset(range(num_fit, len(images))), multiple)
    about = {
        "network": loaded.arch,
        "fit_on": num_fit,
        "evaluated_on": len(images) - num_fit,
        "train_images": 0 if training is None else len(training),
        "epochs": epochs,
        "multiple": multiple,
        "macs": count_macs(network, images.batch([0]))[0],
        "output_energy": study.test_norm.output_energy,
        "top1_original": study.evaluate(network).get("top1"),
        "torch_pruning": version("torch-pruning"),
        "orders": study.orders() if orders else [],
    }
    rows, began = earlier_rows(name, add, began)
    tuning = Tuning(training, tune_at or operations, epochs) if training else None
    wanted = list(missing(rows, operations, tuning.shares if tuning else ()))
    for row in run(study, wanted, tuning):
        rows = [*(earlier for earlier in rows if key(earlier) != key(row)), row]
        click.echo(row, err=True)
        write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
