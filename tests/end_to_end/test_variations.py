"""Whole runs with options that change what is done, and from Python."""

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compressor import compress
from compressor.pipeline.compress import Settings
from compressor.report.records import Report
from compressor.search.optimizer import SearchSettings
from tests.end_to_end.runs import FILES, infer

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
