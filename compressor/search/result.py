"""What a search hands on: its records, and the Pareto front."""

import numpy as np

from compressor.arrays import Array, Ranks
from compressor.search.evaluation.history import History, ParetoPlan
from compressor.search.objective import Objective
from compressor.search.records import CalibrationRecord, CertificateRecord, EvaluationRecord, JointRecord
from compressor.search.settings import SearchSettings
from compressor.search.stopping.criterion import StopTest
from compressor.search.surrogate.additive_prior import LOSS_FLOOR
from compressor.search.surrogate.posterior import Posterior
from compressor.search.target.target import SearchTarget


def unit_of(objective: Objective) -> float:
    """What records multiply J with: within a limit of R they give -L."""
    return 1.0 if objective.limit is None else 1.0 / objective.gamma


def certificate_record(test: StopTest, settings: SearchSettings, target: SearchTarget | None) -> CertificateRecord:
    """Both probabilities of a complete test.

    Args:
        test: the last of the search.
        settings: what was asked for.
        target: what was limited; None for nothing.
    """
    assert test.pointwise is not None
    assert test.joint is not None
    joint = test.joint
    return CertificateRecord(
        pointwise=test.pointwise,
        joint=JointRecord(
            failures=joint.failures,
            paths=joint.paths,
            upper=joint.upper,
            confidence=joint.confidence,
            allowed=joint.allowed,
        ),
        delta=_difference(test, target),
        about="objective" if target is None else "loss" if target.measure == "ratio" else "size",
        epsilon=settings.failure_probability,
        asked=settings.certificate,
        met=test.met,
    )


def _difference(test: StopTest, target: SearchTarget | None) -> float:
    """By how much other plans must be better: in J, or with a limit as a share of the incumbent's L or R."""
    incumbent = test.incumbent[None]
    if target is None:
        return test.delta
    if target.measure == "ratio":
        return test.delta / max(abs(float(test.posterior.mean(incumbent)[0])), LOSS_FLOOR)
    ratio = float(test.posterior.space.ratio(incumbent)[0])
    return 1.0 - (ratio if test.limit is None else test.limit) / ratio


def evaluation_records(history: History, posterior: Posterior) -> list[EvaluationRecord]:
    """All evaluations, in order."""
    norms, _ = losses_at_end(history, posterior, np.array(history.ranks))
    return [_evaluation_record(history, posterior, index, float(norm)) for index, norm in enumerate(norms)]


def losses_at_end(history: History, posterior: Posterior, ranks: Ranks) -> tuple[Array, Array]:
    """What L of evaluated plans (m, d) is known to be, and its standard deviation (m,).

    The posterior's, but for plans that were kept out of the process, being far from the best: there it is a guess, and
    the plan's own evaluations say more.

    Args:
        history: all evaluations.
        posterior: over J, by those that the process learnt from.
        ranks: evaluated plans (m, d).
    """
    means, deviations = posterior.loss(ranks)
    fitted = posterior.process.thetas
    for index, theta in enumerate(posterior.space.encode(ranks)):
        if not (fitted == theta).all(1).any():
            losses = history.losses_of(ranks[index])
            means[index], deviations[index] = losses.mean, losses.variance**0.5
    return means, deviations


def _evaluation_record(history: History, posterior: Posterior, index: int, norm: float) -> EvaluationRecord:
    ranks, losses, space = history.ranks[index], history.losses[index], posterior.space
    ratio = space.ratio(ranks[None])[0]
    return EvaluationRecord(
        index=index,
        source=history.sources[index],
        ranks=[
            None if rank == break_even_rank else rank
            for rank, break_even_rank in zip(
                space.layer_ranks(ranks).tolist(), space.layers.break_even_ranks, strict=True
            )
        ],
        prune_fraction=space.prune_fraction(ranks),
        function_norm=losses.mean,
        variance=losses.variance,
        ratio=float(ratio),
        objective=float(posterior.objective.value(losses.values.mean(), ratio)) * unit_of(posterior.objective),
        images=len(losses.indices),
        posterior_norm=norm,
    )


def calibration_record(posterior: Posterior) -> CalibrationRecord:
    """Leave-one-out check of the Gaussian process on its own targets."""
    means, deviations = posterior.process.leave_one_out()
    z = (posterior.process.targets - means) / deviations
    return CalibrationRecord(
        z_rms=float((z**2).mean() ** 0.5), within_two_sd=float((abs(z) <= 2.0).mean()), evaluations=len(z)
    )


def pareto_front(history: History, posterior: Posterior) -> list[ParetoPlan]:
    """Evaluated plans that no other beats in both R and L as it is known at the end, smallest first."""
    ranks = np.unique(np.array(history.ranks), axis=0)
    norms, deviations = losses_at_end(history, posterior, ranks)
    ratios = posterior.space.ratio(ranks)
    order = np.lexsort([norms, ratios])
    lowest = np.minimum.accumulate(np.concatenate([[np.inf], norms[order][:-1]]))
    return [
        ParetoPlan(ranks[index], float(ratios[index]), float(norms[index]), float(deviations[index]))
        for index, other in zip(order, lowest, strict=True)
        if norms[index] < other
    ]
