"""Whole runs on a trained network: files, and figures checked by independent means."""

import json

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from compressor.report.formatting import format_bytes, format_count, format_factor, format_number, format_percent
from compressor.search.objective import default_gamma
from tests.end_to_end.runs import FILES, infer, rebuild


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
