"""The process fitted to the looks so far, and what was expected before them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.search.evaluation.evaluator import Evaluator
from compressor.search.evaluation.history import Evaluation
from compressor.search.evaluation.journal import StepRow
from compressor.search.surrogate import gp
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, around_plan, loss_per_norm, sum_of
from compressor.search.surrogate.base import Expected, Posterior, Surrogate
from compressor.search.surrogate.energy_prior import Energies
from compressor.search.surrogate.gaussian import LossSurrogate, ObjectiveSurrogate
from compressor.search.surrogate.lognormal import LognormalSurrogate

REFIT_GROWTH = 1.1  # hyperparameters are fitted again when there are this many times as many looks
FRESH_GROWTH = 1.5  # likewise from fixed first guesses beside the last fit
# Times the function norm, up and down, up to which a look of the start says something of a plan; some always do.
NEARBY, MIN_EVALUATIONS = 4.0, 5
# Departures from what the linear model says were 0.15 to 0.2 in log L (ResNet-18), a look's own noise 0.1 to 0.15.
MIN_DEPARTURES = {"least_signal": 2.0}
# A risk departs from what the function norm says, there are such departures even where noise hides them, and those of
# mild plans, which are known well, say little about others.
DEPARTURES = {"least_signal": 0.1, "longest": 1.0}


class SurrogateFitter:
    """What the looks say of all plans; hyperparameters are fitted again as looks come.

    Args:
        energies: the prior mean from truncated energies, where the settings ask for that.

    Attributes:
        seconds: that were spent on it, within `timed`.
    """

    def __init__(self, evaluator: Evaluator, energies: Energies | None = None) -> None:
        self._evaluator = evaluator
        self._energies = energies
        self.seconds = 0.0
        self._around: float | None = None  # function norm of the plan around which the prior mean was found
        self._saturation = np.inf
        self._surrogate = self._make_surrogate(None)
        self._hyper: gp.Hyperparameters | None = None
        self._fitted_at = 0
        self._fitted_afresh_at = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What runs within counts as the surrogate's time."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def expect_layers(self, alone: list[Array] | None, saturation: float = np.inf) -> None:
        """What layers lose alone (cap,), up to the largest loss seen, is what the prior mean is from; None: unknown."""
        self._saturation = saturation
        if self._energies is not None and alone is not None:
            self._energies.guess(alone)
        is_expected = self._evaluator.settings.prior_mean == "measured"
        self._surrogate = self._make_surrogate(sum_of(alone) if alone is not None and is_expected else None)

    def expect_around(self, plan: Ranks, step: StepRow, alone: list[Array], saturation: float) -> None:
        """What layers add in the company of the plan (d,) becomes the prior mean; `alone` are their losses alone."""
        settings = self._evaluator.settings
        if settings.prior_mean == "measured" and settings.surrogate != "objective":
            self._around, self._hyper, self._fitted_afresh_at = max(step.norm, LOSS_FLOOR), None, 0
            self._saturation = saturation
            self._surrogate = self._make_surrogate(around_plan(plan, step.norm, step.norms_alone, alone))

    def _make_surrogate(self, expected: Expected | None) -> Surrogate:
        space, objective, noise_spec = self._evaluator.space, self._evaluator.objective, self._evaluator.noise_spec
        kind = self._evaluator.settings.surrogate
        if kind == "log":
            return LognormalSurrogate(space, objective, expected, self._saturation, noise_spec.floor)
        return (LossSurrogate if kind == "loss" else ObjectiveSurrogate)(space, objective, expected, self._saturation)

    def set_objective(self) -> None:
        """The looks have another objective now."""
        self._surrogate.objective = self._evaluator.objective
        if isinstance(self._surrogate, LossSurrogate):
            self._hyper, self._fitted_afresh_at = None, 0  # its targets are gamma times as large

    def posterior(self) -> Posterior:
        """The belief after all looks so far."""
        evaluator, state, told = self._evaluator, self._evaluator.state, self._informative_evaluations()
        ranks, function_norms = np.array(state.ranks), np.array(state.function_norms)
        per_norm = loss_per_norm(state.losses)
        refits = self._hyper is None or len(told) >= REFIT_GROWTH * self._fitted_at
        settings = evaluator.settings
        if evaluator.noise_spec.floor and settings.surrogate == "log" and settings.prior_mean == "measured":
            self._saturation = np.inf
            expected = evaluator.norms.predict(ranks, function_norms, per_norm, evaluator.objective)
            self._surrogate = self._make_surrogate(expected)
        elif self._energies is not None and refits:
            expected = self._energies.learn(ranks, np.array(state.norms), self._saturation)
            self._surrogate = self._make_surrogate(expected)
        noise, norms = evaluator.noise.covariance(function_norms)[np.ix_(told, told)], np.array(state.norms)[told]
        targets = self._surrogate.targets(ranks[told], norms, noise, per_norm * function_norms[told])
        thetas = evaluator.space.encode(ranks[told])
        if self._hyper is None or refits:
            afresh = len(norms) >= FRESH_GROWTH * self._fitted_afresh_at
            around = self._around is not None and settings.surrogate == "log"
            limits = DEPARTURES if evaluator.noise_spec.floor else MIN_DEPARTURES if around else {}
            self._hyper = gp.fit(thetas, targets.values, targets.noise, self._hyper, 2 if afresh else 0, **limits)
            self._fitted_at = len(norms)
            self._fitted_afresh_at = len(norms) if afresh else self._fitted_afresh_at
        return self._surrogate.posterior(gp.GaussianProcess(thetas, targets.values, targets.noise, self._hyper))

    def _informative_evaluations(self) -> np.ndarray:
        """Indices (k,) of the looks that the process learns from: what is expected around a plan is off far away, and
        how far off would be taken for how far off it is nearby."""
        state = self._evaluator.state
        if self._around is None:
            return np.arange(len(state.ranks))
        distance = np.abs(np.log(np.maximum(state.function_norms, LOSS_FLOOR) / self._around))
        distance[[source != "start" for source in state.sources]] = 0.0
        return np.flatnonzero(distance <= max(np.log(NEARBY), np.sort(distance)[:MIN_EVALUATIONS][-1]))

    def fantasize(self, posterior: Posterior, evaluation: Evaluation) -> Posterior:
        """The belief as if a look had found what is expected of it."""
        variance = float(self.evaluation_noise(posterior, evaluation.ranks[None], len(evaluation.images))[0])
        return self._surrogate.fantasize(posterior, evaluation.ranks, variance)

    def evaluation_noise(self, posterior: Posterior, ranks: Ranks, num_images: int) -> Array:
        """Expected noise variances (m,) of looks at ranks (m, d)."""
        state = self._evaluator.state
        expected = np.maximum(posterior.function_norm(ranks)[0], min(state.norms))
        per_norm = loss_per_norm(state.losses)
        function_norms = np.maximum(expected / per_norm, min(state.function_norms))
        return self._surrogate.evaluation_noise(self._evaluator.noise.variance(function_norms) / num_images, expected)
