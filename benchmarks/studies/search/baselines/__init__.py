"""The searches compared by `benchmarks.studies.search.comparison`: bocompress's variants, then the baselines."""

from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.studies.search.baselines import botorch_nei, chance, family, greedy, optuna_samplers
from benchmarks.studies.search.baselines.ours import PAPER, with_settings
from benchmarks.studies.search.baselines.problem import Run
from benchmarks.studies.search.baselines.scikit_optimize import expected_improvement

__all__ = ["DEFAULT", "SEARCHES", "ComparedSearch"]


@dataclass(frozen=True)
class ComparedSearch:
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
SEARCHES: dict[str, ComparedSearch] = {
    DEFAULT: ComparedSearch(with_settings(), "bocompress's default", ours=True),
    "tight": ComparedSearch(with_settings(delta=0.002), "default, delta 0.2 % of J in place of 5 %", ours=True),
    "no-refinement": ComparedSearch(with_settings(refine=False), "default, without Gauss-Newton steps", ours=True),
    "loss": ComparedSearch(with_settings(surrogate="loss"), "default, process on L", ours=True),
    "plain": ComparedSearch(with_settings(surrogate="objective"), "default, process on J as a whole", ours=True),
    "mean-energies": ComparedSearch(
        with_settings(prior_mean="energies"), "default, prior mean from energies with learnt sensitivities", ours=True
    ),
    "mean-none": ComparedSearch(with_settings(prior_mean="none"), "default, no prior mean", ours=True),
    "linear": ComparedSearch(with_settings(coordinates="linear"), "default, linear coordinates", ours=True),
    "random-start": ComparedSearch(with_settings(start="random"), "default, random initial design", ours=True),
    "fresh-images": ComparedSearch(with_settings(fresh=True), "default, fresh images for every evaluation", ours=True),
    "fresh-no-refinement": ComparedSearch(
        with_settings(fresh=True, refine=False), "no-refinement, fresh images for every evaluation", ours=True
    ),
    "pointwise": ComparedSearch(with_settings(certificate="pointwise"), "default, stopped by Eq. (12)", ours=True),
    "ei": ComparedSearch(with_settings(acquisition="ei"), "default, expected improvement", ours=True),
    "paper": ComparedSearch(
        with_settings(**{**PAPER, "noise": "pooled"}),
        "the paper's: process on J, linear, random initial design, delta 0.05, Eq. (12); noise pooled",
        ours=True,
    ),
    "random": ComparedSearch(chance.search_in("log"), "random search"),
    "uniform": ComparedSearch(family.uniform_plans, "uniform plans"),
    "energy": ComparedSearch(family.energy_thresholds, "singular-value energy threshold"),
    "aimet": ComparedSearch(greedy.aimet_thresholds, "layer by layer, nine cost ratios, common threshold (as AIMET)"),
    "lagrange": ComparedSearch(greedy.lagrange_linear, "layer by layer, twelve linear ranks, Lagrangian"),
    "lagrange-cheap": ComparedSearch(
        greedy.lagrange_cheap, "layer by layer, eight geometric ranks on five images, Lagrangian"
    ),
    "tpe": ComparedSearch(optuna_samplers.parzen, "Optuna, TPE", package="optuna"),
    "optuna-gp": ComparedSearch(optuna_samplers.gaussian_process, "Optuna, Gaussian process", package="optuna"),
    "skopt": ComparedSearch(expected_improvement("log"), "scikit-optimize, EI", package="skopt"),
    "skopt-linear": ComparedSearch(
        expected_improvement("linear"), "scikit-optimize, EI, linear ranks", package="skopt"
    ),
    "botorch": ComparedSearch(
        botorch_nei.noisy_expected_improvement, "BoTorch, noisy EI, known noise", package="botorch"
    ),
}
