"""Fits the surrogate to the evaluations so far: its prior mean, its hyperparameters, and the posterior over J."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compressor.arrays import Array, Ranks
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.history import INITIAL, Evaluation
from compressor.search.evaluation.journal import StepRow
from compressor.search.surrogate import gp
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, around_plan, loss_per_norm, sum_of
from compressor.search.surrogate.base import ExpectedLoss, Surrogate, Targets
from compressor.search.surrogate.energy_prior import EnergyPrior
from compressor.search.surrogate.gaussian import LossSurrogate
from compressor.search.surrogate.lognormal import LognormalSurrogate
from compressor.search.surrogate.objective import ObjectiveSurrogate
from compressor.search.surrogate.posterior import Posterior

RESTART_GROWTH = 1.5  # likewise from fixed starting points beside the last fit
# With a prior mean around a plan, the process learns from evaluations of the initial design whose function norm is
# within this factor of the plan's, and from the nearest few in any case.
MAX_NORM_FACTOR, MIN_EVALUATIONS = 4.0, 5
# Limits of the fit where the prior mean is that around a plan. On ResNet-18 L departs from the linear model's by 0.15
# to 0.2 in its logarithm, and the noise of one evaluation is 0.1 to 0.15.
LOCAL_LIMITS = gp.Limits(least_signal=2.0)
# Likewise where the prior mean of a risk comes from the function norm: departures exist even where noise hides them,
# and those of mild plans, which are known well, are no guide to others.
RISK_LIMITS = gp.Limits(least_signal=0.1, longest=1.0)


class SurrogateFitter:
    """The surrogate of one search, fitted again as evaluations are added.

    Args:
        evaluator: holds the evaluations, the objective and the settings.
        energy_prior: the prior mean from truncated energies, where the settings ask for it.

    Attributes:
        seconds: spent within `timed`.
    """

    def __init__(self, evaluator: Evaluator, energy_prior: EnergyPrior | None = None) -> None:
        self._evaluator = evaluator
        self._energy_prior = energy_prior
        self.seconds = 0.0
        # Function norm, before reconstruction, of the plan around which the prior mean was found
        self._local_norm: float | None = None
        self._saturation = np.inf
        self._surrogate = self._make_surrogate(None)
        self._hyper: gp.Hyperparameters | None = None
        self._fitted_at = 0
        self._restarted_at = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time spent within to `seconds`."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def use_single_layer_prior(self, sensitivities: list[Array] | None, saturation: float = np.inf) -> None:
        """Take the sum of single-layer sensitivities for the prior mean of L.

        Args:
            sensitivities: per layer, L with that layer alone compressed, at ranks 1, 2, ...; None if not measured.
            saturation: the largest loss measured.
        """
        self._saturation = saturation
        if self._energy_prior is not None and sensitivities is not None:
            self._energy_prior.initialize(sensitivities)
        is_measured = self._evaluator.settings.prior_mean == "measured"
        expected = sum_of(sensitivities) if sensitivities is not None and is_measured else None
        self._surrogate = self._make_surrogate(expected and self._delivered(expected))

    def use_local_prior(self, plan: Ranks, step: StepRow, sensitivities: list[Array], saturation: float) -> None:
        """Take the linear model around a plan for the prior mean of L, where the settings ask for a measured one.

        Args:
            plan: ranks (d,).
            step: the model's function norms of the plan and of plans that differ from it in one layer.
            sensitivities: per layer, L with that layer alone compressed, at ranks 1, 2, ...
            saturation: the largest loss measured.
        """
        settings = self._evaluator.settings
        if settings.prior_mean == "measured" and settings.surrogate != "objective":
            self._local_norm = step.norm
            self._hyper, self._restarted_at = None, 0
            self._saturation = saturation
            expected = around_plan(plan, step.norm, step.single_layer_norms, sensitivities)
            self._surrogate = self._make_surrogate(self._delivered(expected))

    @property
    def is_fitted_to_all(self) -> bool:
        """Whether hyperparameters were fitted from fixed starting points to all evaluations so far."""
        return self._restarted_at == len(self._informative_evaluations())

    def forget_hyperparameters(self) -> None:
        """Have them fitted from fixed starting points for the next posterior."""
        self._hyper, self._restarted_at = None, 0

    def _delivered(self, expected: ExpectedLoss) -> ExpectedLoss:
        """A prior mean of L as reconstruction is expected to leave it."""
        return lambda ranks: self._evaluator.gain.delivered(expected(ranks))

    def _make_surrogate(self, expected: ExpectedLoss | None) -> Surrogate:
        space, objective, noise_spec = self._evaluator.space, self._evaluator.objective, self._evaluator.noise_spec
        kind = self._evaluator.settings.surrogate
        if kind == "log":
            return LognormalSurrogate(space, objective, expected, self._saturation, noise_spec.floor)
        return (LossSurrogate if kind == "loss" else ObjectiveSurrogate)(space, objective, expected, self._saturation)

    def update_objective(self) -> None:
        """Take over the evaluator's objective after gamma has changed."""
        self._surrogate.objective = self._evaluator.objective
        if isinstance(self._surrogate, LossSurrogate):
            self.forget_hyperparameters()  # its targets scale with gamma

    def posterior(self) -> Posterior:
        """The posterior given all evaluations so far; hyperparameters are fitted again where enough are new."""
        evaluator, history, informative = self._evaluator, self._evaluator.history, self._informative_evaluations()
        ranks, function_norms = np.array(history.ranks), np.array(history.function_norms)
        per_norm = loss_per_norm(history.losses)
        is_due = self._hyper is None or len(informative) >= gp.REFIT_GROWTH * self._fitted_at
        self._update_prior(ranks, function_norms, per_norm, is_due)
        noise = self._noise(function_norms)[np.ix_(informative, informative)]
        losses, levels = np.array(history.norms)[informative], per_norm * function_norms[informative]
        targets = self._surrogate.targets(ranks[informative], losses, noise, levels)
        thetas = evaluator.space.encode(ranks[informative])
        if self._hyper is None or is_due:
            self._hyper = self._fit(thetas, targets)
        return self._surrogate.posterior(gp.GaussianProcess(thetas, targets.values, targets.noise, self._hyper))

    def _noise(self, function_norms: Array) -> Array:
        """Covariance (n, n) of the estimates of L, given the function norms (n,) of their plans."""
        evaluator = self._evaluator
        if evaluator.settings.noise == "sample":
            return np.diag([losses.variance for losses in evaluator.history.losses])
        return evaluator.noise.covariance(function_norms)

    def _update_prior(self, ranks: Ranks, function_norms: Array, per_norm: float, is_due: bool) -> None:
        """Learn the prior mean anew where it depends on the evaluations: ranks (n, d) and their function norms (n,)."""
        evaluator, settings = self._evaluator, self._evaluator.settings
        if evaluator.noise_spec.floor and settings.surrogate == "log" and settings.prior_mean == "measured":
            self._saturation = np.inf
            expected = evaluator.norms.predict(ranks, function_norms, per_norm, evaluator.objective)
            self._surrogate = self._make_surrogate(expected)
        elif self._energy_prior is not None and is_due:
            losses = np.array(evaluator.history.norms)
            self._surrogate = self._make_surrogate(self._energy_prior.fit(ranks, losses, self._saturation))

    def _fit(self, thetas: Array, targets: Targets) -> gp.Hyperparameters:
        """Hyperparameters from the last ones, and from fixed starting points where there are many more evaluations."""
        count, evaluator = len(thetas), self._evaluator
        restarts = count >= RESTART_GROWTH * self._restarted_at
        is_local = self._local_norm is not None and evaluator.settings.surrogate == "log"
        limits = RISK_LIMITS if evaluator.noise_spec.floor else LOCAL_LIMITS if is_local else gp.NO_LIMITS
        if not evaluator.settings.excess_noise:
            limits = replace(limits, most_excess=gp.EXCESS_BOUNDS[0])
        self._fitted_at = count
        self._restarted_at = count if restarts else self._restarted_at
        return gp.fit(thetas, targets.values, targets.noise, self._hyper, 2 if restarts else 0, limits)

    def _informative_evaluations(self) -> NDArray[np.int64]:
        """Indices (k,) of the evaluations that the process learns from.

        A prior mean around a plan is wrong far away from it. Errors there would inflate the variance nearby.
        """
        history = self._evaluator.history
        if self._local_norm is None:
            return np.arange(len(history.ranks))
        local_norm = max(float(self._evaluator.gain.delivered(np.array(self._local_norm))), LOSS_FLOOR)
        distance = np.abs(np.log(np.maximum(history.function_norms, LOSS_FLOOR) / local_norm))
        distance[[source != INITIAL for source in history.sources]] = 0.0
        return np.flatnonzero(distance <= max(np.log(MAX_NORM_FACTOR), np.sort(distance)[:MIN_EVALUATIONS][-1]))

    def fantasize(self, posterior: Posterior, evaluation: Evaluation) -> Posterior:
        """The posterior as if an evaluation had found the posterior mean."""
        variance = float(self.evaluation_noise(posterior, evaluation.ranks[None], len(evaluation.images))[0])
        return self._surrogate.fantasize(posterior, evaluation.ranks, variance)

    def evaluation_noise(self, posterior: Posterior, ranks: Ranks, num_images: int) -> Array:
        """Expected noise variances (m,), in the targets' units, of evaluations.

        Args:
            posterior: over J, for the expected losses.
            ranks: the plans (m, d).
            num_images: of each evaluation.
        """
        history = self._evaluator.history
        losses = np.maximum(posterior.loss(ranks)[0], min(history.norms))
        per_norm = loss_per_norm(history.losses)
        function_norms = np.maximum(losses / per_norm, min(history.function_norms))
        return self._surrogate.evaluation_noise(self._evaluator.noise.variance(function_norms) / num_images, losses)
