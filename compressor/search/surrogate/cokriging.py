"""What the function norm of any plan is expected to be, from looks made for another loss.

A risk is seen through far more noise than the function norm, which every look tells as well. So the norm is modelled
first, by the log surrogate on its own, and L expected where the norm is: the risk's process is left with what departs
from that (co-kriging; Kennedy and O'Hagan 2000, "Predicting the output from a complex computer code when fast
approximations are available").
"""

from collections.abc import Callable

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.fidelity.losses import Losses
from compressor.fidelity.noise import NoiseModel
from compressor.search.objective import Objective
from compressor.search.space import RankSpace
from compressor.search.surrogate import gp
from compressor.search.surrogate.lognormal import LognormalSurrogate

REFIT_GROWTH = 1.1  # hyperparameters are fitted again when there are this many times as many looks


class NormModel:
    """A Gaussian process on the logarithm of the function norm; `add` every look, `predict` when asked."""

    def __init__(self, space: RankSpace, num_images: int) -> None:
        self._space = space
        self._noise = NoiseModel(num_images)
        self._expected: Callable[[Ranks], Array] | None = None
        self._saturation = np.inf
        self._hyper: gp.Hyperparameters | None = None
        self._fitted_at = 0

    def begin(self, expected: Callable[[Ranks], Array], saturation: float) -> None:
        """What single layers log of the function norm of ranks (..., d), and the largest seen along the curve."""
        self._expected, self._saturation = expected, saturation

    def add(self, losses: Losses) -> None:
        """One more look."""
        self._noise.add(Losses(losses.indices, losses.distances))

    def predict(
        self, ranks: Ranks, function_norms: Array, per_norm: float, objective: Objective
    ) -> Callable[[Ranks], Array]:
        """Expected L (...,) at any ranks (..., d): `per_norm` times the function norm that is expected there.

        Args:
            ranks: of all looks (n, d); `function_norms` (n,) are what they found.
            objective: says which differences of L are of interest.
        """
        norm_objective = Objective(per_norm * objective.gamma, objective.form)
        surrogate = LognormalSurrogate(self._space, norm_objective, self._expected, self._saturation)
        targets = surrogate.targets(ranks, function_norms, self._noise.covariance(function_norms))
        thetas = self._space.encode(ranks)
        if self._hyper is None or len(ranks) >= REFIT_GROWTH * self._fitted_at:
            self._hyper = gp.fit(thetas, targets.values, targets.noise, self._hyper, restarts=1 if self._hyper else 2)
            self._fitted_at = len(ranks)
        process = gp.GaussianProcess(thetas, targets.values, targets.noise, self._hyper)

        def expected(points: Ranks) -> Array:
            flat = points.reshape(-1, points.shape[-1])
            latent = process.mean_single(self._space.encode(flat)) + surrogate.prior_mean(flat)
            return per_norm * np.maximum(np.exp(latent) - surrogate.offset, 0.0).reshape(points.shape[:-1])

        return expected
