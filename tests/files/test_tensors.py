"""Files of tensors and texts: equal ones are equal byte by byte, and what was altered is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from compressor.errors import InputError
from compressor.files.tensors import read_tensors, write_tensors

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7), "größe": torch.zeros(0, 2)}
TEXTS = {name: f'{name} "and" \\ more ümlaut' for name in ("layers", "input_shape", "arch", "zero", "size")}
WRITE = """
import sys
from tests.files.test_tensors import TENSORS, TEXTS
from compressor.files.tensors import write_tensors
write_tensors(__import__("pathlib").Path(sys.argv[1]), TENSORS, TEXTS)
"""


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, TEXTS)
    tensors, texts = read_tensors(path, "file")
    assert texts == TEXTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) > set(TEXTS)


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """safetensors has the texts in another order each time."""
    for number in range(3):
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / str(number))], check=True)
    first, *others = ((tmp_path / str(number)).read_bytes() for number in range(3))
    assert all(other == first for other in others)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, TEXTS)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="it was altered"):
        read_tensors(path, "file")
