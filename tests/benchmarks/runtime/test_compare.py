"""What `bocompress benchmark` does: files compared in real ONNX Runtime, tables and pages."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.records import BenchmarkRecord, TimingRecord
from benchmarks.runtime import compare
from benchmarks.runtime.compare import (
    BenchmarkSettings,
    benchmark_files,
    choose_providers,
    find_warnings,
    is_alike,
    name_files,
)
from benchmarks.runtime.memory import peak_memory_bytes
from benchmarks.runtime.page import OUTPUTS, describe_result, render_markdown, render_page, write_benchmark
from benchmarks.runtime.profile import summarize_events
from compressor.cost.records import RatioRecord
from compressor.data.transforms import Transform
from compressor.errors import BocompressError, InputError
from exporters import providers as sessions
from exporters.feeding import feeding_metadata
from exporters.providers import CPU, CUDA, TENSORRT
from exporters.runtimes.openvino import OpenVino
from tests.browser import PHONE_WIDTH, on_a_phone

SHORT: dict[str, Any] = {"min_rounds": 30, "max_seconds": 1.0}
SIDE = 32


class Silent:
    """Progress that keeps the titles."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def stage(self, title: str, total: int | None = None) -> nullcontext[Any]:
        self.titles.append(title)
        return nullcontext(self)

    def update(self, done: int, note: str = "") -> None:
        pass


def write_network(
    path: Path, layers: int, batch: int | str = "batch", side: int | str = SIDE, external: bool = False
) -> Path:
    """`layers` convolutions of 16 channels on (batch, 3, side, side), then their mean."""
    rng = np.random.default_rng(0)
    nodes, weights, value, channels = [], [], "x", 3
    for number in range(layers):
        kernel = 0.1 * rng.standard_normal((16, channels, 3, 3), dtype=np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        nodes.append(helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        value, channels = f"c{number}", 16
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"], "mean"))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "network", [image], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A large network, a small one, and the large one again, its weights in a file beside it."""
    folder = tmp_path_factory.mktemp("compare")
    large, small = write_network(folder / "large.onnx", 12), write_network(folder / "small.onnx", 2)
    (folder / "copy").mkdir()
    return [large, small, write_network(folder / "copy" / "large.onnx", 12, external=True)]


@pytest.fixture(scope="module")
def record(files: list[Path]) -> BenchmarkRecord:
    settings = BenchmarkSettings(providers=["cpu"], batch_sizes=(1, 2), profile=True, **SHORT)
    return benchmark_files(files, settings, Silent(), "bocompress benchmark <large> & others")


# --- the measurement ---


def test_every_combination_is_measured(record: BenchmarkRecord, files: list[Path]) -> None:
    assert [(row.provider, row.threads, row.batch_size) for row in record.settings] == [(CPU, 1, 1), (CPU, 1, 2)]
    assert record.input_shape == [3, SIDE, SIDE]
    for setting in record.settings:
        names = [timing.file for timing in setting.timings]
        assert names == [
            f"{files[0].parent.name}/large.onnx",
            "small.onnx",
            "copy/large.onnx",
        ]
        for timing in setting.timings:
            assert len(timing.samples_ms) == setting.rounds
            assert timing.median_ms == pytest.approx(float(np.median(timing.samples_ms)))
            assert timing.median_ms <= timing.p90_ms <= timing.p99_ms
            assert timing.images_per_second == pytest.approx(1e3 * setting.batch_size / timing.median_ms)
            assert timing.load_ms > 0
            assert timing.wall_ms >= timing.median_ms


def test_ratios_are_to_the_first_file_and_the_smaller_network_is_faster(record: BenchmarkRecord) -> None:
    for setting in record.settings:
        large, small, copy = setting.timings
        assert large.ratio is None
        assert small.ratio is not None
        assert copy.ratio is not None
        assert small.ratio.low <= small.ratio.value <= small.ratio.high < 0.8 < copy.ratio.value
        assert not is_alike(small.ratio, setting.noise)


def test_data_beside_a_file_counts(record: BenchmarkRecord, files: list[Path]) -> None:
    large, small, copy = record.files
    assert large.onnx_bytes == files[0].stat().st_size > small.onnx_bytes > small.gzip_bytes
    weights = files[2].with_name("large.onnx.data")
    assert copy.onnx_bytes == files[2].stat().st_size + weights.stat().st_size > weights.stat().st_size > 80_000


def test_the_profile_says_where_the_time_goes(record: BenchmarkRecord) -> None:
    large, small, _ = record.settings[0].profiles
    for profile, convolutions in ((large, 12), (small, 2)):
        by_type = {entry.op_type: entry for entry in profile.operators}
        assert by_type["Conv"].nodes == convolutions
        assert by_type["Conv"].share > 0.5
        assert sum(entry.share for entry in profile.operators) == pytest.approx(1)
        assert sum(entry.median_ms for entry in profile.operators) <= profile.run_ms * 1.5
    assert len(large.nodes) == 10
    assert large.nodes[0].op_type == "Conv"
    assert [node.median_ms for node in large.nodes] == sorted((n.median_ms for n in large.nodes), reverse=True)


@pytest.mark.slow
def test_memory_is_that_of_the_file_alone(tmp_path: Path) -> None:
    """40 MB of weights and inputs of 24 MB show, whatever this process holds."""
    ballast = np.ones(30_000_000)
    network = write_network(tmp_path / "small.onnx", 1, side="side")
    small = peak_memory_bytes(network, CPU, 1, (1, 3, 8, 8))
    large = peak_memory_bytes(network, CPU, 1, (2, 3, 1000, 1000))
    assert small is not None
    assert large is not None
    assert ballast.nbytes > 100e6 > small
    assert large - small > 0.9 * 2 * 3 * 1000 * 1000 * 4
    with pytest.raises(BocompressError, match="does not run on inputs of shape"):
        peak_memory_bytes(network, CPU, 1, (1, 4, 8, 8))


def test_one_file_alone_is_compared_with_itself(files: list[Path]) -> None:
    progress = Silent()
    record = benchmark_files(files[1:2], BenchmarkSettings(providers=["cpu"], **SHORT), progress)
    (setting,) = record.settings
    assert setting.timings[0].ratio is None
    assert setting.noise.low <= setting.noise.value <= setting.noise.high
    assert describe_result(record).startswith("small.onnx takes ")
    assert progress.titles == [f"{what} on CPU, 1 thread, batch 1" for what in ("timing", "memory")]


# --- providers ---


def provide(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    for module in (compare, sessions):
        monkeypatch.setattr(module, "available_providers", lambda: list(providers))


def test_auto_takes_what_is_there_and_names_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, CPU)
    assert choose_providers(["auto"]) == ([CPU], ["cuda", "tensorrt"])
    assert choose_providers(["cpu", "auto"]) == ([CPU], ["cuda", "tensorrt"])
    provide(monkeypatch, CPU, CUDA, TENSORRT)
    assert choose_providers(["auto"]) == ([CPU, CUDA, TENSORRT], [])
    assert choose_providers(["tensorrt", "cpu"]) == ([TENSORRT, CPU], [])


def test_a_provider_asked_for_by_name_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, CPU)
    with pytest.raises(InputError, match=r"cannot run on cuda.*here there is cpu"):
        choose_providers(["cpu", "cuda", "auto"])


# --- files that do not fit ---


def test_files_that_cannot_be_compared_are_refused(files: list[Path], tmp_path: Path) -> None:
    fixed = write_network(tmp_path / "fixed.onnx", 1, batch=1)
    wide = write_network(tmp_path / "wide.onnx", 1, side=64)
    free = write_network(tmp_path / "free.onnx", 1, side="side")
    with pytest.raises(InputError, match=r"fixed.onnx takes batches of 1 only, not of 8"):
        benchmark_files([files[0], fixed], BenchmarkSettings(batch_sizes=(1, 8)), Silent())
    with pytest.raises(InputError, match=r"wide.onnx takes \(3, 64, 64\)"):
        benchmark_files([files[0], wide], BenchmarkSettings(), Silent())
    with pytest.raises(InputError, match=r"free.onnx leaves its input size open: give --input-size"):
        benchmark_files([free], BenchmarkSettings(), Silent())
    assert compare.common_shape([files[0], free], BenchmarkSettings(input_size=SIDE)) == (3, SIDE, SIDE)
    described = onnx.load(free)
    onnx.helper.set_model_props(described, feeding_metadata(Transform(input_size=SIDE, resize_size=SIDE), None))
    onnx.save(described, free)
    assert compare.common_shape([files[0], free], BenchmarkSettings()) == (3, SIDE, SIDE)
    with pytest.raises(InputError, match="No such file or directory"):
        benchmark_files([tmp_path / "none.onnx"], BenchmarkSettings(), Silent())
    with pytest.raises(InputError, match="threads must be at least 1"):
        benchmark_files([files[0]], BenchmarkSettings(threads=(0,)), Silent())


def test_names_are_as_short_as_they_can_be() -> None:
    assert name_files([Path("/a/x.onnx"), Path("/a/y.onnx")]) == ["x.onnx", "y.onnx"]
    assert name_files([Path("/a/x.onnx"), Path("/b/x.onnx")]) == ["a/x.onnx", "b/x.onnx"]
    assert name_files([Path("/a/x.onnx"), Path("/b/x.onnx"), Path("/b/y.onnx")])[2] == "y.onnx"
    assert name_files([Path("/a/x.onnx")] * 2) == ["x.onnx (1)", "x.onnx (2)"]


# --- what the figures cannot show ---


def timing(name: str, value: float, low: float, high: float) -> TimingRecord:
    ratio = RatioRecord(value=value, low=low, high=high)
    times = {"median_ms": 1.0, "wall_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0, "images_per_second": 1.0, "load_ms": 1.0}
    return TimingRecord(file=name, **times, peak_memory_bytes=None, ratio=ratio, samples_ms=[])


QUIET = RatioRecord(value=1.0, low=0.99, high=1.01)


def test_a_quiet_machine_gives_no_warning() -> None:
    assert find_warnings(QUIET, 0.01, [timing("b", 0.5, 0.49, 0.51)]) == []
    assert find_warnings(QUIET, None, []) == []


@pytest.mark.parametrize("ratio", [(1.002, 0.98, 1.02), (0.995, 0.992, 0.998)])
def test_files_within_the_noise_are_named(ratio: tuple[float, float, float]) -> None:
    """Where its interval holds 1, and where it is no further from 1 than the reference may be from itself."""
    (warning,) = find_warnings(QUIET, 0.0, [timing("b", *ratio), timing("c", 0.5, 0.49, 0.51)])
    assert warning == "b cannot be distinguished from the reference here"


def test_a_busy_machine_is_warned_about() -> None:
    wide = RatioRecord(value=1.0, low=0.9, high=1.05)
    first, second = find_warnings(wide, 0.4, [timing("b", 0.5, 0.49, 0.51)])
    assert first.startswith("other processes took 40.0\u202f% of the machine")
    assert "too busy" in second
    (warning,) = find_warnings(QUIET, None, [timing("b", 0.5, 0.45, 0.55)])
    assert "too busy to show small differences: stop" in warning


def test_a_reference_that_differs_from_itself_is_warned_about() -> None:
    off = RatioRecord(value=1.02, low=1.01, high=1.03)
    (warning,) = find_warnings(off, 0.0, [timing("b", 0.5, 0.49, 0.51)])
    assert "differs from itself (1.010 to 1.030)" in warning


# --- the profiler's file ---


def event(name: str, microseconds: int, op: str = "Conv", index: str = "0") -> dict[str, Any]:
    arguments = {"op_name": op, "node_index": index, "output_type_shape": [{"float": [1, 8]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": arguments}


def test_events_are_medians_per_node_without_the_warm_up() -> None:
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "dur": 9}]
    for run in range(23):
        slow = 1000 if run < 3 else 1
        events += [event("a", 300 * slow), event("b", 100 * slow, index="1"), event("c", 600, "Gemm", "2")]
        events += [{"cat": "Session", "name": "model_run", "dur": 1100 * slow}]
    profile = summarize_events("x.onnx", events)
    assert (profile.runs, profile.run_ms) == (20, pytest.approx(1.1))
    assert [(row.op_type, row.nodes, row.median_ms, row.share) for row in profile.operators] == [
        ("Gemm", 1, pytest.approx(0.6), pytest.approx(0.6)),
        ("Conv", 2, pytest.approx(0.4), pytest.approx(0.4)),
    ]
    assert [(node.name, node.output_shape) for node in profile.nodes] == [("c", [1, 8]), ("a", [1, 8]), ("b", [1, 8])]


# --- pages ---


def test_the_page_and_its_markdown_hold_the_figures(record: BenchmarkRecord) -> None:
    page, markdown = render_page(record), render_markdown(record)
    assert page == render_page(record)
    for setting in record.settings:
        for row in setting.timings:
            assert row.ratio is None or f"{row.ratio.low:.3f} to {row.ratio.high:.3f}" in page
            assert row.ratio is None or f"{row.ratio.low:.3f} to {row.ratio.high:.3f}" in markdown
    assert page.count("<svg") == 2 * 3
    assert "&lt;large&gt; &amp; others" in page
    assert "bocompress benchmark <large> & others" in markdown
    assert "http" not in page.replace("http://www.w3.org/", "")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows if "copy/large.onnx" in line} == {5, 6}


def test_the_files_are_written_and_read_again(record: BenchmarkRecord, tmp_path: Path) -> None:
    write_benchmark(record, tmp_path / "new" / "out")
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == set(OUTPUTS)
    again = BenchmarkRecord.model_validate_json((tmp_path / "new" / "out" / "benchmark.json").read_text())
    assert again == record
    assert not math.isnan(again.seconds)


def test_the_page_fits_a_phone(record: BenchmarkRecord, tmp_path: Path) -> None:
    found = on_a_phone(render_page(record), tmp_path)
    assert found["scroll"] <= found["inner"] == PHONE_WIDTH


@pytest.mark.slow
def test_runtimes_have_the_same_table(files: list[Path]) -> None:
    pytest.importorskip("openvino")
    settings = BenchmarkSettings(runtimes=("onnxruntime", "openvino"), profile=True, min_rounds=5, max_seconds=0.5)
    record = benchmark_files(files[:2], settings, Silent())
    ours, theirs = record.settings
    assert (ours.runtime, theirs.runtime) == ("onnxruntime", "openvino")
    assert [timing.file for timing in ours.timings] == [timing.file for timing in theirs.timings]
    assert all(timing.median_ms > 0 and timing.load_ms > 0 and timing.peak_memory_bytes for timing in theirs.timings)
    assert ours.profiles
    assert not theirs.profiles
    assert "openvino" in record.machine.versions
    page, text = render_page(record), render_markdown(record)
    assert all("OpenVINO, CPU, 1 thread, batch 1" in shown for shown in (page, text))
    assert "from ONNX Runtime alone" in page


def test_a_runtime_that_is_not_installed_is_one_sentence(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVino, "providers", lambda self: [])
    with pytest.raises(InputError, match="OpenVINO is not installed here: pip install openvino"):
        benchmark_files(files[:2], BenchmarkSettings(runtimes=("openvino",)), Silent())
