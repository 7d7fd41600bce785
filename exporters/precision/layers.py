"""Convolutions and linear layers of a float32 ONNX graph, those with parameters of their own, and their inputs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from exporters.session import fit_batch, open_session, split_batches

Array = NDArray[np.float32]


@dataclass(frozen=True)
class GraphLayer:
    """A layer: its node's name, the tensors that it reads and writes, its parameters' names, and its groups.

    `transposed` is whether its weight is (Ci, Co) rather than (Co, Ci).
    """

    node: str
    given: str
    returned: str
    weight: str
    bias: str
    groups: int
    transposed: bool


class GraphLayers:
    """The layers of a graph, whose parameters can be changed.

    Args:
        model: holds its weights; changed in place.

    Attributes:
        layers: in the graph's order.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        found = (self._as_layer(node) for node in model.graph.node)
        self.layers = [layer for layer in found if layer is not None]

    def weight(self, layer: GraphLayer) -> Array:
        """A layer's weight (groups, outputs of one, inputs of one, kernel)."""
        return self.in_groups(layer, numpy_helper.to_array(self.tensors[layer.weight]))

    @staticmethod
    def in_groups(layer: GraphLayer, weight: Array) -> Array:
        """A weight as the file has it, as `weight` gives it."""
        weight = weight.T if layer.transposed else weight
        return weight.reshape(layer.groups, len(weight) // layer.groups, weight.shape[1], -1)

    def set_weight(self, layer: GraphLayer, weight: Array) -> None:
        """Set a layer's weight, given as `weight` gives it."""
        shape = self.tensors[layer.weight].dims
        flat = weight.reshape(shape[::-1] if layer.transposed else shape)
        self._set(layer.weight, flat.T if layer.transposed else flat)

    def change_bias(self, layer: GraphLayer, factor: Array | float, shift: Array | float) -> None:
        """Multiply a layer's bias (Co,), if it has one, by a factor and add a shift."""
        if layer.bias:
            self._set(layer.bias, numpy_helper.to_array(self.tensors[layer.bias]) * factor + shift)

    def _as_layer(self, node: onnx.NodeProto) -> GraphLayer | None:
        """The node as a layer with parameters of its own, in single precision; None for all others."""
        names = [name for name in node.input[1:] if name]
        if node.op_type not in ("Conv", "Gemm") or node.input[0] in self.tensors or not all(map(self._is_own, names)):
            return None
        weight, bias = names[0], names[1] if len(names) > 1 else ""
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Gemm":
            plain = all(attributes.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
            if not plain or attributes.get("transA", 0) or (bias and len(self.tensors[bias].dims) != 1):
                return None
        transposed = node.op_type == "Gemm" and not attributes.get("transB", 0)
        groups = int(attributes.get("group", 1))
        return GraphLayer(node.name, node.input[0], node.output[0], weight, bias, groups, transposed)

    def _is_own(self, name: str) -> bool:
        tensor = self.tensors.get(name)
        return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and self._uses[name] == 1

    def _set(self, name: str, value: NDArray[Any]) -> None:
        self.tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))


def has_subgraphs(model: onnx.ModelProto) -> bool:
    """Whether nodes hold graphs, which may use any tensor."""
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for node in model.graph.node for attribute in node.attribute)


def channel_statistics(
    model: onnx.ModelProto, names: Sequence[str], images: Tensor, path: Path
) -> Mapping[str, tuple[Array, Array]]:
    """The largest magnitude and the mean of each channel (C,) of tensors (N, C, ...), by name.

    Args:
        model: a float32 graph.
        names: of tensors of it, its input may be among them.
        images: real inputs (N, ...).
        path: for a file in between.
    """
    augmented, given = deepcopy(model), {value.name for value in model.graph.input}
    inner = [name for name in names if name not in given]
    augmented.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in inner)
    onnx.save(augmented, path)
    session, found, count = open_session(path, threads=1), dict[str, tuple[Array, Array]](), 0
    for batch in split_batches(images, 1):
        feed, count = fit_batch(session, batch), count + 1
        for name, value in (*feed.items(), *zip(inner, session.run(inner, feed), strict=True)):
            others = tuple(axis for axis in range(value.ndim) if axis != 1)
            largest, mean = np.abs(value).max(axis=others), value.mean(axis=others, dtype=np.float64)
            before = found.get(name, (largest, np.zeros_like(mean)))
            found[name] = np.maximum(before[0], largest), before[1] + (mean - before[1]) / count
    path.unlink()
    return found
