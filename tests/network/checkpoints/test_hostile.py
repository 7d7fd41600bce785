"""Checkpoints made to hang, to fill the memory or to confuse: each is refused in one sentence, or read as it is."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import squeezenet1_1

from compressor.errors import InputError, ShortageError
from compressor.network.checkpoint import load_model
from compressor.network.checkpoints import reading
from compressor.network.checkpoints.class_names import find_class_names
from compressor.network.checkpoints.contents import lay_out
from compressor.network.checkpoints.reading import read_checkpoint

CLASSES = 4


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(squeezenet1_1(num_classes=CLASSES).state_dict())


def saved(content: object, folder: Path) -> Path:
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


def shared(inside: object, levels: int) -> object:
    """A container that holds the same one nine times, and so on."""
    for _ in range(levels):
        inside = {str(number): inside for number in range(9)}
    return inside


def test_containers_that_share_their_content_are_counted_not_followed(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="hold one another in more than 100,000 ways"):
        lay_out(shared(weights, 12))
    assert set(lay_out({"model": weights, "more": shared([1, 2], 11)}).tensors) == {f"model.{name}" for name in weights}
    assert find_class_names(shared({"classes": [*"abcd"]}, 5), Path("/nowhere/model.pt"), CLASSES) is not None
    assert find_class_names(shared({}, 1000), Path("/nowhere/model.pt"), CLASSES) is None


def test_a_dict_that_holds_itself_is_looked_through_once(weights: dict[str, torch.Tensor]) -> None:
    content: dict[str, Any] = {"state_dict": weights}
    content["self"] = [content]
    assert set(lay_out(content).tensors) == {f"state_dict.{name}" for name in weights}


def test_weights_a_thousand_levels_down_are_not_looked_for(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    content: object = weights
    for _ in range(150):
        content = {"a": content}
    with pytest.raises(InputError, match="the entries a and no network weights"):
        load_model(saved(content, tmp_path))


def test_tensors_that_claim_what_they_do_not_store(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    claimed = {"1.weight": torch.zeros(1, 1).expand(10**9, 512), "1.bias": torch.zeros(1).expand(10**9)}
    with pytest.raises(InputError, match=r"'1.weight' of shape \[1000000000, 512\] repeats a few stored numbers"):
        load_model(saved({**weights, **claimed}, tmp_path))
    assert lay_out({"a": torch.zeros(1).expand(1000)}).tensors["a"].shape == (1000,)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_as_such(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])
    with pytest.raises(InputError, match=r"'classifier.1.bias' as a nested tensor"):
        load_model(saved({**weights, "classifier.1.bias": nested}, tmp_path))


def other_version(content: bytearray) -> None:
    content[content.rfind(b"PK\x01\x02") + 6] = 0xFF


def name_of_bad_bytes(content: bytearray) -> None:
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 9] |= 8  # says that the name is UTF-8
    content[entry + 46] = 0xFF


@pytest.mark.parametrize("damage", [other_version, name_of_bad_bytes])
def test_archives_of_other_versions_and_names(damage: Callable[[bytearray], None], tmp_path: Path) -> None:
    path = saved({"a": torch.ones(3)}, tmp_path)
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    with pytest.raises(InputError, match="its zip archive cannot be read"):
        read_checkpoint(path)


def test_an_archive_that_fills_the_memory_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_UNPACKED_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/data/0", bytes(10**7))
    with pytest.raises(InputError, match="would be unpacked to 10,000,0"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(InputError, match="it is no regular file, but a pipe or a device"):
        load_model(tmp_path / "model.pt")
    with pytest.raises(InputError, match="no regular file"):
        load_model(Path("/dev/zero"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_short_memory_is_no_damage(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    path = saved({"a": torch.ones(3)}, tmp_path)
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ShortageError, match="too little memory"):
        load_model(path)


def test_a_pickle_that_changes_what_cannot_be_changed_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02}}b.")  # the state of a dict
    with pytest.raises(InputError, match=r"model\.pt is damaged, or not a file of torch\.save"):
        load_model(tmp_path / "model.pt")


def test_class_numbers_of_thousands_of_digits_are_no_classes(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = {"9" * 5000: "a", "1": "b", "2": "c", "3": "d"}
    assert load_model(saved({"model": weights, "idx_to_class": names}, tmp_path)).class_names is None
