"""The first divergence of two ONNX files: the first tensor that both name and in which they differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from compressor.files import scratch_folder
from exporters.records import MAX_ERROR, DivergenceRecord
from exporters.session import Logits, fit_batch, open_session


def find_divergence(
    first: Path, second: Path, images: tuple[Logits, Logits], tolerance: float
) -> tuple[DivergenceRecord | None, int]:
    """The first tensor, in the order of `first`, in which two files differ.

    Compared are float tensors, the outputs among them, that both graphs compute under the same name and in the same
    shape. Exporters number tensors without a name of their own, so that in graphs of different structure the same name
    may mean different tensors.

    Args:
        first: an ONNX file.
        second: the other.
        images: the image (1, ...) as the first and as the second file take it.
        tolerance: relative errors up to this are no difference.

    Returns:
        The tensor (None: only the outputs differ, or the inner tensors of a file cannot be read, as in ORT format), and
        how many were compared.
    """
    reference, other = _read_model(first), _read_model(second)
    if reference is None or other is None:
        return None, 0
    in_other = {name for node in other.graph.node for name in node.output if name}
    shared = [name for node in reference.graph.node for name in node.output if name in in_other]
    try:
        values = [
            _values(proto, path, shared, image)
            for proto, path, image in ((reference, first, images[0]), (other, second, images[1]))
        ]
    except Exception:  # a graph that does not run with more outputs; that the files differ is known
        return None, 0
    compared = 0
    for name in shared:
        expected, found = (value.get(name) for value in values)
        if expected is None or found is None or expected.shape != found.shape:
            continue
        compared += 1
        error = _relative_error(found, expected)
        if not error <= tolerance:
            layer = _layer(reference, name)
            return DivergenceRecord(tensor=name, layer=layer, relative_error=min(error, MAX_ERROR)), compared
    return None, compared


def _read_model(path: Path) -> onnx.ModelProto | None:
    """The network; None for a file in another format."""
    try:
        return onnx.load(path)
    except Exception:  # protobuf's own type, of whichever implementation
        return None


def _values(proto: onnx.ModelProto, path: Path, names: Sequence[str], image: Logits) -> dict[str, Logits]:
    """The float tensors of these names, read from a copy of the file that has them as outputs."""
    outputs = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    with scratch_folder() as folder:
        extended = Path(folder) / path.name
        onnx.save(proto, extended, save_as_external_data=True, location=f"{path.name}.data")
        session = open_session(extended)
        kinds = {value.name: value.type for value in session.get_outputs()}
        floats = [name for name in names if kinds[name] in ("tensor(float)", "tensor(float16)")]
        if not floats:
            return {}
        found = session.run(floats, fit_batch(session, image))
    return dict(zip(floats, found, strict=True))


def _relative_error(found: Logits, expected: Logits) -> float:
    """Largest absolute difference over the largest magnitude; infinite where it is not a number."""
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
