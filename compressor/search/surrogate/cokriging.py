"""A prior mean of another loss from the function norm that the same evaluations found.

A risk is observed with far more noise than the function norm, which every evaluation yields too. So the norm is
modelled first, by a log-normal surrogate of its own, and its posterior mean is the prior mean of L: the process on the
risk has only the departures from it to model (co-kriging; Kennedy and O'Hagan 2000, "Predicting the output from a
complex computer code when fast approximations are available").
"""

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses
from compressor.fidelity.noise import NoiseModel
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate import gp
from compressor.search.surrogate.base import ExpectedLoss
from compressor.search.surrogate.lognormal import LognormalSurrogate


class NormModel:
    """A Gaussian process on the logarithm of the function norm: `add` every evaluation, then `predict`.

    Args:
        space: the ranks that are searched.
        num_images: size of the pool that evaluations sample from.
    """

    def __init__(self, space: RankSpace, num_images: int) -> None:
        self._space = space
        self._noise = NoiseModel(num_images)
        self._expected: ExpectedLoss | None = None
        self._saturation = np.inf
        self._hyper: gp.Hyperparameters | None = None
        self._fitted_at = 0

    def begin(self, expected: ExpectedLoss, saturation: float) -> None:
        """Set the prior mean: the norm `expected` by single-layer sensitivities, and the largest norm measured."""
        self._expected, self._saturation = expected, saturation

    def add(self, losses: Losses) -> None:
        """Add an evaluation to the noise model."""
        self._noise.add(Losses(losses.indices, losses.distances))

    def predict(self, ranks: Ranks, function_norms: Array, per_norm: float, objective: Objective) -> ExpectedLoss:
        """L as a function of ranks (..., d): `per_norm` times the posterior mean of the function norm.

        Args:
            ranks: of all evaluations (n, d).
            function_norms: what these found (n,).
            per_norm: L at a function norm of 1.
            objective: its gamma sets which differences of L matter.
        """
        norm_objective = Objective(per_norm * objective.gamma, objective.form)
        surrogate = LognormalSurrogate(self._space, norm_objective, self._expected, self._saturation)
        targets = surrogate.targets(ranks, function_norms, self._noise.covariance(function_norms))
        thetas = self._space.encode(ranks)
        if self._hyper is None or len(ranks) >= gp.REFIT_GROWTH * self._fitted_at:
            self._hyper = gp.fit(thetas, targets.values, targets.noise, self._hyper, restarts=1 if self._hyper else 2)
            self._fitted_at = len(ranks)
        process = gp.GaussianProcess(thetas, targets.values, targets.noise, self._hyper)

        def expected(points: Ranks) -> Array:
            flat = points.reshape(-1, points.shape[-1])
            latent = process.mean_single(self._space.encode(flat)) + surrogate.prior_mean(flat)
            return per_norm * np.maximum(np.exp(latent) - surrogate.offset, 0.0).reshape(points.shape[:-1])

        return expected
