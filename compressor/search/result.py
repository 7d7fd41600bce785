"""What a search leaves behind: its record, row by row."""

from compressor.search.evaluation.history import History
from compressor.search.records import CalibrationRecord, CertificateRecord, EvaluationRecord, JointRecord
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace
from compressor.search.stopping.criterion import StopTest
from compressor.search.surrogate.posterior import Posterior


def certificate_record(test: StopTest, settings: SearchSettings) -> CertificateRecord:
    """Both figures of the last test, which is complete."""
    assert test.pointwise is not None
    assert test.joint is not None
    joint = test.joint
    return CertificateRecord(
        pointwise=test.pointwise,
        joint=JointRecord(failures=joint.failures, paths=joint.paths, upper=joint.upper, confidence=joint.confidence),
        delta=test.delta,
        epsilon=settings.risk,
        asked=settings.certificate,
        met=test.met,
    )


def history(state: History, space: RankSpace, posterior: Posterior) -> list[EvaluationRecord]:
    """All looks, in order."""
    return [_row(state, space, posterior, index) for index in range(len(state.ranks))]


def _row(state: History, space: RankSpace, posterior: Posterior, index: int) -> EvaluationRecord:
    ranks, losses = state.ranks[index], state.losses[index]
    ratio = space.ratio(ranks[None])[0]
    return EvaluationRecord(
        index=index,
        source=state.sources[index],
        ranks=[
            None if rank == dense else rank
            for rank, dense in zip(space.layer_ranks(ranks).tolist(), space.layers.break_even_ranks, strict=True)
        ],
        prune_fraction=space.prune_fraction(ranks),
        function_norm=losses.mean,
        variance=losses.variance,
        ratio=float(ratio),
        objective=float(posterior.objective.value(losses.values.mean(), ratio)),
        images=len(losses.indices),
    )


def calibrate(posterior: Posterior) -> CalibrationRecord:
    """Leave-one-out check of the process on its own targets."""
    means, deviations = posterior.process.leave_one_out()
    z = (posterior.process.targets - means) / deviations
    return CalibrationRecord(
        z_rms=float((z**2).mean() ** 0.5), within_two_sd=float((abs(z) <= 2.0).mean()), evaluations=len(z)
    )
