"""Warnings: given where they help, and not where a person has asked for just that."""

import pytest

from compressor.cost.records import LatencyRecord
from compressor.fidelity.records import FidelityRecord
from compressor.pipeline.image_splits import MAX_CALIBRATION_SHARE, MIN_CALIBRATION_IMAGES
from compressor.pipeline.settings import Settings
from compressor.report import warnings
from compressor.report.records import PrecisionRecord
from compressor.search.records import CertificateRecord, JointRecord
from exporters.records import FloatLayer, QuantizationRecord

LIMITS = (MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_SHARE)


def test_too_few_images_to_calibrate_with_are_warned_about_with_what_is_needed() -> None:
    assert warnings.on_calibration(20, 400, *LIMITS) == [
        "20 images are too few to fit factors on: factors are those of the weights alone, without layer-wise "
        "reconstruction; at least 27 are needed"
    ]
    assert int(MAX_CALIBRATION_SHARE * 27) >= MIN_CALIBRATION_IMAGES > int(MAX_CALIBRATION_SHARE * 26)


def test_too_small_a_calibration_is_warned_about_by_its_option() -> None:
    (warning,) = warnings.on_calibration(1000, 5, *LIMITS)
    assert warning.startswith("--calibration 5 is too few to fit factors on")
    assert warning.endswith("at least 8 are needed")


@pytest.mark.parametrize(
    "settings", [Settings(calibration=0), Settings(factors="weight", recalibrate=False)], ids=["none", "weight"]
)
def test_nothing_to_fit_is_no_reason_to_warn(settings: Settings) -> None:
    assert settings.num_calibration == 0
    assert warnings.on_calibration(20, settings.num_calibration, *LIMITS) == []


@pytest.mark.parametrize("settings", [Settings(), Settings(factors="weight"), Settings(recalibrate=False)])
def test_images_are_wanted_where_something_is_fitted(settings: Settings) -> None:
    assert settings.num_calibration == 400


def test_a_certificate_not_met_is_warned_about_with_the_probability_asked_for() -> None:
    joint = JointRecord(failures=9, paths=128, upper=0.14, confidence=0.999)
    figures = {"pointwise": 0.003, "joint": joint, "delta": 0.01, "epsilon": 0.05}
    (warning,) = warnings.on_certificate(
        CertificateRecord(**figures, asked="joint", met=False), "200 evaluations spent"
    )
    assert warning.endswith("some plan is better by more than 0.01 with probability 0.07, at most 0.14")
    (warning,) = warnings.on_certificate(CertificateRecord(**figures, asked="pointwise", met=False), "time spent")
    assert warning.endswith("a given other plan is better by more than 0.01 with probability 0.003")
    assert warnings.on_certificate(CertificateRecord(**figures, asked="joint", met=True), "") == []


def int8_record(low: float, high: float, added_norm: float) -> PrecisionRecord:
    times = {f"{file}_{figure}_ms": 1.0 for file in ("original", "compressed") for figure in ("p90", "p99")}
    latency = LatencyRecord(
        original_ms=1,
        compressed_ms=1,
        ratio=(low + high) / 2,
        ratio_low=low,
        ratio_high=high,
        runs=50,
        threads=1,
        batch_size=1,
        **times,
    )
    quantization = QuantizationRecord(
        calibration="entropy",
        calibration_images=64,
        check_images=48,
        added_norm=added_norm,
        added_norm_all=0.5,
        allowed_norm=0.1,
        layers=21,
        float_layers=[FloatLayer(name="conv1", added_norm=0.4)],
        trials=30,
    )
    return PrecisionRecord(
        precision="int8",
        file="model.int8.onnx",
        onnx_bytes=1,
        gzip_bytes=1,
        fidelity=FidelityRecord(
            function_norm=1, stderr=0.1, relative=0.1, output_energy=10, images=50, top1_agreement=0.9
        ),
        norm_to_float32=0.1,
        agreement_to_float32=0.99,
        latency={},
        latency_to_float32={"CPUExecutionProvider": latency},
        quantization=quantization,
    )


def test_a_precision_that_is_slower_or_less_faithful_than_allowed_is_warned_about() -> None:
    assert warnings.on_precision(int8_record(0.6, 0.7, 0.05)) == []
    (slower,) = warnings.on_precision(int8_record(1.2, 1.4, 0.05))
    assert slower.startswith("on CPUExecutionProvider model.int8.onnx is slower than the compressed float32 file")
    assert "1.30 times its time (1.20 to 1.40)" in slower
    (equal,) = warnings.on_precision(int8_record(0.9, 1.1, 0.05))
    assert "is not faster than the compressed float32 file" in equal
    (further,) = warnings.on_precision(int8_record(0.6, 0.7, 0.2))
    assert "more than the 0.1 allowed, with 1 of 21 layers kept in float32" in further


def test_a_failure_probability_that_cannot_be_met_is_warned_about() -> None:
    (warning,) = warnings.on_epsilon(0.001, False)
    assert "--epsilon 0.001" in warning
    assert warnings.on_epsilon(0.05, True) == []
