"""Paired latency: the statistics on cases with known answers, the measurement on real files."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from benchmarks import latency
from benchmarks.latency import (
    CPU,
    available_providers,
    bootstrap_interval,
    measure_latency,
    paired_ratio,
    plan_runs,
    summarise,
    tile_batch,
)
from compressor.errors import BocompressError, InputError
from compressor.records import LatencyRecord
from exporters.onnx import export_onnx

IMAGES = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SqueezeNet, and one layer in its place: hundreds of times less work."""
    folder = tmp_path_factory.mktemp("latency")
    networks = {
        "original.onnx": torchvision.models.squeezenet1_1(num_classes=10),
        "compressed.onnx": nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(12, 10)),
    }
    for name, network in networks.items():
        export_onnx(network, torch.from_numpy(IMAGES), folder / name, {})
    return folder / "original.onnx", folder / "compressed.onnx"


# --- statistics ---


def test_the_ratio_is_that_of_pairs_and_not_of_medians() -> None:
    original, compressed = [1.0, 10.0, 100.0], [0.5, 5.0, 90.0]
    assert paired_ratio(original, compressed) == 0.5
    assert paired_ratio(original, original) == 1.0


def test_a_drift_of_the_machine_cancels() -> None:
    drift = np.exp(np.random.default_rng(0).standard_normal(50).cumsum())
    assert paired_ratio(drift, 0.4 * drift) == pytest.approx(0.4)
    assert bootstrap_interval(0.4 * drift / drift) == pytest.approx((0.4, 0.4))


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    trials = 400
    samples = rng.lognormal(mean=0.0, sigma=0.5, size=(trials, 50))  # median exactly 1
    intervals = [bootstrap_interval(sample, resamples=500, seed=seed) for seed, sample in enumerate(samples)]
    covered = np.mean([low <= 1.0 <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98  # 0.95 and three standard errors of 400 trials


def test_the_interval_is_reproducible_and_narrows() -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    low, high = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) == (low, high)
    assert low < np.median(values) < high
    few_low, few_high = bootstrap_interval(values[:30], seed=3)
    assert few_high - few_low > high - low
    half_low, half_high = bootstrap_interval(values, confidence=0.5, seed=3)
    assert half_high - half_low < high - low


def test_the_summary_holds_the_figures_of_its_samples() -> None:
    original = np.arange(1.0, 101.0)
    record = summarise(original, original / 2, threads=2, batch_size=4)
    assert (record.original_ms, record.compressed_ms, record.ratio) == (50.5, 25.25, 0.5)
    assert (record.ratio_low, record.ratio_high) == (0.5, 0.5)
    assert record.original_p90_ms == pytest.approx(90.1)
    assert record.original_p99_ms == pytest.approx(99.01)
    assert (record.runs, record.threads, record.batch_size) == (100, 2, 4)
    assert LatencyRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    ("pair_seconds", "planned", "fewest"),
    [
        (0.001, 1000, 20),  # a second of pairs
        (0.1, 50, 20),  # as many as asked for
        (0.5, 40, 20),  # as many as fit
        (2.0, 20, 20),  # twenty all the same
        (10.0, 5, 5),  # very slow
    ],
)
def test_how_many_pairs_run(pair_seconds: float, planned: int, fewest: int) -> None:
    assert plan_runs(pair_seconds, min_runs=50, max_seconds=20.0) == (planned, fewest)


def test_images_are_repeated_or_cut_in_order() -> None:
    images = np.arange(6).reshape(3, 2)
    assert tile_batch(images, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert tile_batch(images, 1).tolist() == [[0, 1]]
    with pytest.raises(InputError, match="at least one image"):
        tile_batch(images[:0], 2)


# --- measurement ---


@pytest.mark.parametrize("example", [IMAGES, torch.from_numpy(IMAGES)])
def test_two_files_are_measured(files: tuple[Path, Path], example: np.ndarray | torch.Tensor) -> None:
    steps: list[tuple[int, int]] = []
    record = measure_latency(
        *files,
        example,
        CPU,
        batch_size=2,
        min_runs=20,
        max_seconds=0.5,
        on_step=lambda *step: steps.append(step),
    )
    assert record.runs == len(record.original_samples_ms) == len(record.compressed_samples_ms) >= 20
    assert 0 < record.ratio_low <= record.ratio <= record.ratio_high < 1
    assert record.original_ms == float(np.median(record.original_samples_ms))
    assert record.ratio == paired_ratio(record.original_samples_ms, record.compressed_samples_ms)
    assert [done for done, _ in steps] == list(range(1, record.runs + 1))
    assert len({planned for _, planned in steps}) == 1


def test_both_orders_occur_and_the_seed_repeats_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(seed: int) -> list[bool]:
        seen: list[bool] = []

        def time_pair(original: object, compressed: object, original_first: bool = True) -> tuple[float, float]:
            seen.append(original_first)
            return 100.0, 50.0

        monkeypatch.setattr(latency, "_time_pair", time_pair)
        rng = np.random.default_rng(seed)
        latency._measure_pairs(lambda: None, lambda: None, 40, 20.0, rng, None)
        return seen[-40:]

    assert orders(0) == orders(0) != orders(1)
    assert 8 < sum(orders(0)) < 32


def test_the_time_limit_holds_but_five_slow_pairs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow() -> None:
        clock[0] += 10.0

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: int(clock[0] * 1e9))
    samples = latency._measure_pairs(slow, slow, 50, 20.0, np.random.default_rng(0), None)
    assert samples.tolist() == [[10_000.0, 10_000.0]] * 5


def test_the_cpu_is_always_available() -> None:
    assert available_providers()[0] == CPU
    assert set(available_providers()) <= {CPU, latency.CUDA}


def test_a_provider_that_falls_back_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    class FallenBack:
        def __init__(self, *arguments: object) -> None: ...

        def get_providers(self) -> list[str]:
            return [CPU]

    monkeypatch.setattr(latency.ort, "get_available_providers", lambda: [latency.CUDA, CPU])
    monkeypatch.setattr(latency.ort, "InferenceSession", FallenBack)
    assert available_providers() == [CPU]


def test_bad_input_is_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        measure_latency(tmp_path / "none.onnx", files[1], IMAGES)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        measure_latency(*files, IMAGES, batch_size=0)
    with pytest.raises(InputError, match="NoSuchProvider"):
        measure_latency(*files, IMAGES, "NoSuchProvider")
    with pytest.raises(BocompressError, match=r"does not run on inputs of shape \[1, 1, 64, 64\]"):
        measure_latency(*files, IMAGES[:, :1])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(BocompressError, match="cannot load"):
        measure_latency(broken, files[1], IMAGES)
