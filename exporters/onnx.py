"""Export of a torch network to ONNX: one file, or two where the weights are too large for one."""

import contextlib
import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from compressor.errors import BocompressError, InputError
from compressor.files import replace_when_whole
from compressor.network.clips.flow import FlowNetwork
from compressor.network.detection.proposals import without_proposals
from compressor.outputs.rows import whole
from compressor.outputs.structure import named_tensors
from compressor.text import first_line
from exporters.feeding import Normalization
from exporters.opsets import (
    FIXED_BATCH,
    INPUT_NAME,
    OUTPUT_NAME,
    Interface,
    lowest_ir,
    silence,
    translate,
    translate_older,
)

PRODUCER_NAME = "bocompress"
# Protobuf refuses messages of 2 GiB and more; 16 MiB of them are left for the graph around the weights.
MAX_WEIGHT_BYTES = (1 << 31) - (1 << 24)
DATA_SUFFIX = ".data"
EXPORT_BATCH = 2  # torch.export treats a batch of one as a constant


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: Path,
    metadata: Mapping[str, str],
    opset: int | None = None,
    static_batch: int | None = None,
    normalization: Normalization | None = None,
) -> None:
    """Write `model` in eval mode as an ONNX file, in the lowest version of the format that its operators allow.

    The input is named as `exporters.opsets` says, outputs as `compressor.outputs.structure.named_tensors` does. Where
    they are maps (N, C, H, W), height and width are free, too, if the network allows it. All weights are inside the
    file; more than `MAX_WEIGHT_BYTES` of them go into a second one (see `save_onnx`). The same model gives the same
    bytes. The caller's model is neither moved nor changed, and an earlier file at `path` stays unless the whole new one
    is written.

    Args:
        model: a network from one tensor (N, ...) to tensors (N, ...) in any structure.
        example: a batch (N, ...) of the inputs' shape and type, N at least 1.
        path: the file to write.
        metadata: provenance, stored as the file's metadata properties; `version` also as the producer's.
        opset: the ONNX operator set; None for the exporter's default.
        static_batch: the one batch size that the file takes; None for any.
        normalization: becomes the graph's first step, so that the file takes pixels in [0, 1]; None for a file that
            takes what `model` does.

    Raises:
        InputError: the network does not give tensors of one row for each image, or the file cannot be written.
        BocompressError: torch could not translate the network, or the result is not valid ONNX.
    """
    frozen = frozen_copy(model)
    batch = _export_batch(example, static_batch or EXPORT_BATCH)
    outputs = _run(frozen, batch)
    interface = Interface(tuple(outputs), fixed=static_batch is not None)
    proto = _translate(frozen, batch, opset, interface, is_map=any(each.ndim > 3 for each in outputs.values()))
    finish(proto, path, metadata, normalization)


def finish(
    proto: onnx.ModelProto, path: Path, metadata: Mapping[str, str], normalization: Normalization | None = None
) -> None:
    """Write a graph as it came from torch, without the exporter's traces; arguments and errors as of `export_onnx`."""
    if normalization is not None:
        _normalize_first(proto.graph, normalization)
    _strip_traces(proto)
    sign(proto, metadata)
    save_onnx(proto, path)


def layer_bytes(layer: nn.Module, example: Tensor) -> bytes:
    """The content of an ONNX file with one layer (one tensor to one), for inputs of the example's shape only.

    Args:
        layer: in eval mode, on the CPU.
        example: its input (N, ...).

    Raises:
        BocompressError: torch could not translate the layer.
    """
    frozen, value = frozen_copy(layer), example.detach().cpu()
    # The older exporter takes a tenth of a second where the newer takes two, and gets single layers right.
    with contextlib.suppress(Exception), silence():
        return translate_older(frozen, value, None, FIXED_BATCH).SerializeToString()
    return translate(frozen, value, None, FIXED_BATCH).SerializeToString()


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the model on the CPU in eval mode, without gradients and with all outputs; the model is left alone.

    A detector's second stage works on the same boxes in every image. Activations do not work in place, which takes the
    exporter twice the time (MobileNetV2: 17.6 s of processor time instead of 9.6).
    """
    frozen = whole(copy.deepcopy(without_proposals(model)).cpu().eval().requires_grad_(False))
    modules: Iterable[Any] = frozen.modules()
    for module in modules:
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    return frozen


def _translate(
    model: nn.Module, batch: Tensor, opset: int | None, interface: Interface, is_map: bool
) -> onnx.ModelProto:
    """The graph, whose images are of any size where outputs are maps and the network allows it."""
    if interface.outputs != (OUTPUT_NAME,):
        forward = model.forward
        # Exporters know tuples, but not every structure; a wrapper around the network would rename its weights.
        model.forward = lambda images: tuple(named_tensors(forward(images)).values())
    if _is_for_older(model):
        with contextlib.suppress(Exception), silence():
            return translate_older(model, batch, opset, interface)
    if is_map and batch.ndim == 4:
        with contextlib.suppress(BocompressError):
            return translate(model, batch, opset, replace(interface, free_size=True))
    return translate(model, batch, opset, interface)


def _is_for_older(model: nn.Module) -> bool:
    """Whether torch's older exporter is tried first: for what the newer takes minutes for, poolings of boxes that the
    older one writes as one operator, and graphs of a hundred layers' calls."""
    return isinstance(model, FlowNetwork) or getattr(model, "has_proposals", False)


def _export_batch(example: Tensor, size: int) -> Tensor:
    """The example repeated or cut to (size, ...), on the CPU."""
    if example.ndim < 1 or len(example) == 0:
        raise InputError("the export needs at least one example input")
    batch = example.detach().cpu()
    return batch[torch.arange(size) % len(batch)].contiguous()


def _normalize_first(graph: onnx.GraphProto, normalization: Normalization) -> None:
    """Put (input - mean) / std before everything that reads the input."""
    for node in graph.node:
        node.input[:] = ["normalized" if name == INPUT_NAME else name for name in node.input]
    values = {"normalization.mean": normalization.mean, "normalization.std": normalization.std}
    sides = [1] * (len(graph.input[0].type.tensor_type.shape.dim) - 2)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.float32).reshape(1, -1, *sides), name)
        for name, value in values.items()
    )
    mean, std = values
    graph.node.insert(0, onnx.helper.make_node("Sub", [INPUT_NAME, mean], ["centred"], "normalization/Sub"))
    graph.node.insert(1, onnx.helper.make_node("Div", ["centred", std], ["normalized"], "normalization/Div"))


def _run(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """What the network gives for the batch, by name.

    Raises:
        InputError: it does not run, or gives no tensors with a row for each image.
    """
    name = type(model).__name__
    try:
        with torch.no_grad():
            output = model(batch)
    except Exception as error:
        shape = list(batch.shape[1:])
        raise InputError(f"{name} cannot run on inputs of shape {shape}: {first_line(error)}") from error
    tensors = named_tensors(output)
    if not tensors:
        raise InputError(f"{name} gives a {type(output).__name__} without tensors, where outputs are expected")
    for output_name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) != len(batch):
            shape = list(tensor.shape)
            raise InputError(f"{name} gives {output_name!r} of shape {shape} for a batch of {len(batch)} images")
    return tensors


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's debugging notes.

    Every node carries the Python stack that made it: file names of the user's machine and, for a deep network, more
    bytes than the rest of the graph.
    """
    del proto.metadata_props[:]
    proto.doc_string = ""
    _strip_graph(proto.graph)
    for function in proto.functions:
        _strip([function, *function.value_info])
        _strip_nodes(function.node)


def _strip_graph(graph: onnx.GraphProto) -> None:
    _strip([graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer])
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        _strip([node])
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for subgraph in _subgraphs(attribute):
                _strip_graph(subgraph)


def _subgraphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    # Reading an unset field of a message sets it, and the attribute would then hold two values.
    single = [attribute.g] if attribute.HasField("g") else []
    return [*single, *attribute.graphs]


def _strip(messages: Iterable[Any]) -> None:
    for message in messages:
        message.ClearField("doc_string")
        message.ClearField("metadata_props")


def sign(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Set bocompress as the producer, and the provenance as the only metadata."""
    proto.producer_name = PRODUCER_NAME
    proto.producer_version = metadata.get("version", "")
    onnx.helper.set_model_props(proto, dict(metadata))


def save_onnx(proto: onnx.ModelProto, path: Path) -> None:
    """Check the network and write it to `path`, whole or not at all.

    Weights that one file cannot hold go into a second beside it, named `path` and `DATA_SUFFIX`. The two are then
    written one after the other, and the caller must make them appear together.

    Raises:
        BocompressError: it is not valid ONNX.
        InputError: the file cannot be written.
    """
    proto.ir_version = lowest_ir(proto)
    if needs_data_file(proto):
        write_with_data(proto, path)
        _check(path)
    else:
        content = _serialize(proto)
        with replace_when_whole(path) as partial:
            partial.write_bytes(content)


def needs_data_file(proto: onnx.ModelProto) -> bool:
    """Whether the weights are too large to be inside the file."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > MAX_WEIGHT_BYTES


def write_with_data(proto: onnx.ModelProto, path: Path) -> None:
    """Write the network and its weights in two files, unchecked; `proto` loses its weights to the second.

    Raises:
        InputError: a file cannot be written.
    """
    data = path.with_name(path.name + DATA_SUFFIX)
    try:
        data.unlink(missing_ok=True)  # onnx would append to it
        onnx.save(proto, path, save_as_external_data=True, location=data.name)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _serialize(proto: onnx.ModelProto) -> bytes:
    try:
        content = proto.SerializeToString(deterministic=True)
    except Exception as error:
        raise BocompressError(f"the exported graph is not valid ONNX: {first_line(error)}") from error
    _check(content)
    return content


def _check(network: bytes | Path) -> None:
    try:
        onnx.checker.check_model(network, full_check=True)
    except Exception as error:
        raise BocompressError(f"the exported graph is not valid ONNX: {first_line(error)}") from error
