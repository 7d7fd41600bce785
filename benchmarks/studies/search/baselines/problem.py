"""What all searches share: the same plans, objective and images, and one count of image passes.

A search is a function of an `Attempt`. It evaluates plans through it, one pass per image and plan, until the budget is
spent, and yields (image passes so far, ranks (d,) of its incumbent) whenever the incumbent changes. The first incumbent
is the dense network, whose J = -1 is known without an evaluation.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize, LinearModel
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.fidelity.noise import ImageSampler
from compressor.search.dimension import Coordinates
from compressor.search.objective import Objective
from compressor.search.space import RankSpace

POOL_STREAM = 11  # keeps the order of the pool apart from the searches' own random streams
DENSE_OBJECTIVE = -1.0  # of the dense network in the form -gamma L - R: L = 0, R = 1


class OutOfBudget(Exception):
    """The next evaluation would cost more image passes than are left."""


@dataclass(frozen=True)
class Problem:
    """Ranks to be chosen for one network.

    Attributes:
        names, params_by_rank: as `RankSpace` takes them.
        objective: J, to be maximized.
        losses: per-image losses (m,) of the plan with ranks (d,) on the images with indices (m,); of a risk with its
            squared distances beside them.
        num_images: size of the pool that the indices point into.
        energies: for every layer the share of the weight's squared norm that each rank discards (break-even rank,).
        samples: images per evaluation of a plan.
        linearize: the linear model around a plan, where there is a network.
        noise_spec: how the noise of losses depends on the function norm.
    """

    names: list[str]
    params_by_rank: list[list[int]]
    objective: Objective
    losses: Callable[[Ranks, NDArray[np.int64]], Array | Losses]
    num_images: int
    energies: list[Array]
    samples: int = 50
    linearize: Linearize | None = None
    noise_spec: NoiseSpecification = field(default_factory=NoiseSpecification)

    @cached_property
    def space(self) -> RankSpace:
        """The lattice of plans, on the log scale."""
        return self.space_in("log")

    def space_in(self, coordinates: Coordinates) -> RankSpace:
        """The same lattice on the given scale."""
        return RankSpace(self.names, self.params_by_rank, coordinates)


@dataclass
class Attempt:
    """One run of a search: its budget and its count of image passes.

    The seed shuffles the pool, so that the first images of it differ between seeds.
    """

    problem: Problem
    budget: int
    seed: int
    passes: int = 0
    evaluations: int = 0
    evaluation_seconds: float = 0.0
    stopped_because: str = ""
    certificate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order = np.random.default_rng([self.seed, POOL_STREAM]).permutation(self.problem.num_images)
        self._sampler = ImageSampler(self.problem.num_images, self.problem.samples, self.seed)
        self._draws = 0

    @property
    def space(self) -> RankSpace:
        """The problem's lattice."""
        return self.problem.space

    @property
    def left(self) -> int:
        """Image passes left."""
        return self.budget - self.passes

    def evaluate(self, ranks: Ranks, indices: NDArray[np.int64]) -> Losses:
        """Losses of a plan (d,) on the images with these indices (m,) of the pool, counted.

        Raises:
            OutOfBudget: fewer than m passes are left.
        """
        if len(indices) > self.left:
            raise OutOfBudget
        began = time.process_time()
        found = self.problem.losses(ranks, self._order[indices])
        self.evaluation_seconds += time.process_time() - began
        self.passes += len(indices)
        self.evaluations += 1
        return replace(found, indices=indices) if isinstance(found, Losses) else Losses(indices, found)

    def linearize(
        self, ranks: Ranks, others: Sequence[Sequence[int]], indices: NDArray[np.int64], directions: int
    ) -> LinearModel:
        """The linear model around a plan (d,) on these images of the pool, counted.

        Raises:
            OutOfBudget: it took more passes than are left.
        """
        assert self.problem.linearize is not None
        began = time.process_time()
        model = self.problem.linearize(ranks, others, self._order[indices], directions)
        self.evaluation_seconds += time.process_time() - began
        if model.passes > self.left:
            raise OutOfBudget
        self.passes += model.passes
        return model

    def draw(self) -> NDArray[np.int64]:
        """The next images (samples,), none twice before the whole pool was drawn."""
        self._draws += 1
        return self._sampler.draw(self._draws - 1)

    def draw_unseen(self, seen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Images for another evaluation of a plan, without those `seen`; empty where there are none."""
        self._draws += 1
        return self._sampler.draw_unseen(self._draws - 1, seen.tolist())

    def observe(self, ranks: Ranks) -> tuple[float, float]:
        """J of a plan (d,) on the next images, and the variance of that estimate."""
        losses = self.evaluate(ranks, self.draw())
        return self.value(ranks, losses.mean), self.problem.objective.gamma**2 * losses.variance

    def value(self, ranks: Ranks, function_norm: float) -> float:
        """J of a plan (d,) whose L is `function_norm`."""
        return float(self.problem.objective.value(np.array(function_norm), self.space.ratio(ranks[None])[0]))


Step = tuple[int, Ranks]
Run = Callable[[Attempt], Iterator[Step]]


@dataclass
class BestObserved:
    """The best evaluation so far, whose plan is the incumbent of a search that does not model noise."""

    attempt: Attempt
    objective: float = DENSE_OBJECTIVE

    def is_beaten_by(self, ranks: Ranks, objective: float) -> Iterator[Step]:
        """A step where this evaluation is the best so far."""
        if objective > self.objective:
            self.objective = objective
            yield self.attempt.passes, ranks
