"""Channels of a float32 ONNX graph scaled to like ranges, so that one scale for a whole tensor suits all of them.

Int8 has one scale for all channels of an activation, and one for all inputs of an output. Where one channel is twenty
times as large as the others, as in the residual streams of MobileNetV2, these are left two or three bits. Between
layers a channel can be scaled up where it is written and down where it is read (cross-layer equalization; Nagel et al.
2019): through sums, poolings and ReLU, not through what has a scale of its own. Scales are powers of two, which change
no output of the float32 graph at all. Behind a ReLU6 a channel is scaled up as far as it stays below 6 on the images;
only beyond that is it cut off sooner than before, as int8 cuts off every activation.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from exporters.precision.layers import Array, GraphLayer, GraphLayers, has_subgraphs

PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")  # s f(x) = f(s x)
MAX_POWER = 8  # of two
BALANCE = 0.5  # between activations, which 1 makes alike, and weights; 0.35 and 0.65 added more to MobileNetV2


def equalize_channels(model: onnx.ModelProto, largest: Mapping[str, Array]) -> dict[str, Array]:
    """Scale the channels of a graph, in place.

    Args:
        model: in float32, with batch norms folded and shapes inferred.
        largest: magnitudes of the channels (C,) of the tensors that its layers read.

    Returns:
        The scales (C,) of those of these tensors whose channels were scaled, by name.
    """
    if has_subgraphs(model):
        return {}
    streams = _Streams(model)
    scales = streams.scales(largest)
    for layer in streams.layers.layers:
        weight = streams.layers.weight(layer)
        before, after = scales.get(streams.root(layer.given)), scales.get(streams.root(layer.returned))
        if before is not None:
            weight = weight / before.reshape(layer.groups, 1, -1, 1)
        if after is not None:
            weight = weight * after.reshape(layer.groups, -1, 1, 1)
            streams.layers.change_bias(layer, after, 0.0)
        streams.layers.set_weight(layer, weight)
    return {name: scales[streams.root(name)] for name in largest if streams.root(name) in scales}


class _Streams:
    """Tensors of a graph whose channels must have one scale, as sets of names, and the layers between the sets.

    Sets with a tensor that is used in any other way than by layers and what passes a scale on are not free.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.layers = GraphLayers(model)
        self._ranks = {
            info.name: len(info.type.tensor_type.shape.dim) for info in (*graph.value_info, *graph.input, *graph.output)
        }
        self._parents: dict[str, str] = {}
        self._limits: dict[str, float] = {}
        fixed = [value.name for value in (*graph.input, *graph.output)]
        of_layers = {layer.returned for layer in self.layers.layers}
        for node in graph.node:
            names = [name for name in (*node.input, *node.output) if name and name not in self.layers.tensors]
            if of_layers.intersection(node.output):
                continue
            if not self._passes(node):
                fixed += names
                continue
            if node.op_type == "Clip":
                self._limits[node.output[0]] = self._upper_limit(node)
            for name in names[1:]:
                self._parents[self.root(name)] = self.root(names[0])
        self._fixed = {self.root(name) for name in fixed}

    def root(self, name: str) -> str:
        """The name that stands for the tensor's set."""
        while self._parents.get(name, name) != name:
            name = self._parents[name]
        return name

    def scales(self, ranges: Mapping[str, Array]) -> dict[str, Array]:
        """Powers of two (C,) for the free sets that are read, by their roots.

        Scaled up, a channel takes a larger share of the activation's range, and its weights a smaller one of their
        output's: the two are made equal. Where every channel has weights of its own, activations alone count.

        Args:
            ranges: the largest magnitudes of the channels (C,) of the tensors that layers read.
        """
        found: dict[str, Array] = {}
        for root in {self.root(layer.given) for layer in self.layers.layers} - self._fixed:
            readers = [layer for layer in self.layers.layers if self.root(layer.given) == root]
            largest = np.max([ranges[layer.given] for layer in readers], axis=0)
            shares = [share for share in map(self._column_shares, readers) if share is not None]
            columns, power = (np.max(shares, axis=0), BALANCE) if shares else (np.ones_like(largest), 1.0)
            limit = min((limit for name, limit in self._limits.items() if self.root(name) == root), default=np.inf)
            found[root] = _powers_of_two(largest, columns, power, limit)
        return found

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether every channel of the output is the same one's of all inputs, up to what a scale passes through."""
        if node.op_type == "Add":
            ranks = {self._ranks.get(name) for name in node.input}
            return not self.layers.tensors.keys() & set(node.input) and len(ranks) == 1 and None not in ranks
        if node.op_type == "ReduceMean":
            axes = self._axes(node)
            return self._ranks.get(node.input[0]) == 4 and bool(axes) and set(axes) <= {2, 3, -1, -2}
        if node.op_type == "Clip":
            return len(node.input) > 1 and not self._value(node.input[1]).any() and self._upper_limit(node) > 0
        return node.op_type in PASSING and len([name for name in node.output if name]) == 1

    def _upper_limit(self, node: onnx.NodeProto) -> float:
        """Of a `Clip`; a NaN where it is not known beforehand."""
        has_one = len(node.input) > 2 and node.input[2]
        return float(self._value(node.input[2]).item()) if has_one else np.inf

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        for attribute in node.attribute:
            if attribute.name == "axes":
                return list(attribute.ints)
        has_some = len(node.input) > 1 and node.input[1] in self.layers.tensors
        return [int(axis) for axis in self._value(node.input[1]).ravel()] if has_some else []

    def _value(self, name: str) -> Array:
        """An initializer; a NaN for other tensors."""
        tensors = self.layers.tensors
        return numpy_helper.to_array(tensors[name]) if name in tensors else np.array([np.nan])

    def _column_shares(self, layer: GraphLayer) -> Array | None:
        """The largest share (C,) that the weights of each input have of an output's; None where inputs have outputs of
        their own."""
        weight = np.abs(self.layers.weight(layer)).max(-1)
        if weight.shape[2] == 1:
            return None
        rows = weight.max(2, keepdims=True)
        return np.asarray((weight / np.where(rows > 0, rows, 1.0)).max(1).ravel())


def _powers_of_two(largest: Array, columns: Array, power: float, limit: float) -> Array:
    """Scales (C,) of channels with the largest magnitudes (C,) that keep below a limit, where there is one.

    Args:
        largest: magnitudes.
        columns: shares (C,) that the channels' weights have of the largest ones.
        power: 1 to make magnitudes alike, less to leave something to the weights.
        limit: of scaled magnitudes; infinite for none.
    """
    alive = (largest > 0) & (columns > 0)
    exponents = np.zeros(len(largest))
    if alive.any():
        wanted = power * np.log2(columns[alive] / largest[alive])
        if np.isfinite(limit):
            highest = np.log2(limit / largest[alive])
            exponents[alive] = np.floor(np.minimum(wanted - wanted.min(), highest)).clip(0)
        else:
            exponents[alive] = np.round(wanted - np.median(wanted))
    return np.exp2(exponents.clip(-MAX_POWER, MAX_POWER)).astype(np.float32)
