"""The searches compared by `benchmarks.studies.search.comparison`, bocompress's own with its switches first."""

from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.studies.search.baselines import botorch_nei, chance, family, greedy, optuna_samplers
from benchmarks.studies.search.baselines.ours import PAPER, with_settings
from benchmarks.studies.search.baselines.problem import Run
from benchmarks.studies.search.baselines.scikit_optimize import expected_improvement

__all__ = ["DEFAULT", "SEARCHES", "Baseline"]


@dataclass(frozen=True)
class Baseline:
    """A search: how it runs, what it is in words, whether it is bocompress's, and the package it needs."""

    run: Run
    about: str
    ours: bool = False
    package: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return not self.package or find_spec(self.package) is not None


DEFAULT = "bocompress"
SEARCHES: dict[str, Baseline] = {
    DEFAULT: Baseline(with_settings(), "bocompress's default", ours=True),
    "tight": Baseline(with_settings(delta=0.002), "default, delta 0.2 % of J in place of 5 %", ours=True),
    "no-refinement": Baseline(with_settings(refine=False), "default, without steps by the linear model", ours=True),
    "loss": Baseline(with_settings(surrogate="loss"), "default, process on L", ours=True),
    "plain": Baseline(with_settings(surrogate="objective"), "default, process on J as a whole", ours=True),
    "mean-energies": Baseline(
        with_settings(prior_mean="energies"), "default, prior mean from energies with learnt sensitivities", ours=True
    ),
    "mean-none": Baseline(with_settings(prior_mean="none"), "default, no prior mean", ours=True),
    "linear": Baseline(with_settings(coordinates="linear"), "default, linear coordinates", ours=True),
    "random-start": Baseline(with_settings(start="random"), "default, random start", ours=True),
    "fresh-images": Baseline(with_settings(fresh=True), "default, fresh images for every look", ours=True),
    "fresh-no-refinement": Baseline(
        with_settings(fresh=True, refine=False), "no-refinement, fresh images for every look", ours=True
    ),
    "pointwise": Baseline(with_settings(certificate="pointwise"), "default, stopped by Eq. (12)", ours=True),
    "ei": Baseline(with_settings(acquisition="ei"), "default, expected improvement", ours=True),
    "paper": Baseline(
        with_settings(**PAPER), "the paper's: process on J, linear, random start, delta 0.05, Eq. (12)", ours=True
    ),
    "random": Baseline(chance.search, "random search"),
    "uniform": Baseline(family.uniform_plans, "uniform plans"),
    "energy": Baseline(family.energy_thresholds, "singular-value energy threshold"),
    "aimet": Baseline(greedy.aimet_thresholds, "layer by layer, nine cost ratios, common threshold (as AIMET)"),
    "lagrange": Baseline(greedy.lagrange_linear, "layer by layer, twelve linear ranks, Lagrangian"),
    "lagrange-cheap": Baseline(
        greedy.lagrange_cheap, "layer by layer, eight geometric ranks on five images, Lagrangian"
    ),
    "tpe": Baseline(optuna_samplers.parzen, "Optuna, TPE", package="optuna"),
    "optuna-gp": Baseline(optuna_samplers.gaussian_process, "Optuna, Gaussian process", package="optuna"),
    "skopt": Baseline(expected_improvement("log"), "scikit-optimize, EI", package="skopt"),
    "skopt-linear": Baseline(expected_improvement("linear"), "scikit-optimize, EI, linear ranks", package="skopt"),
    "botorch": Baseline(botorch_nei.noisy_expected_improvement, "BoTorch, noisy EI, known noise", package="botorch"),
}
