"""Where two ONNX files part: the first tensor, of those both name, in which they differ."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from exporters.records import DivergenceRecord
from exporters.session import Logits, open_session


def find_divergence(first: Path, second: Path, image: Logits, tolerance: float) -> tuple[DivergenceRecord | None, int]:
    """The first tensor, in the order of `first`, whose relative error on the image (1, ...) exceeds `tolerance`.

    Compared are the float tensors that nodes of both graphs give under the same name and in the same shape; the
    graphs' outputs are among them. Exporters number what has no name of its own, so that the same name may mean
    something else in graphs of different structure.

    Returns:
        The tensor (None: they part nowhere but in the output, or one file is not in ONNX format) and the number of
        tensors compared.
    """
    one, other = _read_graph(first), _read_graph(second)
    if one is None or other is None:
        return None, 0
    others = {name for node in other.graph.node for name in node.output}
    shared = [name for node in one.graph.node for name in node.output if name in others]
    values = [_values(proto, path, shared, image) for proto, path in ((one, first), (other, second))]
    compared = 0
    for name in shared:
        expected, found = (value.get(name) for value in values)
        if expected is None or found is None or expected.shape != found.shape:
            continue
        compared += 1
        error = _relative_error(found, expected)
        if not error <= tolerance:
            return DivergenceRecord(tensor=name, layer=_layer(one, name), relative_error=min(error, 1e30)), compared
    return None, compared


def _read_graph(path: Path) -> onnx.ModelProto | None:
    """The network, or None for a file in another format."""
    try:
        return onnx.load(path)
    except Exception:  # protobuf's own type, of whichever implementation
        return None


def _values(proto: onnx.ModelProto, path: Path, names: Sequence[str], image: Logits) -> dict[str, Logits]:
    """The float tensors of these names; a file of its own is needed, since only outputs can be asked for."""
    outputs = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    with tempfile.TemporaryDirectory(prefix="bocompress.") as folder:
        probe = Path(folder) / path.name
        onnx.save(proto, probe, save_as_external_data=True, location=f"{path.name}.data")
        session = open_session(probe)
        kinds = {value.name: value.type for value in session.get_outputs()}
        asked = [name for name in names if kinds[name] in ("tensor(float)", "tensor(float16)")]
        if not asked:
            return {}
        found = session.run(asked, {session.get_inputs()[0].name: image})
    return dict(zip(asked, found, strict=True))


def _relative_error(found: Logits, expected: Logits) -> float:
    """Largest difference over the largest magnitude; infinite where it is not a number."""
    if not expected.size:
        return 0.0
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    scale = float(np.abs(expected).max()) or 1.0
    return difference / scale if np.isfinite(difference / scale) else float("inf")


def _layer(proto: onnx.ModelProto, tensor: str) -> str:
    """The module whose parameters the tensor's node uses, else the operator's type."""
    weights = {initializer.name for initializer in proto.graph.initializer}
    node = next(node for node in proto.graph.node if tensor in node.output)
    parameter = next((name for name in node.input if name in weights and "." in name), "")
    return parameter.rpartition(".")[0] or node.op_type
