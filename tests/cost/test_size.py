"""Sizes: bytes and parameters."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from compressor.cost.size import count_nonzero_params, count_params, file_bytes, gzip_bytes


def test_file_bytes_is_the_length_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(12345))
    assert file_bytes(path) == 12345


def test_gzip_bytes_is_what_gzip_would_write(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    content = np.random.default_rng(0).integers(0, 7, 3_000_000, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    assert abs(gzip_bytes(path) - len(gzip.compress(content, compresslevel=6, mtime=0))) <= 64


def test_gzip_bytes_depends_on_content_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "a much longer name.bin"
    first.write_bytes(b"weights" * 1000)
    second.write_bytes(b"weights" * 1000)
    os.utime(second, (1, 1))
    assert gzip_bytes(first) == gzip_bytes(second)


def test_zeroed_weights_show_in_the_gzipped_size_only(tmp_path: Path) -> None:
    dense, pruned = tmp_path / "dense.bin", tmp_path / "pruned.bin"
    weights = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    dense.write_bytes(weights.tobytes())
    pruned.write_bytes(np.where(np.abs(weights) < 1, np.float32(0), weights).tobytes())
    assert file_bytes(dense) == file_bytes(pruned)
    assert gzip_bytes(pruned) < 0.7 * gzip_bytes(dense)


def test_an_empty_file_still_has_a_gzip_frame(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert (file_bytes(path), gzip_bytes(path)) == (0, 20)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        gzip_bytes(tmp_path / "none")


def test_params_of_resnet18() -> None:
    model = torchvision.models.resnet18()
    assert count_params(model) == 11_689_512
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model.fc.weight[:10] = 0.0
    assert count_nonzero_params(model) == 11_689_512 - 10 * 512


def test_a_shared_parameter_counts_once() -> None:
    layer = nn.Linear(3, 3)
    assert count_params(nn.Sequential(layer, layer)) == 12
