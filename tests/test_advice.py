"""Warnings: given where they help, and not where a person has asked for just that."""

import pytest

from compressor import advice
from compressor.job import MAX_CALIBRATION_SHARE, MIN_CALIBRATION_IMAGES, Settings
from compressor.records import CertificateRecord, JointRecord

LIMITS = (MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_SHARE)


def test_too_few_images_to_calibrate_with_are_warned_about_with_what_is_needed() -> None:
    assert advice.on_calibration(20, 400, *LIMITS) == [
        "20 images are too few to fit factors on: factors are those of the weights alone, and no layer was "
        "recalibrated; 27 images are enough to begin with"
    ]
    assert int(MAX_CALIBRATION_SHARE * 27) >= MIN_CALIBRATION_IMAGES > int(MAX_CALIBRATION_SHARE * 26)


def test_too_small_a_wish_is_warned_about_by_its_option() -> None:
    (warning,) = advice.on_calibration(1000, 5, *LIMITS)
    assert warning.startswith("--calibration 5 is too few to fit factors on")
    assert warning.endswith("at least 8 are needed")


@pytest.mark.parametrize(
    "settings", [Settings(calibration=0), Settings(factors="weight", recalibrate=False)], ids=["none", "weight"]
)
def test_nothing_to_fit_is_no_reason_to_warn(settings: Settings) -> None:
    assert settings.calibration_wanted == 0
    assert advice.on_calibration(20, settings.calibration_wanted, *LIMITS) == []


@pytest.mark.parametrize("settings", [Settings(), Settings(factors="weight"), Settings(recalibrate=False)])
def test_images_are_wanted_where_something_is_fitted(settings: Settings) -> None:
    assert settings.calibration_wanted == 400


def test_a_certificate_not_met_is_said_with_the_figure_that_was_asked_for() -> None:
    joint = JointRecord(failures=9, paths=128, upper=0.14, confidence=0.999)
    figures = {"pointwise": 0.003, "joint": joint, "delta": 0.01, "epsilon": 0.05}
    (warning,) = advice.on_certificate(CertificateRecord(**figures, asked="joint", met=False), "200 evaluations spent")
    assert warning.endswith("some plan is better by more than 0.01 with probability 0.07, at most 0.14")
    (warning,) = advice.on_certificate(CertificateRecord(**figures, asked="pointwise", met=False), "time spent")
    assert warning.endswith("a given other plan may be better by more than 0.01 with probability 0.003")
    assert advice.on_certificate(CertificateRecord(**figures, asked="joint", met=True), "") == []
