"""A file may be off the network by what the network's own rounding explains."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.errors import VerificationError
from compressor.report.structured.wording import describe_export_check
from exporters.onnx import export_onnx
from exporters.verify import VERIFY_IMAGES, verify_onnx


def test_what_torch_itself_rounds_is_allowed(tmp_path: Path) -> None:
    """Outputs are small differences of large numbers; the file's weights are off in the last digit, as other kernels'
    sums are."""
    torch.manual_seed(0)
    images = 1 + 1e-3 * torch.randn(VERIFY_IMAGES, 3, 8, 8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval().requires_grad_(False)
    network[1].weight.mul_(300)
    network[1].bias.copy_(-network[1].weight.sum(1))
    other = copy.deepcopy(network)
    other[1].weight.mul_(1 + 1e-7 * torch.randn(5, 192))
    export_onnx(other, images[:2], tmp_path / "other.onnx", {})
    record = verify_onnx(tmp_path / "other.onnx", network, images, tolerance=1e-6)
    assert record.rounding is not None
    assert 1e-6 < record.max_rel_error <= record.tolerance == pytest.approx(4 * record.rounding)
    assert "since torch's own outputs round by" in describe_export_check(record)
    other[1].weight.mul_(1.001)
    export_onnx(other, images[:2], tmp_path / "wrong.onnx", {})
    with pytest.raises(VerificationError, match="does not compute what the torch network computes"):
        verify_onnx(tmp_path / "wrong.onnx", network, images, tolerance=1e-6)
