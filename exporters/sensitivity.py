"""Which layers stay in float: those whose quantization costs the most, and no more of them than it takes."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MAX_GROUPS = 48  # each is quantized alone once: a session and a few dozen images
MAX_TRIALS = 6  # of leaving more layers in float
MAX_SHARE = 0.5  # of the groups may stay in float: beyond that the file is hardly an int8 file
WORTH = 0.9  # leaving layers in float must take the added function norm to this share of what it was
ENOUGH = 1.1  # where the budget is out of reach: within a tenth of the best found


def group_nodes(model: onnx.ModelProto, layers: Sequence[str]) -> dict[str, list[str]]:
    """Names of nodes by the layer of the network they belong to: its multiplications, and what follows them (sums,
    activations, poolings) up to the next layer's, whose rounding would otherwise stay when the layer is left in float.

    A layer's factors are one group. A product without weights (attention's) is a group of its own, under its node's
    name. Neighbours are merged until at most `MAX_GROUPS` are left. The nodes must be in topological order.
    """
    tensors = {tensor.name for tensor in model.graph.initializer}
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    addends = {name: _module_tensor(node, tensors) for node in sums for name in node.input}
    groups: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for node in model.graph.node:
        group = next((owner[name] for name in node.input if name in owner), "")
        if node.op_type in WEIGHTED:
            # A linear layer's transposed weight has a name of the exporter's; its bias keeps its own.
            tensor = _module_tensor(node, tensors) or addends.get(node.output[0], "")
            group = _layer_of(tensor, layers) or node.name
        if group:
            groups.setdefault(group, []).append(node.name)
            owner.update(dict.fromkeys(node.output, group))
    return _merge_neighbours(groups)


def _module_tensor(node: onnx.NodeProto, tensors: Collection[str]) -> str:
    """The node's first input that is a parameter of a module: its name has a dot."""
    return next((name for name in node.input if name in tensors and "." in name), "")


def _layer_of(tensor: str, layers: Sequence[str]) -> str:
    """The compressed layer that holds the parameter, or the module that does; empty for a tensor of no module."""
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
    sensitivity: Mapping[str, float], joint: float, allowed: float, measure: Callable[[Sequence[str]], float]
) -> tuple[list[str], float]:
    """The groups to leave in float, the costliest first, and the function norm that the others then add.

    Rounding errors of different layers are nearly independent, so that their norms nearly add: this says how many of
    the costliest to leave out first. Then it is measured, and more are left out until the budget holds.

    Args:
        sensitivity: function norm added by each group alone.
        joint: function norm added by all together.
        allowed: the budget.
        measure: the function norm added with the given groups in float.
    """
    ranked = sorted(sensitivity, key=lambda name: -sensitivity[name])
    most = int(MAX_SHARE * len(ranked))
    found = {0: joint}
    count = min(_first_guess([sensitivity[name] for name in ranked], joint, allowed), max(most, 1))
    while min(found.values()) > allowed and len(found) <= MAX_TRIALS and count <= max(most, 1):
        found[count] = measure(ranked[:count])
        count = max(count + 1, math.ceil(1.5 * count))
    best = min(found.values())
    bound = allowed if best <= allowed else ENOUGH * best
    if best > allowed and best > WORTH * joint:
        return [], joint
    fewest = min(number for number, norm in found.items() if norm <= bound)
    return ranked[:fewest], found[fewest]


def _first_guess(ranked: Sequence[float], joint: float, allowed: float) -> int:
    """The fewest costliest groups without which the others' norms, scaled to their joint effect, meet the budget."""
    total = sum(ranked) or 1.0
    left = total
    for number, norm in enumerate(ranked, start=1):
        left -= norm
        if left / total * joint <= allowed:
            return number
    return max(len(ranked), 1)
