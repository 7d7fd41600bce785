"""Heads that people put in place of a classifier's last layers, inferred from names and shapes of their tensors.

A state_dict shows layers with weights and, where they are numbered, how many modules without weights stand between
them. Between two linear layers one of these is taken for an activation and the others for dropout, which does nothing
after training.
"""

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

Shape = tuple[int, ...]
Path = tuple[str, ...]

MAX_GAP = 3  # modules between two linear layers: an activation, dropout, and one more
MAX_LINEAR = 4


@dataclass(frozen=True)
class HeadLayer:
    """One module with weights in a head.

    Attributes:
        path: names of the modules that lead to it, from the head; empty where it is the head.
        kind: "linear", "batch_norm", "layer_norm" or "prelu".
        width: number of outputs.
        features: number of inputs; None where any number is taken.
        bias: whether it has one; of a norm, whether it has weight and bias.
    """

    path: Path
    kind: str
    width: int
    features: int | None
    bias: bool


@dataclass(frozen=True)
class Head:
    """A chain of layers.

    Attributes:
        slot: name of the module in the architecture's network that the head replaces.
        layers: in the order in which they run.
        activations: indices of layers that an activation is taken to follow.
    """

    slot: str
    layers: tuple[HeadLayer, ...]
    activations: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Width of the output."""
        return self.layers[-1].width

    def describe(self, activation: str) -> str:
        """The note for the user."""
        first = self.layers[0].features
        words = []
        for index, layer in enumerate(self.layers):
            words.append(f"{layer.kind} {layer.width}".replace("_", " "))
            words += [f"assumed {activation}"] * (index in self.activations)
        text = f"the head {self.slot!r} was inferred from names and shapes: {first} -> " + " -> ".join(words)
        if self.activations:
            text += f", as a state_dict shows no activations; if {activation} is wrong, use --arch module:function"
        return text


def infer_head(shapes: Mapping[str, Shape], slot: str, features: int) -> Head | None:
    """The chain of layers under `slot`; None where it cannot be known.

    Args:
        shapes: of all tensors, by name.
        slot: name of the module that is replaced.
        features: number of its inputs.
    """
    parts: dict[Path, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if name.startswith(slot + "."):
            *path, last = name[len(slot) + 1 :].split(".")
            parts.setdefault(tuple(path), {})[last] = shape
    layers = [_read_layer(path, tensors) for path, tensors in parts.items()]
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(layers) or sum(layer.kind == "linear" for layer in known) not in range(1, MAX_LINEAR + 1):
        return None
    for order in (sorted(known, key=_place), known):
        if _is_chain(order, features) and order[-1].kind == "linear":
            return _with_activations(slot, order)
    return None


def _read_layer(path: Path, tensors: Mapping[str, Shape]) -> HeadLayer | None:
    names, weight, bias = set(tensors), tensors.get("weight", ()), tensors.get("bias")
    if {"running_mean", "running_var"} <= names <= {"running_mean", "running_var", "weight", "bias"}:
        width = tensors["running_mean"][0]
        return HeadLayer(path, "batch_norm", width, width, "weight" in names)
    if not names <= {"weight", "bias"} or "weight" not in names or bias not in (None, weight[:1]) or 0 in weight:
        return None
    if len(weight) == 2:
        return HeadLayer(path, "linear", weight[0], weight[1], bias is not None)
    if len(weight) == 1 and bias is not None:
        return HeadLayer(path, "layer_norm", weight[0], weight[0], True)
    return HeadLayer(path, "prelu", weight[0], None, False) if len(weight) == 1 and path else None


def _place(layer: HeadLayer) -> tuple[tuple[int, str], ...]:
    """Numbers in their order, then names in theirs."""
    return tuple((int(part), "") if part.isdecimal() else (10**9, part) for part in layer.path)


def _is_chain(layers: list[HeadLayer], features: int) -> bool:
    for layer in layers:
        if layer.kind == "prelu":
            if layer.width not in (1, features):
                return False
        elif layer.features != features:
            return False
        else:
            features = layer.width
    return True


def _with_activations(slot: str, layers: list[HeadLayer]) -> Head | None:
    """Puts an activation into the first gap between two linear layers; None where a gap is too wide to be known."""
    linear = [index for index, layer in enumerate(layers) if layer.kind == "linear"]
    activations = []
    for first, last in itertools.pairwise(linear):
        gaps = [_gap(layers[index].path, layers[index + 1].path) for index in range(first, last)]
        if any(layer.kind == "prelu" for layer in layers[first:last]):
            continue
        seen = [gap for gap in gaps if gap is not None]
        if sum(seen) > MAX_GAP:
            return None
        if any(seen):
            activations.append(first + next(index for index, gap in enumerate(gaps) if gap))
        elif len(seen) < len(gaps):  # names, or blocks whose ends are not seen
            activations.append(last - 1)
    return Head(slot, tuple(layers), tuple(activations))


def _gap(before: Path, after: Path) -> int | None:
    """How many modules without weights stand between two; None where names do not show it."""
    depth = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    numbers = (before[depth], *after[depth:])
    if not all(part.isdecimal() for part in numbers):
        return None
    gap = int(after[depth]) - int(before[depth]) - 1 + sum(int(part) for part in after[depth + 1 :])
    return gap if gap > 0 or len(before) == depth + 1 else None


def build_head(head: Head, activation: nn.Module, eps: float | None, before: Sequence[nn.Module]) -> nn.Module:
    """The head as a module whose tensors have the checkpoint's names.

    Args:
        head: as inferred.
        activation: stands where one is assumed.
        eps: of layer norms, where the original head has one.
        before: modules without weights that the architecture needs first, such as flattening.
    """
    if head.layers[0].path == () and not before:
        return _make_layer(head.layers[0], eps)
    tree: OrderedDict[str, nn.Module] = OrderedDict((f"before{i}", module) for i, module in enumerate(before))
    root = nn.Sequential(tree)
    for index, layer in enumerate(head.layers):
        parent = root
        for name in layer.path[:-1]:
            if name not in dict(parent.named_children()):
                parent.add_module(name, nn.Sequential())
            parent = parent.get_submodule(name)  # type: ignore[assignment]
        parent.add_module(layer.path[-1], _make_layer(layer, eps))
        if index in head.activations:
            parent.add_module(f"activation{index}", activation)
    return root


def _make_layer(layer: HeadLayer, eps: float | None) -> nn.Module:
    """The module; a linear layer's parameters have no memory, as they come from the checkpoint."""
    if layer.kind == "linear":
        assert layer.features is not None
        return nn.Linear(layer.features, layer.width, bias=layer.bias, device="meta")
    if layer.kind == "layer_norm":
        return nn.LayerNorm(layer.width, eps=eps or 1e-5)
    if layer.kind == "prelu":
        return nn.PReLU(layer.width)
    return nn.BatchNorm1d(layer.width, affine=layer.bias)
