"""What a search is given: the space, the objective, and how losses are found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.linear_model import Linearize
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.search.expected_gain import ExpectedGain
from compressor.search.objective import Objective
from compressor.search.space import RankSpace

Evaluate = Callable[[Ranks, np.ndarray], Losses]


@dataclass(frozen=True)
class SearchProblem:
    """The ranks that are searched and what is known of them.

    Attributes:
        space: the ranks.
        objective: J; where there is a target, its gamma does not matter.
        evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
        num_images: size of the pool that the indices point into.
        noise_spec: how the losses behave; by default as those of the function norm.
        linearize: the linear model around a plan; None where losses are all there is.
        gain: what reconstruction is expected to leave of the losses found; J is of that.
        energies: per layer the share of the weight's squared norm that is lost at ranks 1..break-even rank; needed
            where the settings ask for a prior mean made of them.
    """

    space: RankSpace
    objective: Objective
    evaluate: Evaluate
    num_images: int
    noise_spec: NoiseSpecification = field(default_factory=NoiseSpecification)
    linearize: Linearize | None = None
    gain: ExpectedGain = field(default_factory=ExpectedGain)
    energies: Sequence[Array] = ()
