"""The problem of one network: its layers with the weights' own factors, and the losses of plans on some images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.datasets.fashion import FC3, load_test_images, trained_fc3
from benchmarks.studies.loading import load_squares
from benchmarks.studies.search.baselines.problem import Problem
from compressor.arrays import Array, Ranks
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.factorization.base import Factors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.fidelity.losses import Losses
from compressor.network.attention import open_attention
from compressor.network.layers import FoundLayer, compressible, factorized_ranks, find_layers
from compressor.network.surgery import build_candidate
from compressor.pipeline.stages.factorize import energies_of, weight_factors
from compressor.search.objective import Objective
from compressor.search.space import RankSpace

POOL_IMAGES = 500  # as many as bocompress searches on
CURVE_IMAGES = 500  # of the test images, for incumbents before the last


@dataclass(frozen=True)
class Network:
    """A network decomposed once, with the images of the search (`pool`) and test images."""

    name: str
    model: nn.Module
    layers: list[FoundLayer]
    factors: dict[str, Factors]
    pool: ImageSet
    test_images: ImageSet
    device: torch.device

    def plans(self, images: ImageSet) -> "Plans":
        """Losses of plans on these images."""
        return Plans(self, FunctionNorm(self.model, images, self.device))

    def problem(self, plans: "Plans", gamma: float, samples: int) -> Problem:
        """The problem that the searches are given."""
        return Problem(
            [layer.name for layer in self.layers],
            [layer.params_by_rank() for layer in self.layers],
            Objective(gamma),
            plans.values,
            len(self.pool),
            [energies_of(layer, self.factors[layer.name]) for layer in self.layers],
            samples,
            Linearizer(plans.norm, self.model, self.layers, self.factors),
        )


@dataclass
class Plans:
    """Per-image losses of plans, each computed once for all searches and seeds.

    A loss depends on the image and the ranks alone (up to float32 rounding, which varies with the batch).
    """

    network: Network
    norm: FunctionNorm
    run_seconds: float = 0.0
    run_passes: int = 0
    _known: dict[bytes, Array] = field(default_factory=dict)

    def values(self, ranks: Ranks, indices: NDArray[np.int64]) -> Array:
        """Losses (m,) of the plan (d,) on the images `indices` (m,)."""
        known = self._known.setdefault(ranks.tobytes(), np.full(len(self.norm.images), np.nan))
        missing = np.unique(indices[np.isnan(known[indices])])
        if len(missing):
            began = time.process_time()
            kept = factorized_ranks(self.network.layers, ranks)
            candidate = build_candidate(self.network.model, self.network.factors, kept)
            known[missing] = self.norm.losses(candidate, missing).values
            self.run_seconds += time.process_time() - began
            self.run_passes += len(missing)
        return known[indices]

    @property
    def seconds_per_pass(self) -> float:
        """Mean time of an image pass, building the candidate included."""
        return self.run_seconds / max(1, self.run_passes)


class PlanEvaluator:
    """J of any plan on all test images."""

    def __init__(self, plans: Plans, problem: Problem) -> None:
        self.plans = plans
        self._space: RankSpace = problem.space
        self._objective = problem.objective
        self._every = np.arange(len(plans.norm.images))

    def losses(self, ranks: Ranks) -> Losses:
        """Losses of the plan (d,) on all test images."""
        return Losses(self._every, self.plans.values(ranks, self._every))

    def ratio(self, ranks: Ranks) -> float:
        """R of the plan."""
        return float(self._space.ratio(ranks[None])[0])

    def objective(self, ranks: Ranks) -> float:
        """J of the plan."""
        return self._value(ranks, self.losses(ranks))

    def losses_roughly(self, ranks: Ranks) -> Losses:
        """Losses of the plan (d,) on the first CURVE_IMAGES test images."""
        some = self._every[:CURVE_IMAGES]
        return Losses(some, self.plans.values(ranks, some))

    def objective_roughly(self, ranks: Ranks) -> float:
        """J of the plan on these."""
        return self._value(ranks, self.losses_roughly(ranks))

    def _value(self, ranks: Ranks, losses: Losses) -> float:
        return float(self._objective.value(np.array(losses.mean), np.array(self.ratio(ranks))))

    def advantage(self, ranks: Ranks, other: Ranks) -> tuple[float, float]:
        """By how much J of `ranks` exceeds that of `other`, and the standard error of this over the same images."""
        differences = self._objective.gamma * (self.losses(other).values - self.losses(ranks).values)
        stderr = float(differences.std(ddof=1) / np.sqrt(len(differences)))
        return self.objective(ranks) - self.objective(other), stderr


def load_network(
    model: str,
    data: Path | None,
    input_size: int | None,
    patterns: Sequence[str],
    num_test: int,
    device: torch.device,
    num_divided: int | None = None,
) -> Network:
    """A checkpoint with a folder of images, or FC3 on Fashion-MNIST where `model` is "fc3".

    Args:
        patterns: name patterns of the layers to compress.
        num_test: test images, at most: half of those that are divided first, then what the pool leaves.
        device: where plans are evaluated.
        num_divided: images that are divided first, in a random order; the others are test images if more are wanted.
            None divides all that are loaded.

    Raises:
        InputError: a checkpoint without `data` or `input_size`, or no Fashion-MNIST.
    """
    if model == FC3:
        name, network = "FC3 (784-1000-1000-10) on Fashion-MNIST", trained_fc3()
        images = load_test_images()
    elif data is None or input_size is None:
        raise InputError(f'{model} needs DATA and --input-size (only "{FC3}" brings its own)')
    else:
        loaded, images, _ = load_squares(Path(model), data, input_size, num_test + POOL_IMAGES)
        name, network = loaded.arch, loaded.model
    pool, test_images = divide(images, num_test, min(num_divided or len(images), len(images)))
    opened = open_attention(network.eval().requires_grad_(False).to(device), pool.batch([0]).to(device))
    layers = compressible(find_layers(opened, pool.batch([0]).to(device), include=patterns))
    factors = {layer.name: weight_factors(layer) for layer in layers}
    return Network(name, opened, layers, factors, pool, test_images, device)


def divide(images: ImageSet, num_test: int, num_divided: int) -> tuple[ImageSet, ImageSet]:
    """The pool and up to `num_test` test images, chosen as `load_network` says."""
    order = torch.randperm(num_divided, generator=torch.Generator().manual_seed(0))
    half = min(num_test, num_divided // 2)
    pool, left = order[half : half + POOL_IMAGES], order[half + POOL_IMAGES :]
    rest = torch.cat([order[:half], left, torch.arange(num_divided, len(images))])
    return images.subset(pool), images.subset(rest[:num_test])


def gamma_of(plans: Plans, gamma: float | None, factor: float) -> float:
    """`gamma`, or where it is None, that at which losing the whole output costs `factor` times the whole size."""
    return factor / plans.norm.output_energy if gamma is None else gamma
