"""The tensors in what a network returns, by name: in tuples, lists, dictionaries, named tuples and dataclasses.

torch registers neither dataclasses nor the output classes of other packages with its trees, and keeps these private.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.failures import blaming
from compressor.text import join_words

SCORES, BARE = "logits", "output"  # names of a tensor that is returned by itself: (N, classes), or of another shape
MAX_DEPTH = 16


@dataclass(frozen=True)
class Output:
    """One tensor that a network returns.

    Attributes:
        name: keys, fields and indices that lead to it, joined by dots; see `named_tensors`.
        shape: for one image, without the batch.
        is_float: whether it has distances; whole numbers, such as decisions, have none.
    """

    name: str
    shape: tuple[int, ...]
    is_float: bool

    @property
    def num_channels(self) -> int:
        """Numbers at one position: the first axis of maps (C, H, W), the last one of sequences (T, C)."""
        if not self.shape:
            return 1
        return self.shape[0] if len(self.shape) > 2 else self.shape[-1]

    @property
    def num_values(self) -> int:
        """Numbers for one image."""
        return torch.Size(self.shape).numel()

    @property
    def num_positions(self) -> int:
        """Positions of an image, over which squared distances are averaged."""
        return self.num_values // self.num_channels


def named_tensors(outputs: object) -> dict[str, Tensor]:
    """All tensors in the outputs, in their order.

    A tensor by itself is "logits" where it is a matrix, else "output"; elements of a tuple or list are "output0",
    "output1"; everything else goes by its keys and fields, with dots between: "boxes.0". What is no tensor is left out.
    """
    if isinstance(outputs, Tensor):
        return {SCORES if outputs.ndim == 2 else BARE: outputs}
    found = {}
    for path, tensor in _walk(outputs, (), ()):
        name = ".".join(path)
        found[f"{BARE}{name}" if path[0].isdecimal() else name] = tensor
    return found


def _walk(value: object, path: tuple[str, ...], parents: tuple[int, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif id(value) not in parents and len(parents) < MAX_DEPTH:
        for key, inside in _children(value):
            yield from _walk(inside, (*path, key), (*parents, id(value)))


def _children(value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(str(key), inside) for key, inside in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, tuple | list):
        return [(str(number), inside) for number, inside in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def find_outputs(network: nn.Module, example: Tensor) -> list[Output]:
    """What a network returns for images of this shape, from one pass of two of them.

    Args:
        network: in eval mode.
        example: one input (1, ...), on its device.

    Raises:
        InputError: the network needs several inputs, fails on this one, returns no tensor of numbers with a distance,
            or one that has not as many rows as there are images.
    """
    _require_one_input(network)
    what = f"the network cannot take inputs of shape {' x '.join(map(str, example.shape))}"
    with blaming(lambda reason: InputError(f"{what} ({reason}): see --input-size")), torch.inference_mode():
        returned = network(example)
    tensors = named_tensors(returned)
    _require_tensors(returned, tensors)
    both = torch.cat([example, example])
    alone = "the network takes one image, but not two"
    with blaming(lambda reason: InputError(f"{alone} ({reason})")), torch.inference_mode():
        tensors = named_tensors(network(both))
    _require_rows(tensors, len(both))
    return [Output(name, tuple(each.shape[1:]), each.is_floating_point()) for name, each in tensors.items()]


def _require_one_input(network: nn.Module) -> None:
    """Refuse a network that needs several inputs, with what can be done."""
    values = (each for each in inspect.signature(network.forward).parameters.values() if each.default is each.empty)
    needed = [each.name for each in values if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if len(needed) > 1:
        raise InputError(
            f"the network needs {len(needed)} inputs ({', '.join(needed)}), and one tensor is given to it: wrap it in "
            "a module whose forward takes one, cuts the others out of its channels or holds them fixed, and give that "
            "by --arch module:function, or in Python"
        )


def _require_tensors(returned: object, tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise InputError(
            f"the network returns a {type(returned).__name__} without a tensor: tensors are compared, by themselves or "
            "in tuples, lists, dictionaries and dataclasses (give such a network by --arch module:function)"
        )
    if not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise InputError(
            "the network returns whole numbers alone, which are decisions and have no distance: give one that returns "
            "its scores, for example by --arch module:function"
        )


def _require_rows(tensors: Mapping[str, Tensor], count: int) -> None:
    wrong = {name: each for name, each in tensors.items() if not each.ndim or len(each) != count}
    for name, tensor in wrong.items():
        raise InputError(
            f"the network's output {name!r} has shape {list(tensor.shape)} for a batch of {count}: all outputs must be "
            "of shape (batch, ...); give a network that returns them so, for example by --arch module:function"
        )


def describe_outputs(outputs: Iterable[Output]) -> str:
    """'out (21 x 520 x 520) and aux (21 x 520 x 520)'."""
    return join_words([f"{each.name} ({' x '.join(map(str, each.shape)) or 'one number'})" for each in outputs])
