"""Tensors come back from the disk as they were."""

import pytest
import torch
from torch import Tensor

from compressor.files.tensors_on_disk import TensorsOnDisk

WIDE = torch.randn(2, 3, 4, 5)


@pytest.mark.parametrize(
    "tensor",
    [
        WIDE,
        WIDE.to(memory_format=torch.channels_last),
        WIDE[:, :, 1:3, ::2],
        WIDE.permute(3, 1, 0, 2),
        torch.randn(7).bfloat16(),
        torch.randn(()),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3),
    ],
)
def test_values_types_and_orders_in_memory_come_back(tensor: Tensor) -> None:
    kept = TensorsOnDisk()
    kept.append(torch.ones(3))
    with torch.inference_mode():
        kept.append(tensor.clone())
    kept.append(torch.ones(5))
    for _ in range(2):
        assert kept[1].dtype == tensor.dtype
        assert torch.equal(kept[1], tensor)
        assert kept[1].stride() == tensor.clone().stride()
        assert torch.equal(kept[2], torch.ones(5))
    assert len(kept) == 3


def test_what_is_read_may_be_changed() -> None:
    kept = TensorsOnDisk()
    kept.append(WIDE)
    kept[0].zero_()
    assert torch.equal(kept[0], WIDE)
