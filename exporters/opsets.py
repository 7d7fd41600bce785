"""A torch network as an ONNX graph of any operator set.

torch's newer exporter writes `NEWER_OPSET` and above. Below, the older one writes what older compilers and runtimes
read; where it cannot, the newer one's graph is converted downwards.
"""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import onnx
import onnx.version_converter
import torch
from torch import Tensor, nn

from compressor.errors import BocompressError
from compressor.files import scratch_folder
from compressor.text import first_line

INPUT_NAME = "input"
OUTPUT_NAME = "logits"
BATCH_NAME, HEIGHT_NAME, WIDTH_NAME = "batch", "height", "width"
MIN_SIDE = 32  # of an image whose size is free
NEWER_OPSET = 18
MIN_OPSET, MIN_IR = 9, 4  # before, weights had to be inputs of the graph, too
FUNCTIONS_IR = 8
WEIGHTED = ("Conv", "ConvTranspose", "MatMul")
ANONYMOUS = "onnx::"  # what the older exporter calls a weight that it computed
PARTS = ("weight", "bias")

Newer = Callable[[], onnx.ModelProto]


@dataclass(frozen=True)
class Interface:
    """What a graph takes and gives.

    Attributes:
        outputs: names of its outputs, in order.
        fixed: keep the batch size of the example as the only one.
        free_size: whether images may have any height and width.
    """

    outputs: tuple[str, ...] = (OUTPUT_NAME,)
    fixed: bool = False
    free_size: bool = False

    @property
    def free_axes(self) -> dict[int, str]:
        """Names of the input's axes whose size is free."""
        sides = {2: HEIGHT_NAME, 3: WIDTH_NAME} if self.free_size else {}
        return sides if self.fixed else {0: BATCH_NAME, **sides}


FREE_BATCH, FIXED_BATCH = Interface(), Interface(fixed=True)


def translate(model: nn.Module, batch: Tensor, opset: int | None, interface: Interface = FREE_BATCH) -> onnx.ModelProto:
    """The network as a graph.

    Args:
        model: in eval mode, on the CPU, from one tensor to one tensor, or to a tuple of as many as have names.
        batch: inputs (N, ...), N at least 2 for a free batch size.
        opset: the operator set; None for the newer exporter's default.
        interface: names of its outputs, and which sizes are free.

    Raises:
        BocompressError: torch could not translate the network, or not to this operator set; then the sentence says
            which is the lowest.
    """
    if opset is None or opset >= NEWER_OPSET:
        return _translate_newer(model, batch, opset, interface)
    newer = functools.cache(lambda: _translate_newer(model, batch, NEWER_OPSET, interface))
    found = _translate_below(model, batch, opset, interface, newer)
    if found is None:
        lowest = lowest_opset(model, batch, opset + 1, interface, newer)
        raise BocompressError(
            f"the network cannot be written with ONNX operator set {opset}: the lowest that it can have is {lowest}"
        )
    return found


def lowest_opset(
    model: nn.Module,
    batch: Tensor,
    start: int = MIN_OPSET,
    interface: Interface = FREE_BATCH,
    newer: Newer | None = None,
) -> int:
    """The lowest operator set, from `start` on, that the network can have; arguments as of `translate`.

    Raises:
        BocompressError: it can have none.
    """
    newer = newer or functools.cache(lambda: _translate_newer(model, batch, NEWER_OPSET, interface))
    below = range(max(start, MIN_OPSET), NEWER_OPSET)
    return next((opset for opset in below if _translate_below(model, batch, opset, interface, newer)), NEWER_OPSET)


def lowest_ir(proto: onnx.ModelProto) -> int:
    """The lowest version of the file format that the graph's operator sets allow, which the oldest runtimes read."""
    needed = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
    return max(needed, FUNCTIONS_IR if proto.functions else MIN_IR)


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set in the graph."""
    return next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _translate_newer(model: nn.Module, batch: Tensor, opset: int | None, interface: Interface) -> onnx.ModelProto:
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and opset > newest:
        raise BocompressError(f"there is no ONNX operator set {opset} here: the newest is {newest}")
    sizes = {axis: torch.export.Dim(name, min=MIN_SIDE if axis else 1) for axis, name in interface.free_axes.items()}
    try:
        with silence():
            program = torch.onnx.export(
                model,
                (batch,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=list(interface.outputs),
                dynamic_shapes=(sizes,) if sizes else None,
            )
            assert program is not None
            proto = program.model_proto
    except Exception as error:
        name = type(model).__name__
        raise BocompressError(f"torch cannot export {name} to ONNX: {first_line(error)}") from error
    if opset is not None and opset_of(proto) != opset:  # the exporter only warns
        raise BocompressError(
            f"the network cannot be written with ONNX operator set {opset}: torch gives {opset_of(proto)}"
        )
    return proto


def _translate_below(
    model: nn.Module, batch: Tensor, opset: int, interface: Interface, newer: Newer
) -> onnx.ModelProto | None:
    """The graph in an operator set that the newer exporter does not write; None where it cannot be had.

    `newer` gives that exporter's graph, which is converted where the older exporter fails.
    """
    if opset < MIN_OPSET:
        return None
    with contextlib.suppress(Exception), silence():
        return translate_older(model, batch, opset, interface)
    source = newer()
    with contextlib.suppress(Exception), silence():
        proto = onnx.version_converter.convert_version(source, opset)
        onnx.checker.check_model(proto, full_check=True)
        return proto
    return None


def translate_older(model: nn.Module, batch: Tensor, opset: int | None, interface: Interface) -> onnx.ModelProto:
    """The graph by torch's older exporter, which takes a tenth of the newer one's time; arguments as of `translate`.

    Any error of the exporter is raised.
    """
    axes = {INPUT_NAME: interface.free_axes}
    axes |= {name: {} if interface.fixed else {0: BATCH_NAME} for name in interface.outputs}
    # It would print the graph that failed, and switches that on by itself.
    with scratch_folder() as folder, patch.object(torch._C, "_jit_onnx_log", lambda *_texts: None):
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            model,
            (batch,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(interface.outputs),
            dynamic_axes={name: free for name, free in axes.items() if free} or None,
        )
        proto = onnx.load(path)
    _name_weights(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _name_weights(graph: onnx.GraphProto) -> None:
    """Name weights that the older exporter computed (batch norms folded in, matrices transposed) by their module."""
    anonymous = {tensor.name for tensor in graph.initializer if tensor.name.startswith(ANONYMOUS)}
    taken = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    for node in graph.node:
        for part, old in zip(PARTS, node.input[1:], strict=False):
            new = f"{_module_name(node.name)}.{part}"
            if node.op_type in WEIGHTED and old in anonymous - names.keys() and new not in taken:
                names[old] = new
                taken.add(new)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _module_name(node: str) -> str:
    """The module of a node by its name: '/layer1/layer1.0/conv1/Conv' is of layer1.0.conv1."""
    path, last = "", ""
    for scope in node.strip("/").split("/")[:-1]:
        inner = scope.removeprefix(f"{last}.") if last else scope  # within a Sequential, scopes repeat its name
        path, last = f"{path}.{inner}" if path else inner, scope
    return path


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress print, warnings and logging: exporter and quantizer report steps there that are not for the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
