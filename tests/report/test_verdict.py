"""When a run is no success, and the gamma that would have done."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.fidelity.records import FidelityRecord
from compressor.report.verdict import GOOD_SHARE, describe_failure, reach_verdict, round_up, sufficient_gamma
from compressor.schema import Pair
from compressor.search.records import ParetoRecord, TargetKind, TargetRecord


def make_fidelity(relative: float) -> FidelityRecord:
    return FidelityRecord(
        function_norm=10 * relative, stderr=0.1, relative=relative, output_energy=10, images=100, top1_agreement=0.25
    )


def make_target(kind: TargetKind, asked: float, reached: float, at_most: float) -> TargetRecord:
    return TargetRecord(kind=kind, asked=asked, reached=reached, at_most=at_most, met=at_most <= asked)


def make_front(points: list[tuple[float, float]]) -> list[ParetoRecord]:
    return [ParetoRecord(file="", ratio=ratio, function_norm=norm, function_norm_sd=0) for ratio, norm in points]


@pytest.mark.parametrize(("relative", "success"), [(0.0, True), (0.5, True), (0.51, False), (1.2, False), (1e9, False)])
def test_half_of_the_output_energy_is_too_much_to_lose(relative: float, success: bool) -> None:
    verdict = reach_verdict(make_fidelity(relative), [], None, "try --gamma 0.02")
    assert verdict.success == success
    if not success:
        words = describe_failure(verdict)
        assert words.startswith("Not a success: the network no longer computes what the original does")
        assert "75 % of the decisions changed" in words
        assert words.endswith("try --gamma 0.02.")


@pytest.mark.parametrize(("after", "success"), [(0.5, True), (0.48, True), (0.47, False), (0.1, False)])
def test_half_of_the_accuracy_is_too_much_to_lose(after: float, success: bool) -> None:
    """However small the distance of the outputs is beside their energy."""
    verdict = reach_verdict(make_fidelity(0.3), [], None, "", Pair[float](original=0.96, compressed=after))
    assert verdict.success == success
    assert success or f"top-1 96 % before and {100 * after:.0f} % after" in verdict.reason


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        (make_target("drop", 1, 0.8, 1.23), "--max-drop 1.3"),
        (make_target("latency", 2, 2.117, 2.117), "--target-latency-ms 2.2"),
        (make_target("ratio", 0.1, 0.101, 0.101), "--target-ratio 0.11"),
        (make_target("bytes", 1000, 1001, 1001), "--target-bytes 1100"),
    ],
)
def test_a_missed_target_is_no_success_and_says_what_can_be_had(target: TargetRecord, advice: str) -> None:
    verdict = reach_verdict(make_fidelity(0.01), [], target, "")
    assert not verdict.success
    assert f"{target.asked:g} is not met" in verdict.reason
    assert advice in verdict.advice


def test_a_target_that_is_met_is_a_success_unless_the_network_is_destroyed() -> None:
    target = make_target("ratio", 0.1, 0.1, 0.1)
    assert reach_verdict(make_fidelity(0.01), [], target, "").success
    assert not reach_verdict(make_fidelity(0.9), [], target, "").success


# In steps, so that sizes that differ by rounding alone do not decide.
ratios, losses = st.integers(10, 900).map(lambda n: n / 1000), st.integers(2, 1200).map(lambda n: n / 100)
fronts = st.lists(st.tuples(ratios, losses), min_size=1, max_size=8)


@given(fronts)
def test_at_the_gamma_named_the_best_plan_loses_little_and_at_half_of_it_not(points: list[tuple[float, float]]) -> None:
    lost = 10.0
    gamma = sufficient_gamma(make_front(points), lost)
    plans = np.array([*points, (1.0, 0.0)])

    def loss_of_best(value: float) -> float:
        return float(plans[np.argmax(-value * plans[:, 1] - plans[:, 0]), 1])

    if gamma is None:
        assert all(norm <= GOOD_SHARE * lost for _, norm in points) or loss_of_best(1e-9) <= GOOD_SHARE * lost
        return
    assert loss_of_best(1.001 * gamma) <= GOOD_SHARE * lost
    assert loss_of_best(0.39 * gamma) > GOOD_SHARE * lost  # rounding up takes a factor of 2.5 at most


def test_under_the_rate_form_the_size_counts_by_its_inverse() -> None:
    assert sufficient_gamma(make_front([(0.1, 9.0), (0.5, 0.5)]), 10.0, "rate") == 1.0  # (10 - 2) / 8.5, 0.94
    assert sufficient_gamma(make_front([(0.1, 9.0), (0.5, 0.5)]), 10.0) == 0.05  # 0.4 / 8.5


@pytest.mark.parametrize(("value", "rounded"), [(1.3e-4, 2e-4), (2.0, 2.0), (5.1, 10.0), (0.99, 1.0), (3e7, 5e7)])
def test_suggestions_are_round(value: float, rounded: float) -> None:
    assert round_up(value) == rounded


def test_pixels_and_boxes_have_an_accuracy_of_their_own() -> None:
    lost = Pair[float](original=0.6, compressed=0.2)
    for name in ("mean IoU", "mean AP"):
        verdict = reach_verdict(make_fidelity(0.1), [], None, "try less", lost, name)
        assert f"{name} 60 % before and 20 % after" in verdict.reason
    assert reach_verdict(
        make_fidelity(0.1), [], None, "", Pair[float](original=0.6, compressed=0.4), "mean IoU"
    ).success
