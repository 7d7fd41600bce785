"""Wrong options: one sentence each, without a traceback."""

import pytest
import torch

from tests.cli.outcomes import SMALL


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--gamma", ["0", "-1", "nan", "inf", "much", ""]),
        ("--delta", ["0", "0%", "-5%", "nan", "inf%", "some", "%"]),
        ("--epsilon", ["0", "1", "2", "x"]),
        ("--certificate", ["none", "both"]),
        ("--acquisition", ["lcb", ""]),
        ("--prune", ["1", "-0.1", "nan", "all"]),
        ("--std", ["0,1,1", "1,-1,1", "1,1", "a,b,c", "nan,1,1"]),
        ("--mean", ["1", "1,2,3,4", "inf,0,0"]),
        ("--input-size", ["0", "-32", "7", "1.5", "large"]),
        ("--samples", ["0", "1"]),
        ("--max-images", ["3", "-1"]),
        ("--max-evaluations", ["0"]),
        ("--max-seconds", ["0", "-1"]),
        ("--seed", ["-1", "x"]),
        ("--threads", ["0", "9" * 5000]),
        ("--batch-size", ["0"]),
        ("--form", ["product"]),
        ("--method", ["svd", ""]),
        ("--factors", ["plan", "truncated"]),
        ("--calibration", ["-1", "many"]),
        ("--rank-multiple", ["0", "-8", "1.5", "257", "some"]),
    ],
)
def test_values_out_of_range(refuse, squeezenet, option, values):
    # A value that slips through meets the layers that do not exist, long before a search.
    for value in values:
        sentence = refuse("bocompress-export", squeezenet, *SMALL, "--layers=none", f"{option}={value}")
        assert option in sentence, f"{option}={value}"


@pytest.mark.parametrize("option", ["--delta=5%%", "--epsilon=nan", "--max-seconds=nan"])
def test_values_that_are_no_numbers(refuse, squeezenet, option):
    assert option.split("=")[0] in refuse(
        "bocompress-export", squeezenet, *SMALL, "--max-images=4", "--layers=none", option
    )


def test_layers_that_do_not_exist(refuse, squeezenet, digit_images):
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--layers", "layer9*")
    assert "'layer9*' matches no layer" in sentence
    assert "'nothing' matches no layer" in refuse("bocompress", "inspect", squeezenet, "--skip", "nothing")
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--skip", "*")
    assert "no layer is left to compress" in sentence


@pytest.mark.parametrize("device", ["no such", "cuda:99"])
def test_a_device_that_is_not_there(refuse, squeezenet, digit_images, device):
    sentence = refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--device", device)
    assert repr(device) in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(refuse, squeezenet, digit_images):
    assert "'cuda'" in refuse("bocompress-export", squeezenet, "--data", digit_images, *SMALL, "--device", "cuda")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "int8", "--opset", 11), "--precision int8 needs --opset 13 or above"),
        (("--static-batch", 4, "--batch-size", 2), "--static-batch and --batch-size contradict each other"),
        (("--factors", "refit", "--calibration", 0), "--calibration must be above 0"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(refuse, tmp_path, options, words):
    (model := tmp_path / "text.pt").write_text("not a network\n")
    for command in (("bocompress-export", model), ("bocompress", "apply", model, tmp_path / "missing.json")):
        assert words in refuse(*command, *options)


def test_a_risk_without_images_is_refused_at_once(refuse, tmp_path):
    (model := tmp_path / "text.pt").write_text("not a network\n")
    assert "--fidelity risk needs labels" in refuse("bocompress-export", model, "--fidelity", "risk")
