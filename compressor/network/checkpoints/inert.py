"""A reader of pickles that runs nothing of theirs: tensors, containers and numbers come through, all else is inert.

torch's own `weights_only` refuses a whole file for one path or configuration object in it. Here such an object becomes
an `Inert`, which accepts whatever the pickle does to it and only keeps it.
"""

import argparse
import collections
import io
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Inert:
    """Stands in for an object whose class is not loaded; keeps arguments, attributes and entries, and does nothing.

    Attributes:
        origin: the module and name of the class or function in the pickle.
        arguments: with which it was made.
        attributes: its state.
        entries: what was set by key, or added, under consecutive numbers.
    """

    origin = ""
    dump_patches = False  # torch's reader of old files asks module classes for it
    arguments: tuple[Any, ...]
    attributes: dict[Any, Any]
    entries: dict[Any, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        inert = super().__new__(cls)
        inert.arguments, inert.attributes, inert.entries = arguments, dict(named), {}
        return inert

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> "Inert":
        return type(self)(*arguments, **named)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            self.attributes.update(part if isinstance(part, Mapping) else {"state": part})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Keep an element of a list."""
        self.entries[len(self.entries)] = value

    def extend(self, values: Any) -> None:
        """Keep elements of a list."""
        for value in values:
            self.append(value)

    add = append


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """`codecs.encode`, which could import modules by the encoding's name, for those that pickle uses."""
    if encoding.lower().replace("-", "") not in ("latin1", "utf8", "ascii"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding}")
    return text.encode(encoding)


def _make_plain(kind: type, _base: object = None, _state: object = None) -> Any:
    """`copyreg._reconstructor`, for inert classes alone."""
    return kind() if isinstance(kind, type) and issubclass(kind, Inert) else Inert()


class _ArrayType(Inert):
    """A numpy dtype as text, for numbers, strings and dates alone: a real one could claim what its bytes are not."""

    order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def real(self) -> np.dtype | None:
        """The dtype; None where it is structured, or of objects."""
        code = str(self.arguments[0]) if self.arguments else ""
        if not re.fullmatch(r"[biufcSUMm]\d+|\?", code):
            return None
        return np.dtype(code).newbyteorder(">" if self.order == ">" else "<")


class InertArray(Inert):
    """A numpy array as it is unpickled: its values come with its state.

    Attributes:
        values: the array, or a list of its objects; None where its type is structured.
    """

    values: np.ndarray | list[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.values = data if isinstance(data, list) else _make_array(data, kind, shape, "F" if fortran else "C").values


def _numpy_scalar(kind: _ArrayType, data: bytes = b"") -> Any:
    """A plain number, string or date; an object as it is."""
    if not isinstance(data, bytes):
        return data
    real = kind.real()
    return None if real is None else np.frombuffer(data, real)[0].item()


def _make_array(data: Any, kind: _ArrayType, shape: tuple[int, ...], order: str = "C") -> InertArray:
    array = InertArray()
    if (real := kind.real()) is not None:
        array.values = np.frombuffer(data, real).reshape(shape, order="F" if order == "F" else "C").copy()
    return array


def _parameter(data: Tensor, *_rest: Any) -> Tensor:
    return data


def _tensor_of_subclass(rebuild: Callable[..., Any], _kind: object, arguments: tuple[Any, ...], _state: object) -> Any:
    """The tensor in a subclass of a package; `rebuild` came from this table, or is inert."""
    return rebuild(*arguments)


def _tensor_of_device(data: InertArray, kind: torch.dtype, *_rest: Any) -> Tensor:
    """A tensor from an accelerator that is not there."""
    return torch.as_tensor(data.values).to(kind)


def _load_storage(data: bytes) -> Any:
    """The numbers of a tensor in a plain pickle, which are a file of torch.save within it."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_TORCH_REBUILDS = (
    *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor", "_rebuild_sparse_tensor"),
    "_rebuild_meta_tensor_no_storage",
)
_TORCH_TYPES = (torch.dtype, torch.qscheme, torch.layout, torch.memory_format)
_NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_PLAIN = (set, frozenset, dict, list, tuple, int, float, bool, str, complex, slice)

# All that a pickle may call; everything else becomes inert.
ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _PLAIN},
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "Counter"): collections.Counter,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _make_plain,
    ("copy_reg", "_reconstructor"): _make_plain,
    ("numpy", "dtype"): _ArrayType,
    **{(module, "_reconstruct"): InertArray for module in _NUMPY_CORES},
    **{(module, "scalar"): _numpy_scalar for module in _NUMPY_CORES},
    **{(module, "_frombuffer"): _make_array for module in _NUMPY_CORES},
    **{("torch._utils", name): getattr(torch._utils, name) for name in _TORCH_REBUILDS if hasattr(torch._utils, name)},
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _tensor_of_device,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_subclass,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
}


class InertUnpickler(pickle.Unpickler):
    """An unpickler for which every class and function outside ALLOWED is inert."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function that the pickle names."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and isinstance(value := getattr(torch, name, None), _TORCH_TYPES):
            return value
        return type("Inert", (Inert,), {"origin": f"{module}.{name}"})


def _load_from(file: Any) -> Any:
    """The first object of a file."""
    file.seek(0)
    return InertUnpickler(file).load()


def _load(file: Any, **options: Any) -> Any:
    return InertUnpickler(file, **options).load()


def read_tensors_only(path: Path) -> object:
    """The content of a file of torch.save or pickle.dump, with `Inert` in place of all that would run code."""
    with open(path, "rb") as file:
        if file.read(1) == b"\x80" and (content := _load_from(file)) != torch.serialization.MAGIC_NUMBER:
            return content  # of pickle.dump
    module: Any = SimpleNamespace(Unpickler=InertUnpickler, load=_load, __name__="inert")
    with warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")  # on sources of classes that are not looked at
        return torch.load(file, map_location="cpu", pickle_module=module, weights_only=False)


def children(content: object) -> dict[Any, Any]:
    """What a mapping, list, namespace or inert object holds, by key; of the rest nothing."""
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, Inert):
        return {**dict(enumerate(content.arguments)), **content.attributes, **content.entries}
    if isinstance(content, argparse.Namespace):
        return vars(content)
    return dict(enumerate(content)) if isinstance(content, list | tuple) else {}


def is_module(content: object) -> bool:
    """Whether this is a pickled `nn.Module` that was not loaded."""
    return isinstance(content, Inert) and {"_parameters", "_buffers", "_modules"} <= content.attributes.keys()
