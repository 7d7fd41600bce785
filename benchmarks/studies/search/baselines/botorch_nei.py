"""BoTorch: a Gaussian process with the known variance of every evaluation, and noisy expected improvement.

`SingleTaskGP` with `train_Yvar` and its default priors, `qLogNoisyExpectedImprovement`, q = 1, on the log scale in
[0, 1]^d; a proposal is rounded to the nearest ranks before it is evaluated. The incumbent is the evaluated plan of
highest posterior mean.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.studies.search.baselines.problem import DENSE_OBJECTIVE, Attempt, Step
from compressor.arrays import Array, Ranks

NUM_RESTARTS, NUM_RAW = 4, 128
MIN_VARIANCE = 1e-12
MAX_START = 0.25  # share of the budget that the Sobol points may take


def noisy_expected_improvement(attempt: Attempt) -> Iterator[Step]:
    """2 (d + 1) Sobol points, then one proposal at a time."""
    from torch.quasirandom import SobolEngine

    space = attempt.space
    most = int(MAX_START * attempt.budget / attempt.problem.samples)
    num_start = max(2, min(2 * (space.num_dims + 1), most))
    thetas = SobolEngine(space.num_dims, scramble=True, seed=attempt.seed).draw(num_start).double().numpy()
    visited: list[Ranks] = []
    values: list[tuple[float, float]] = []
    for ranks in space.decode(thetas):
        visited.append(ranks)
        values.append(attempt.observe(ranks))
    incumbent = space.break_even_ranks
    while True:
        points = np.array(visited)
        model = _fit(space.encode(points), np.array(values))
        means = _posterior_means(model, space.encode(points))
        best = points[int(np.argmax(means))]
        if means.max() > DENSE_OBJECTIVE and not np.array_equal(best, incumbent):
            incumbent = best
            yield attempt.passes, best
        proposal = _propose(model, space.encode(points), seed=[attempt.seed, len(visited)])
        visited.append(space.decode(proposal[None])[0])
        values.append(attempt.observe(visited[-1]))


def _fit(thetas: Array, values: Array) -> Any:
    """The maximum a posteriori process, from thetas (n, d) and pairs of J and its variance (n, 2)."""
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    objectives, variances = (torch.from_numpy(column.copy())[:, None] for column in values.T)
    model = SingleTaskGP(
        torch.from_numpy(thetas), objectives, variances.clamp_min(MIN_VARIANCE), outcome_transform=Standardize(1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimizers that end at their iteration limit
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def _posterior_means(model: Any, thetas: Array) -> Array:
    """Posterior means of J (n,) at thetas (n, d)."""
    import torch

    with torch.no_grad():
        return np.asarray(model.posterior(torch.from_numpy(thetas)).mean[:, 0].numpy())


def _propose(model: Any, thetas: Array, seed: list[int]) -> Array:
    """The point (d,) of highest acquisition value found."""
    import torch
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.optim import optimize_acqf

    bounds = torch.tensor([[0.0], [1.0]], dtype=torch.double).expand(2, thetas.shape[1])
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**31)))
        acquisition = qLogNoisyExpectedImprovement(model, torch.from_numpy(thetas), prune_baseline=True)
        point, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=NUM_RESTARTS, raw_samples=NUM_RAW)
    return np.asarray(point[0].numpy())
