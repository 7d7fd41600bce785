"""All tensors of a checkpoint under their full names, wherever in the file they lie."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.network.checkpoints.inert import Inert, InertArray, children, is_module

MAX_DEPTH = 24
MAX_VISITS = 100_000
MAX_CLAIMED_BYTES = 2**28
# Parts of names that torch.compile and the wrappers of large networks put in.
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module")
PARALLEL_PART = "module"
COMPILED = "torch._dynamo.eval_frame.OptimizedModule"  # pickled as a call with the module inside


@dataclass
class Contents:
    """What a checkpoint holds, laid out flat.

    Attributes:
        tensors: by the keys that lead to them, joined by dots: `state_dict.model.conv1.weight`.
        modules: pickled modules that were not loaded, and what calls make of some, by the same names; their tensors are
            among `tensors`.
        trusted: modules that were loaded, by the same names.
        classes: origins of objects that were not loaded, in order.
        optimizers: whether an optimizer's state was passed over.
        visits: how often a tensor or container was looked at; one that several hold counts each time.
        barren: containers with nothing in them, which need no second look.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, Inert] = field(default_factory=dict)
    trusted: dict[str, nn.Module] = field(default_factory=dict)
    classes: dict[str, None] = field(default_factory=dict)
    optimizers: bool = False
    visits: int = 0
    barren: dict[int, object] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How much was found so far."""
        return len(self.tensors) + len(self.modules) + len(self.trusted) + self.optimizers

    def visit(self) -> None:
        """Count one more tensor or container.

        Raises:
            InputError: there were so many that no end is in sight.
        """
        self.visits += 1
        if self.visits > MAX_VISITS:
            raise InputError("the checkpoint's containers hold one another in more than 100,000 ways")


def lay_out(content: object) -> Contents:
    """The tensors of a file's content by name; optimizers' states are passed over.

    Raises:
        InputError: a tensor is of no plain kind or claims more than it stores, or containers hold one another so often
            that no end is in sight.
    """
    contents = Contents()
    _collect(content, "", contents, ())
    _require_stored(contents.tensors)
    return contents


def _require_stored(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that would be far larger in memory than in the file: a few numbers repeated by stride."""
    claimed = 0
    for name, tensor in tensors.items():
        if tensor.is_nested:
            raise InputError(f"the checkpoint stores {name!r} as a nested tensor, not as plain floating-point weights")
        if tensor.layout == torch.strided and not tensor.is_meta:
            own_bytes = tensor.numel() * tensor.element_size()
            claimed += max(0, own_bytes - tensor.untyped_storage().nbytes())
        if claimed > MAX_CLAIMED_BYTES:
            raise InputError(f"the checkpoint's {name!r} of shape {list(tensor.shape)} repeats a few stored numbers")


def _collect(content: object, name: str, contents: Contents, parents: tuple[int, ...]) -> None:
    if id(content) in parents or len(parents) > MAX_DEPTH or id(content) in contents.barren:
        return
    if isinstance(content, Inert) and content.origin == COMPILED and content.arguments:
        content = content.arguments[0]
    if isinstance(content, Inert) and content.origin:
        contents.classes[content.origin] = None
    tensor = as_tensor(content)
    if tensor is not None:
        contents.tensors.setdefault(name, tensor)
        contents.visit()
    elif isinstance(content, nn.Module):
        contents.trusted[name] = content
    else:
        before = contents.count
        _collect_children(content, name, contents, (*parents, id(content)))
        contents.visit()
        if contents.count == before and len(parents) < MAX_DEPTH // 2:
            contents.barren[id(content)] = content


def _collect_children(content: object, name: str, contents: Contents, parents: tuple[int, ...]) -> None:
    inside = children(content)
    if "param_groups" in inside:
        contents.optimizers = True
        return
    if is_module(content):
        contents.modules[name] = content  # type: ignore[assignment]
        inside = _parts_of_module(inside)
    elif isinstance(content, Inert) and any(_holds_modules(argument) for argument in content.arguments):
        contents.modules[name] = content  # made of them by a call, as networks of torch.fx are
    elif isinstance(content, list | tuple):  # of state_dicts; a list of tensors is no network
        inside = {key: value for key, value in inside.items() if as_tensor(value) is None}
    for key, value in inside.items():
        if isinstance(key, str | int):
            _collect(value, f"{name}.{key}" if name else str(key), contents, parents)


def _holds_modules(content: object) -> bool:
    return is_module(content) or (isinstance(content, dict) and "_modules" in content)


def _parts_of_module(attributes: dict[Any, Any]) -> dict[Any, Any]:
    """Parameters, buffers that a state_dict has, and modules by their names, then what else a wrapper may hold."""
    unsaved = attributes.get("_non_persistent_buffers_set") or ()
    parts = dict(children(attributes["_parameters"]))
    parts |= {name: value for name, value in children(attributes["_buffers"]).items() if name not in unsaved}
    parts |= children(attributes["_modules"])
    others = {key: value for key, value in attributes.items() if not str(key).startswith("_")}
    return {**{key: value for key, value in others.items() if isinstance(value, dict | Inert)}, **parts}


def as_tensor(content: object) -> Tensor | None:
    """A tensor, detached, or the tensor of an array of numbers; None for all else."""
    if isinstance(content, Tensor):
        return Tensor.detach(content)
    values = content.values if isinstance(content, InertArray) else None
    if values is None or isinstance(values, list) or values.dtype.kind not in "iufb":
        return None
    try:
        return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
    except TypeError:  # a type that torch has not
        return None


def shorten(name: str, parts: Collection[str]) -> str:
    """A name without some of its parts."""
    return ".".join(part for part in name.split(".") if part not in parts)


def without_parts(tensors: Mapping[str, Tensor], parts: Collection[str]) -> dict[str, Tensor]:
    """The tensors by shortened names, but where two would have the same."""
    counts = Counter(shorten(name, parts) for name in tensors)
    return {(short if counts[short := shorten(name, parts)] == 1 else name): tensor for name, tensor in tensors.items()}
