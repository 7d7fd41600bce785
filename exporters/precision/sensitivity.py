"""Which layers an int8 file keeps in float: those that cost most in int8 for their size, and no more than needed."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MAX_GROUPS = 48  # each is quantized alone once: a session and a few dozen images
MAX_TRIALS = 6  # numbers of groups in float that are measured
MAX_FLOAT_SHARE = 0.5  # of the groups: with more in float the file is hardly an int8 file
MAX_NORM_SHARE = 0.9  # of the joint function norm may be left; groups in float that gain less are not worth it
BEST_TOLERANCE = 1.1  # where no number of groups meets the budget: a function norm this many times the best will do


def group_nodes(model: onnx.ModelProto, layers: Sequence[str]) -> dict[str, list[str]]:
    """Names of the nodes that belong to each layer, by the layer's name.

    A layer has its multiplications and what follows them (sums, activations, poolings) up to the next layer's, whose
    rounding would otherwise remain when the layer is left in float. A layer's factors are one group; a product without
    weights (attention's) is a group of its own, under its node's name. Neighbours are merged until at most `MAX_GROUPS`
    are left.

    Args:
        model: the network, its nodes in topological order.
        layers: names of compressed layers, whose factors belong together.
    """
    tensors = {tensor.name for tensor in model.graph.initializer}
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    addends = {name: _module_tensor(node, tensors) for node in sums for name in node.input}
    groups: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for node in model.graph.node:
        group = next((owner[name] for name in node.input if name in owner), "")
        if node.op_type in WEIGHTED:
            # The exporter renames a linear layer's transposed weight; the bias keeps the layer's name.
            tensor = _module_tensor(node, tensors) or addends.get(node.output[0], "")
            group = _layer_of(tensor, layers) or node.name
        if group:
            groups.setdefault(group, []).append(node.name)
            owner.update(dict.fromkeys(node.output, group))
    return _merge_neighbours(groups)


def _module_tensor(node: onnx.NodeProto, tensors: Collection[str]) -> str:
    """The node's first input that is a parameter of a module, whose name has a dot; empty if there is none."""
    return next((name for name in node.input if name in tensors and "." in name), "")


def _layer_of(tensor: str, layers: Sequence[str]) -> str:
    """The compressed layer that holds the parameter, else its module; empty for a tensor of no module."""
    holders = [layer for layer in layers if tensor.startswith(f"{layer}.")]
    return max(holders, key=len) if holders else tensor.rpartition(".")[0]


def _merge_neighbours(groups: Mapping[str, list[str]]) -> dict[str, list[str]]:
    size = math.ceil(len(groups) / MAX_GROUPS)
    names = list(groups)
    parts = [names[start : start + size] for start in range(0, len(names), max(size, 1))]
    return {
        part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}": [node for name in part for node in groups[name]]
        for part in parts
    }


def choose_float_groups(
    sensitivity: Mapping[str, float],
    joint: float,
    allowed: float,
    measure: Callable[[Sequence[str]], float],
    sizes: Mapping[str, float] | None = None,
) -> tuple[list[str], float]:
    """The groups to leave in float, the costliest for their size first.

    Rounding errors of different layers are nearly independent, so that their norms nearly add: this gives the first
    number of groups to leave in float. The result is measured, and more are left in float until the budget holds.

    Args:
        sensitivity: function norm that each group adds alone in int8.
        joint: function norm that all groups add together.
        allowed: the budget, a function norm.
        measure: gives the function norm added with the given groups in float.
        sizes: of each group, what it gives up in float; None where they are alike.

    Returns:
        The groups, and the function norm that the others then add.
    """
    ranked = sorted(sensitivity, key=lambda name: -sensitivity[name] / (1.0 if sizes is None else sizes[name]))
    most = int(MAX_FLOAT_SHARE * len(ranked))
    found = {0: joint}
    count = min(_first_guess([sensitivity[name] for name in ranked], joint, allowed), max(most, 1))
    while min(found.values()) > allowed and len(found) <= MAX_TRIALS and count <= max(most, 1):
        found[count] = measure(ranked[:count])
        count = max(count + 1, math.ceil(1.5 * count))
    best = min(found.values())
    bound = allowed if best <= allowed else BEST_TOLERANCE * best
    if best > allowed and best > MAX_NORM_SHARE * joint:
        return [], joint
    fewest = min(number for number, norm in found.items() if norm <= bound)
    return ranked[:fewest], found[fewest]


def _first_guess(ranked: Sequence[float], joint: float, allowed: float) -> int:
    """How many of the costliest groups to leave in float, if norms add and are scaled to their joint effect."""
    total = sum(ranked) or 1.0
    left = total
    for number, norm in enumerate(ranked, start=1):
        left -= norm
        if left / total * joint <= allowed:
            return number
    return max(len(ranked), 1)
