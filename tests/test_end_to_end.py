"""Whole runs on a trained network: files, figures checked by independent means, kill and resume, the API."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmarks.records import BenchmarkRecord
from compressor import apply_plan, compress
from compressor.data.folders import load_folder
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.checkpoint import Transform
from compressor.pipeline.compress import Settings
from compressor.pipeline.plan import Plan
from compressor.report.formatting import format_bytes, format_count, format_factor, format_number, format_percent
from compressor.report.records import Report
from compressor.search.objective import default_gamma
from compressor.search.optimizer import SearchSettings

FILES = {"compressed.safetensors", "model.onnx", "original.onnx", "plan.json", "report.html", "report.json"}
SEED = 3


class Run(NamedTuple):
    """A finished run: what it printed, what it wrote."""

    stdout: str
    stderr: str
    folder: Path
    report: Report
    plan: Plan


@pytest.fixture(scope="module")
def run(digits, run_command, tmp_path_factory) -> Run:
    """The command that the README promises, on the digits, in a process of its own.

    With the weights' own factors: those fitted to images take a minute for layers of this width, and are tested on the
    small network below.
    """
    folder = tmp_path_factory.mktemp("run") / "out"
    done = run_command(
        "bocompress-export",
        digits.checkpoint,
        *("--data", digits.images, "--input-size", 32, "--layers", "layer4.1*,*downsample*,fc", "--samples", 20),
        *("--max-evaluations", 20, "--epsilon", 0.02, "--seed", SEED, "--out", folder),
        *("--method", "spatial", "--factors", "weight", "--no-recalibrate"),
    )
    assert done.returncode == 0, done.stderr
    report = Report.model_validate_json((folder / "report.json").read_text())
    plan = Plan.model_validate_json((folder / "plan.json").read_text())
    return Run(done.stdout, done.stderr, folder, report, plan)


@pytest.fixture(scope="module")
def pictures(digits) -> tuple[np.ndarray, np.ndarray]:
    """The folder's images as inputs and their labels, prepared by other means than the program's."""
    files = sorted(digits.images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float32) / 255 for file in files])
    inputs = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    labels = np.array([int(file.parent.name) for file in files])
    return inputs.transpose(0, 3, 1, 2).astype(np.float32), labels


@pytest.fixture(scope="module")
def halves(digits):
    """The images that the search saw, and those it did not; none to fit factors on."""
    images = load_folder(digits.images, Transform(32, 32), 1500, SEED)
    return images.split(0, SEED)[1].split(60, SEED)


@pytest.fixture(scope="module")
def test_images(halves):
    return halves[1]


def infer(path: Path, inputs: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def rebuild(folder: Path, model: nn.Module, plan: Plan) -> nn.Module:
    """The compressed network from compressed.safetensors and the plan's layer names alone."""
    weights = load_file(folder / "compressed.safetensors")
    for layer in plan.layers:
        if layer.rank is None:
            continue
        original = model.get_submodule(layer.name)
        first, second = weights[f"{layer.name}.0.weight"], weights[f"{layer.name}.1.weight"]
        if isinstance(original, nn.Linear):
            parts = [nn.Linear(first.shape[1], layer.rank, bias=False), nn.Linear(layer.rank, second.shape[0])]
        else:
            (rows, columns), (down, right) = original.kernel_size, original.stride
            top, left = original.padding
            parts = [
                nn.Conv2d(first.shape[1], layer.rank, (rows, 1), (down, 1), (top, 0), bias=False),
                nn.Conv2d(layer.rank, second.shape[0], (1, columns), (1, right), (0, left), bias=False),
            ]
        model.set_submodule(layer.name, nn.Sequential(*parts))
    model.load_state_dict(weights, strict=True)
    return model.eval()


# --- What a run leaves behind ------------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_nothing_else(run, digits):
    assert {path.name for path in run.folder.iterdir()} == FILES | {
        "plans",
        "factors.jsonl",
        "search.jsonl",
        "infer.py",
    }
    assert sorted(path.name for path in digits.checkpoint.parent.iterdir()) == ["digits.pt", "images"]
    assert all(path.stat().st_size > 0 for path in run.folder.iterdir())


def test_files_can_be_read_by_everyone_who_may_read_the_others(run):
    assert len({oct(path.stat().st_mode) for path in run.folder.rglob("*") if path.is_file()}) == 1


def test_the_table_is_on_stdout_and_progress_on_stderr(run):
    report = run.report
    for pair in (report.params, report.macs, report.onnx_bytes):
        assert f"{pair.original:,}" in run.stdout
        assert f"{pair.compressed:,}" in run.stdout
    assert "searching ranks" in run.stderr
    assert "searching ranks" not in run.stdout
    assert "Traceback" not in run.stderr


def test_report_has_every_promised_field(run):
    raw = json.loads((run.folder / "report.json").read_text())
    assert raw["arch"] == "resnet18"
    assert isinstance(raw["gamma"], float)
    assert isinstance(raw["ratio"], float)
    for field in ("params", "macs", "onnx_bytes"):
        assert raw[field].keys() == {"original", "compressed"}
    assert raw["latency"]
    for row in raw["latency"].values():
        assert {"original_ms", "compressed_ms", "ratio"} <= row.keys()
    assert {"function_norm", "stderr", "relative"} <= raw["fidelity"].keys()
    assert {"max_abs_error", "max_rel_error", "top1_agreement"} <= raw["export_check"].keys()
    assert {"evaluations", "image_passes", "seconds", "certificate"} <= raw["search"].keys()
    assert {"pointwise", "joint", "delta", "epsilon", "asked", "met"} <= raw["search"]["certificate"].keys()
    assert all({"name", "kind", "method", "rank", "break_even_rank"} <= layer.keys() for layer in raw["layers"])
    assert raw["top1"].keys() == {"original", "compressed"}
    assert "bocompress-export" in raw["command"]
    assert "--layers" in raw["command"]


def test_plan_and_report_agree(run):
    reported = {layer.name: layer for layer in run.report.layers}
    assert [layer.name for layer in run.plan.layers] == [
        layer.name for layer in run.report.layers if layer.skipped is None
    ]
    assert [layer.name for layer in run.plan.layers if layer.method == "spatial"] == [
        "layer4.1.conv1",
        "layer4.1.conv2",
    ]
    assert [layer.name for layer in run.plan.layers if layer.method == "svd"] == [
        *(f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)),
        "fc",
    ]
    assert any(layer.rank is not None for layer in run.plan.layers)
    for layer in run.plan.layers:
        assert (layer.rank, layer.break_even_rank, layer.method) == (
            reported[layer.name].rank,
            reported[layer.name].break_even_rank,
            reported[layer.name].method,
        )
        assert layer.rank is None or layer.rank <= layer.break_even_rank
        assert layer.factors == "weight"
        assert reported[layer.name].factors == ("weight" if layer.rank else None)


def test_onnx_computes_what_the_rebuilt_torch_network_computes(run, pictures):
    from torchvision.models import resnet18

    network = rebuild(run.folder, resnet18(num_classes=10), run.plan)
    for count in (1, 7):
        with torch.inference_mode():
            expected = network(torch.from_numpy(pictures[0][:count])).numpy()
        found = infer(run.folder / "model.onnx", pictures[0][:count])
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_original_onnx_computes_what_the_checkpoint_computes(run, digits, pictures):
    with torch.inference_mode():
        expected = digits.model(torch.from_numpy(pictures[0][:5])).numpy()
    found = infer(run.folder / "original.onnx", pictures[0][:5])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_sizes_are_those_of_the_files(run, digits):
    for name, figure in (("original", run.report.onnx_bytes.original), ("model", run.report.onnx_bytes.compressed)):
        assert (run.folder / f"{name}.onnx").stat().st_size == figure
    weights = load_file(run.folder / "compressed.safetensors")
    num_weights = sum(
        tensor.numel() for name, tensor in weights.items() if not name.endswith(("mean", "var", "num_batches_tracked"))
    )
    assert num_weights == run.report.params.compressed
    assert sum(parameter.numel() for parameter in digits.model.parameters()) == run.report.params.original
    # Batch norm may be folded in both files; what factorizing saves is the same either way.
    stored = [
        sum(int(np.prod(tensor.dims)) for tensor in onnx.load(run.folder / f"{name}.onnx").graph.initializer)
        for name in ("original", "model")
    ]
    saved = run.report.params.original - run.report.params.compressed
    assert stored[0] - stored[1] == pytest.approx(saved, rel=0.01)


def test_ratio_is_that_of_the_weights_in_the_files(run, digits):
    weights = load_file(run.folder / "compressed.safetensors")
    original = compressed = 0
    for layer in run.plan.layers:
        original += digits.model.get_submodule(layer.name).weight.numel()
        names = [f"{layer.name}.weight"] if layer.rank is None else [f"{layer.name}.{i}.weight" for i in (0, 1)]
        compressed += sum(weights[name].numel() for name in names)
    assert run.report.ratio == pytest.approx(compressed / original)
    assert run.report.ratio < 1


def test_fidelity_and_top1_are_those_of_the_onnx_files(run, test_images):
    inputs = test_images.batch(slice(0, len(test_images))).numpy()
    before, after = (infer(run.folder / f"{name}.onnx", inputs) for name in ("original", "model"))
    losses = ((after - before).astype(np.float64) ** 2).sum(1)
    fidelity = run.report.fidelity
    assert fidelity.images == len(losses) == 60
    assert fidelity.function_norm == pytest.approx(losses.mean(), rel=1e-3)
    assert fidelity.stderr == pytest.approx(losses.std(ddof=1) / np.sqrt(len(losses)), rel=1e-3)
    energy = (before.astype(np.float64) ** 2).sum(1).mean()
    assert fidelity.output_energy == pytest.approx(energy, rel=1e-3)
    assert fidelity.relative == pytest.approx(losses.mean() / energy, rel=1e-3)
    assert fidelity.top1_agreement == (before.argmax(1) == after.argmax(1)).mean()
    labels = test_images.labels.numpy()
    assert run.report.top1.original == pytest.approx((before.argmax(1) == labels).mean())
    assert run.report.top1.compressed == pytest.approx((after.argmax(1) == labels).mean())
    assert run.report.top1.original > 0.6
    change = run.report.top1_change
    assert (change.lost, change.gained) == (
        ((before.argmax(1) == labels) & (after.argmax(1) != labels)).sum(),
        ((before.argmax(1) != labels) & (after.argmax(1) == labels)).sum(),
    )
    assert change.low <= run.report.top1.compressed - run.report.top1.original <= change.high


def test_images_are_prepared_as_the_network_expects(test_images, pictures):
    """The figures above rest on the program's own images: each is one of the folder's, with its label."""
    found = test_images.batch(slice(0, len(test_images))).numpy()
    distances = np.abs(found[:, None] - pictures[0][None]).reshape(len(found), len(pictures[0]), -1).max(2)
    assert distances.min(1).max() < 1e-5
    assert (pictures[1][distances.argmin(1)] == test_images.labels.numpy()).all()


def highest_ranks(rows):
    """The journal's numbers for dense layers: single-layer sensitivities leave all layers but one dense."""
    return np.max([row["ranks"] for row in rows], axis=0).tolist()


def test_search_is_reported_as_it_was_journaled(run):
    header, *lines = [json.loads(line) for line in (run.folder / "search.jsonl").read_text().splitlines()]
    search = run.report.search
    assert header["gamma"] == run.report.gamma
    rows, models = ([line for line in lines if ("passes" in line) is is_model] for is_model in (False, True))
    assert search.image_passes == sum(len(row["images"]) for row in rows) + sum(model["passes"] for model in models)
    evaluations = [row for row in rows if row["source"] not in ("sensitivity", "refinement", "racing")]
    history = [record for record in search.history if record.source not in ("refinement", "racing")]
    assert len(search.history) - len(history) <= len(models)  # all evaluations of a refined plan, as one
    assert search.evaluations == len(history) == len(evaluations) <= 20
    dense = highest_ranks(rows)
    for row, record in zip(evaluations, history, strict=True):
        ranks = [rank or last for rank, last in zip(record.ranks, dense, strict=True)]
        assert (row["ranks"], row["source"]) == (ranks, record.source)
        assert row["objective"] == record.objective
        losses = np.array(row["losses"])
        assert row["function_norm"] == pytest.approx(losses.mean())
        assert row["variance"] == pytest.approx(losses.var(ddof=1) / len(losses))
        assert record.objective == pytest.approx(-run.report.gamma * losses.mean() - row["ratio"])
    assert [layer.rank for layer in run.plan.layers] in [record.ranks for record in search.history]
    certificate = search.certificate
    assert certificate.asked == "joint"
    assert certificate.joint is not None
    assert certificate.joint.upper <= certificate.epsilon or not certificate.met
    assert certificate.pointwise <= certificate.epsilon or not certificate.met
    assert certificate.epsilon == 0.02
    assert search.stopped_because


def test_journaled_losses_are_those_of_the_exported_network(run, halves):
    images = halves[0]
    lines = [json.loads(line) for line in (run.folder / "search.jsonl").read_text().splitlines()[1:]]
    rows = [line for line in lines if "ranks" in line]
    chosen = [layer.rank or last for layer, last in zip(run.plan.layers, highest_ranks(rows), strict=True)]
    row = next(row for row in rows if row["ranks"] == chosen)
    inputs = images.batch(row["images"]).numpy()
    before, after = (infer(run.folder / f"{name}.onnx", inputs) for name in ("original", "model"))
    assert np.allclose(((after - before) ** 2).sum(1), row["losses"], rtol=1e-2)


def test_default_gamma_follows_the_networks_outputs(run, halves):
    outputs = infer(run.folder / "original.onnx", halves[0].batch(slice(0, 60)).numpy())
    assert run.report.gamma == pytest.approx(default_gamma(float((outputs**2).sum(1).mean())), rel=1e-3)


def test_onnx_carries_where_it_came_from(run):
    metadata = {row.key: row.value for row in onnx.load(run.folder / "model.onnx").metadata_props}
    assert "resnet18" in metadata.values()
    assert run.report.version in metadata.values()
    assert repr(run.report.gamma) in metadata.values()
    ranks = {layer.name: layer.rank for layer in run.plan.layers if layer.rank is not None}
    assert ranks in [json.loads(value) for value in metadata.values() if value.startswith("{")]
    assert "resnet18" in {row.value for row in onnx.load(run.folder / "original.onnx").metadata_props}


def test_latency_and_parity_make_sense(run):
    assert "CPUExecutionProvider" in run.report.latency
    for row in run.report.latency.values():
        assert 0 < row.original_ms <= row.original_p90_ms <= row.original_p99_ms
        assert 0 < row.compressed_ms <= row.compressed_p90_ms <= row.compressed_p99_ms
        assert 0 < row.ratio_low <= row.ratio <= row.ratio_high
        assert len(row.original_samples_ms) == len(row.compressed_samples_ms) == row.runs
        assert row.original_ms == pytest.approx(np.median(row.original_samples_ms), rel=1e-3)
    assert 0 <= run.report.export_check.max_rel_error <= run.report.export_check.tolerance
    assert len(run.report.export_check.batch_sizes) >= 2
    assert run.report.export_check.top1_agreement == 1


def test_the_page_shows_the_key_figures(run):
    page, report = (run.folder / "report.html").read_text(), run.report
    sizes = report.onnx_bytes
    for figure in (
        "resnet18",
        format_bytes(sizes.original),
        format_bytes(sizes.compressed),
        format_factor(sizes.compressed / sizes.original, "smaller", "larger"),
        format_count(report.macs.compressed),
        format_number(report.fidelity.function_norm),
        format_percent(report.fidelity.top1_agreement),
        format_percent(report.top1.compressed),
        *(layer.name for layer in run.plan.layers),
    ):
        assert figure in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page


# --- The other commands on what a run left -----------------------------------------------------------------


def test_report_writes_the_same_page_again(run, invoke, tmp_path):
    shutil.copy(run.folder / "report.json", tmp_path)
    result = invoke("bocompress", "report", tmp_path)
    assert result.exit_code == 0
    assert (tmp_path / "report.html").read_text() == (run.folder / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}
    assert result.stdout.strip() == str(tmp_path / "report.html")


def test_benchmark_measures_two_files_and_one(run, invoke):
    both = [run.folder / "original.onnx", run.folder / "model.onnx"]
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    result = invoke("bocompress", "benchmark", *both, "--input-size", 32, "--json")
    assert result.exit_code == 0, result.output
    record = BenchmarkRecord.model_validate_json(result.stdout)
    assert [file.onnx_bytes for file in record.files] == list(run.report.onnx_bytes.model_dump().values())
    assert [file.gzip_bytes for file in record.files] == list(run.report.gzip_bytes.model_dump().values())
    assert all(timing.median_ms > 0 for setting in record.settings for timing in setting.timings)
    alone = invoke("bocompress", "benchmark", both[1], "--input-size", 32)
    assert alone.exit_code == 0
    assert format_bytes(record.files[1].onnx_bytes) in alone.stdout
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_apply_plan_gives_the_run_again(run, digits, test_images, pictures, tmp_path):
    """From Python, with the torchvision network itself in place of its checkpoint."""
    result = apply_plan(
        digits.model, test_images, run.plan, tmp_path / "again", Settings(factors=None, recalibrate=False)
    )
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES
    first, again = (infer(folder / "model.onnx", pictures[0]) for folder in (run.folder, tmp_path / "again"))
    assert np.abs(first - again).max() <= 1e-6 * np.abs(first).max()
    with torch.inference_mode():
        outputs = result.model(torch.from_numpy(pictures[0])).numpy()
    assert np.abs(first - outputs).max() <= 1e-4 * np.abs(first).max()
    assert result.report.search is None
    assert result.report.ratio == run.report.ratio
    assert result.report.params == run.report.params
    assert result.report.macs == run.report.macs
    assert result.report.gamma == run.report.gamma


# --- A small network: the same seed, kill and resume -------------------------------------------------------

# A delta and an epsilon so small that only the number of evaluations ends the search.
LONG = ("--max-evaluations", 30, "--samples", 6, "--candidates", 2, "--delta", 1e-6, "--epsilon", 1e-9)


@pytest.fixture(scope="module")
def tiny_run(tiny_checkpoint, digit_images, invoke, tmp_path_factory) -> Path:
    """A search without interruption, by one worker."""
    folder = tmp_path_factory.mktemp("tiny-run") / "out"
    result = invoke("bocompress-export", *tiny_arguments(tiny_checkpoint, digit_images, folder))
    assert result.exit_code == 0, result.output
    return folder


def tiny_arguments(checkpoint: Path, images: Path, out: Path) -> list[object]:
    return [checkpoint, "--trust-pickle", "--data", images, "--input-size", 32, *LONG, "--out", out]


def test_a_search_of_two_workers_killed_goes_on_as_if_nothing_had_happened(
    tiny_run, tiny_checkpoint, digit_images, start_command, invoke, tmp_path
):
    out = tmp_path / "out"
    journal = out / "search.jsonl"
    expected = (tiny_run / "search.jsonl").read_text()
    arguments = tiny_arguments(tiny_checkpoint, digit_images, out)
    process = start_command("bocompress-export", *arguments, "--workers", 2)
    try:
        # After the sensitivities of single layers, in the middle of the plans.
        middle = len(expected.splitlines()) - 25
        while process.poll() is None and not (journal.exists() and journal.read_text().count("\n") >= middle):
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = journal.read_text()
    assert middle <= left.count("\n") < expected.count("\n")
    assert {path.name for path in out.iterdir()} == {"factors.jsonl", "search.jsonl"}
    # The last row may have been cut in two.
    journal.write_text(left + '{"evaluation": 99, "ran')
    result = invoke("bocompress-export", *arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert journal.read_text() == expected
    assert (out / "plan.json").read_text() == (tiny_run / "plan.json").read_text()
    first, again = (Report.model_validate_json((f / "report.json").read_text()).search for f in (tiny_run, out))
    assert again.history == first.history
    assert (again.evaluations, again.image_passes) == (first.evaluations, first.image_passes)
    assert again.certificate == first.certificate


def test_a_resumed_search_needs_as_many_candidates_at_once(tiny_run, tiny_checkpoint, digit_images, invoke):
    arguments = tiny_arguments(tiny_checkpoint, digit_images, tiny_run)
    result = invoke("bocompress-export", *arguments, "--candidates", 3, "--resume")
    assert result.exit_code == 2
    assert "was written with other search settings; --resume needs the same" in result.stderr


def test_an_unknown_backend_is_refused_before_the_search(tiny_checkpoint, digit_images, invoke, tmp_path):
    arguments = tiny_arguments(tiny_checkpoint, digit_images, tmp_path / "out")
    result = invoke("bocompress-export", *arguments, "--workers", 2, "--backend", "nobody")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: --backend nobody cannot be used")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(tiny_checkpoint, digit_images, invoke, tmp_path, monkeypatch):
    journal = tmp_path / "out" / "search.jsonl"
    losses = FunctionNorm.losses

    def interrupt(*arguments):
        if journal.exists() and journal.read_text().count("\n") >= 4:
            signal.raise_signal(signal.SIGINT)
        return losses(*arguments)

    monkeypatch.setattr(FunctionNorm, "losses", interrupt)
    monkeypatch.setattr(sys, "argv", ["/bin/bocompress-export", "my model.pt", "--data", "photos", "--overwrite"])
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell ignore it
    try:
        result = invoke("bocompress-export", *tiny_arguments(tiny_checkpoint, digit_images, tmp_path / "out"))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-2:] == [
        f"stopped; {journal} is kept, go on with:",
        "bocompress-export 'my model.pt' --data photos --resume",
    ]
    assert journal.read_text().count("\n") >= 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"search.jsonl", "factors.jsonl"}


def test_apply_gives_a_run_again_from_its_plan(tiny_run, tiny_checkpoint, digit_images, invoke, pictures, tmp_path):
    result = invoke(
        "bocompress",
        *("apply", tiny_checkpoint, tiny_run / "plan.json", "--trust-pickle", "--data", digit_images),
        *("--input-size", 32, "--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"infer.py"}
    first, again = (infer(folder / "model.onnx", pictures[0]) for folder in (tiny_run, tmp_path / "out"))
    assert np.abs(first - again).max() <= 1e-6 * np.abs(first).max()
    plans = [Plan.model_validate_json((f / "plan.json").read_text()) for f in (tiny_run, tmp_path / "out")]
    assert [(row.name, row.rank) for row in plans[0].layers] == [(row.name, row.rank) for row in plans[1].layers]
    reports = [Report.model_validate_json((f / "report.json").read_text()) for f in (tiny_run, tmp_path / "out")]
    assert reports[0].fidelity == reports[1].fidelity
    assert reports[1].search is None


def test_a_plan_edited_by_hand_is_applied(tiny_run, tiny_checkpoint, digit_images, invoke, tmp_path):
    plan = json.loads((tiny_run / "plan.json").read_text())
    edited = next(row for row in plan["layers"] if row["name"] == "4")
    edited.update(method="spatial", rank=7 if edited["rank"] != 7 else 8)
    removed = plan["layers"].pop(0)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    result = invoke(
        "bocompress",
        *("apply", tiny_checkpoint, tmp_path / "plan.json", "--trust-pickle", "--data", digit_images),
        *("--input-size", 32, "--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    shapes = {row.name: list(row.dims) for row in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}.values()
    assert [edited["rank"], 32, 3, 1] in shapes
    assert [32, edited["rank"], 1, 3] in shapes
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    (row,) = [layer for layer in report.layers if layer.name == removed["name"]]
    assert (row.rank, row.skipped) == (None, "not in the plan")


# --- Options that change what is done ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_run(tiny_checkpoint, invoke, tmp_path_factory):
    """Synthetic images, Tucker-2, Eq. (2) and pruning in one run."""
    folder = tmp_path_factory.mktemp("odd-run") / "out"
    result = invoke(
        "bocompress-export",
        *(tiny_checkpoint, "--trust-pickle", "--max-images", 24, "--input-size", 32, "--samples", 6),
        *("--method", "tucker", "--form", "rate", "--prune", 0.2, "--gamma", 100, "--max-evaluations", 3),
        *("--skip", "0", "--out", folder),
    )
    assert result.exit_code == 0, result.output
    return result, folder, Report.model_validate_json((folder / "report.json").read_text())


def test_without_data_images_are_synthetic_and_one_line_says_so(odd_run):
    result, _, report = odd_run
    (line,) = [line for line in result.stderr.splitlines() if "images are synthetic" in line]
    assert "no --data given" in line
    assert report.images.search + report.images.test_images == 24
    assert not report.images.labelled
    assert report.top1 is None
    assert any("no --data given" in warning for warning in report.warnings)


def test_rate_warns(odd_run):
    result, _, report = odd_run
    assert report.form == "rate"
    assert "unbounded" in result.stderr
    assert any("unbounded" in warning for warning in report.warnings)
    for row in report.search.history:
        assert row.objective == pytest.approx(-100 * row.function_norm + 1 / row.ratio)


def test_tucker_is_used_where_it_applies(odd_run):
    _, folder, report = odd_run
    methods = {layer.name: layer.method for layer in report.layers if layer.skipped is None}
    assert methods == {"2": "tucker", "4": "tucker", "8": "svd", "10": "svd"}
    for name in ("2", "4"):
        (layer,) = [layer for layer in report.layers if layer.name == name]
        assert layer.break_even_rank is not None
        if layer.rank is not None:
            parts = [key for key in load_file(folder / "compressed.safetensors") if key.startswith(f"{name}.")]
            assert sum(key.endswith("weight") for key in parts) == 3
    assert {layer.name for layer in report.layers if layer.skipped} == {"0"}


def test_pruning_leaves_a_fifth_of_all_weights_zero(odd_run):
    _, folder, report = odd_run
    weights = [t for name, t in load_file(folder / "compressed.safetensors").items() if name.endswith("weight")]
    zeros, total = sum(int((t == 0).sum()) for t in weights), sum(t.numel() for t in weights)
    assert zeros == pytest.approx(0.2 * total, abs=1)
    assert report.prune_fraction == 0.2
    assert report.params.compressed - report.nonzero_params.compressed == zeros
    kept = min(float(t[t != 0].abs().min()) for t in weights)
    assert kept > 0
    exported = [
        onnx.numpy_helper.to_array(row)
        for row in onnx.load(folder / "model.onnx").graph.initializer
        if len(row.dims) > 1
    ]
    assert sum(int((array == 0).sum()) for array in exported) == zeros


# --- The Python interface ----------------------------------------------------------------------------------


def test_compress_takes_any_network_and_any_batches(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inputs = [torch.randn(16, 20) for _ in range(5)]
    batches = [(x, network(x).argmax(1)) for x in inputs]  # labels that say nothing are not used
    settings = Settings(method="spatial", search=SearchSettings(max_evaluations=12, samples=10))
    result = compress(network, iter(batches), tmp_path / "out", settings)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"plans", "factors.jsonl", "search.jsonl"}
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    x = batches[0][0]
    with torch.inference_mode():
        expected = result.model(x).numpy()
    assert np.allclose(infer(tmp_path / "out" / "model.onnx", x.numpy()), expected, rtol=1e-4, atol=1e-5)
    images = result.report.images
    assert (images.calibration, images.search, images.test_images) == (24, 28, 28)
    assert result.report.top1 is not None
    assert result.report.arch == "Sequential"
    assert result.report.ratio == pytest.approx(
        sum(result.model.state_dict()[name].numel() for name in result.model.state_dict() if name.endswith("weight"))
        / (20 * 40 + 40 * 30 + 30 * 4)
    )
    again = compress(network, iter(batches), tmp_path / "again", settings)
    assert again.plan == result.plan
    assert again.report.search.history == result.report.search.history


def test_compress_needs_enough_images(tmp_path):
    from compressor.errors import InputError

    with pytest.raises(InputError, match="at least 4 images"):
        compress(nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4), tmp_path / "out")
    assert not (tmp_path / "out").exists()
