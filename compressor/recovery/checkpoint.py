"""Checkpoints of a fine-tuning: one file with tensors in groups and a state in JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.errors import InputError
from compressor.files.tensors import read_tensors, write_tensors

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next epoch depends on.

    Attributes:
        about: what the run depends on; a checkpoint is continued by the same run only.
        state: JSON values.
        tensors: by group, and within it by name; on the CPU after reading.
    """

    about: Mapping[str, Any]
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensors]

    def write(self, path: Path) -> None:
        """Write it to `path`, whole or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        tensors = {
            f"{group}/{name}": value.cpu().contiguous()
            for group, values in self.tensors.items()
            for name, value in values.items()
        }
        content = json.dumps({"about": self.about, **self.state})
        write_tensors(path, tensors, {"state": content})


def read_progress(path: Path, about: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        InputError: it is no checkpoint, or one of a run that is about something else.
    """
    flat, texts = read_tensors(path, "checkpoint of a fine-tuning")
    state = json.loads(texts["state"])
    _require_same(state.pop("about", None), about, path)
    tensors: dict[str, Tensors] = {}
    for key, value in flat.items():
        group, _, name = key.partition("/")
        tensors.setdefault(group, {})[name] = value
    return Checkpoint(about, state, tensors)


def _require_same(stored: Any, about: Mapping[str, Any], path: Path) -> None:
    stored = stored if isinstance(stored, dict) else {}
    now = json.loads(json.dumps(about))  # as it would be read: tuples become lists
    different = sorted(key for key in {*stored, *now} if stored.get(key) != now.get(key))
    if different:
        raise InputError(f"{path} was written with other {', '.join(different)}; --resume needs the same")
