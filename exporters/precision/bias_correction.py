"""Biases that make up for rounded weights: what rounding adds to a layer's mean outputs is taken off its bias.

Behind a ReLU inputs have means well above zero, so that the rounding of a weight shifts the mean of an output. That is
most of what int8 adds to a network with depthwise convolutions, and known from the weights and the inputs' means
(Nagel et al. 2019, Sec. 4.2).
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from exporters.precision.layers import Array, GraphLayers


def bias_shifts(model: onnx.ModelProto, quantized: onnx.ModelProto, means: Mapping[str, Array]) -> dict[str, Array]:
    """What rounding the weights adds to the mean outputs (Co,) of layers, by their nodes' names.

    Padding is left out of account: patches at the border have lower means.

    Args:
        model: in float32.
        quantized: the same by ONNX Runtime's quantizer, with weights as integers and their scales.
        means: of the channels (C,) of the tensors that layers read.
    """
    layers, rounded = GraphLayers(model), _rounded_weights(quantized)
    found = {}
    for layer in layers.layers:
        if layer.bias and layer.weight in rounded:
            change = layers.in_groups(layer, rounded[layer.weight]) - layers.weight(layer)
            found[layer.node] = (change.sum(-1) * means[layer.given].reshape(layer.groups, 1, -1)).sum(-1).ravel()
    return found


def shift_biases(model: onnx.ModelProto, shifts: Mapping[str, Array]) -> None:
    """Take shifts (Co,) off the biases of layers, given by their nodes' names, in place."""
    layers = GraphLayers(model)
    for layer in layers.layers:
        if layer.node in shifts:
            layers.change_bias(layer, 1.0, -shifts[layer.node])


def _rounded_weights(quantized: onnx.ModelProto) -> dict[str, Array]:
    """Weights as int8 has them, by the names that they had in float32."""
    tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
    found = {}
    for node in quantized.graph.node:
        if node.op_type == "DequantizeLinear" and all(name in tensors for name in node.input):
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            values, scale, *zero = (numpy_helper.to_array(tensors[name]) for name in node.input)
            shape = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)] if scale.ndim else []
            offset = np.asarray(zero[0], dtype=np.float32) if zero else np.zeros(1, dtype=np.float32)
            centred = values.astype(np.float32) - (offset.reshape(shape) if offset.size == scale.size else offset)
            found[node.input[0].removesuffix("_quantized")] = centred * scale.reshape(shape)
    return found
