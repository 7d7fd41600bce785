"""Flows of two networks: how far their ends are apart."""

import pytest
import torch

from compressor.fidelity.structured.flow import FlowEvaluation


def test_distances_are_of_the_ends_in_pixels() -> None:
    found = FlowEvaluation()
    original = torch.zeros(1, 2, 2, 2)
    original[:, 0] = 3.0
    moved = original.clone()
    moved[0, :, 0, 0] += torch.tensor([3.0, 4.0])
    found.add(original, moved)
    found.add(2 * original, 2 * original)
    record = found.record()
    assert record.images == 2
    assert record.length == pytest.approx(4.5)
    assert record.moved == pytest.approx(5 / 8)
    assert record.near == pytest.approx(7 / 8)
