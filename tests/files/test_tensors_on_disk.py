"""Tensors come back from the disk as they were."""

import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compressor.files.tensors_on_disk import TensorsOnDisk, on_disk

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


def test_there_may_be_no_place_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    kept = TensorsOnDisk()
    with pytest.raises(OSError, match="none"):
        kept.append(WIDE)
    assert len(kept) == 0
    assert on_disk([WIDE])[0] is WIDE


def test_other_processes_and_threads_read_the_same() -> None:
    kept = on_disk([torch.full((300, 200), float(number)) for number in range(20)])
    assert isinstance(kept, TensorsOnDisk)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: kept[number % 20].unique().tolist(), range(200)))
    assert found == [[float(number % 20)] for number in range(200)]
    again = pickle.loads(pickle.dumps(kept))
    assert len(again) == 20
    assert all(torch.equal(again[number], kept[number]) for number in range(20))
    with pytest.raises(IndexError):
        again[20]


def test_many_lists_share_one_file() -> None:
    lists = [on_disk([torch.full((3, 2), float(number))]) for number in range(50)]
    assert len({id(kept._file) for kept in lists if isinstance(kept, TensorsOnDisk)}) == 1
    assert all(torch.equal(kept[0], torch.full((3, 2), float(number))) for number, kept in enumerate(lists))
