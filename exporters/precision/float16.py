"""Conversion of a float32 ONNX file to float16; inputs and outputs stay float32."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from compressor.errors import BocompressError
from compressor.files import scratch_folder
from compressor.text import first_line
from exporters.onnx import needs_data_file, save_onnx, sign
from exporters.opsets import silence
from exporters.precision.int8_calibration import tensor_ranges

MAX_FP16 = 65504.0
RANGE_IMAGES = 64


def convert_fp16(source: Path, target: Path, images: Tensor, metadata: Mapping[str, str]) -> None:
    """Write the float16 form of the float32 file `source` to `target`.

    The converter is ONNX Runtime's, which is maintained with the runtime; the package it came from
    (onnxconverter-common) has to follow. Overflow is detected in the float32 file's tensors: the CPU provider computes
    many float16 operators in float32, so that its outputs would be finite all the same.

    Args:
        source: the float32 file.
        target: the file to write; its batch size stays free.
        images: real inputs (N, ...), of which the first `RANGE_IMAGES` are run.
        metadata: as for `export_onnx`.

    Raises:
        BocompressError: the network cannot be converted, or its values overflow.
    """
    proto = onnx.load(source)
    large = needs_data_file(proto)
    _require_range(proto, source, images[:RANGE_IMAGES], large)
    try:
        with silence():
            # Shapes of a network beyond 2 GB can only be inferred from its file.
            converted = ONNXModel(convert_float_to_float16(str(source) if large else proto, keep_io_types=True))
            converted.topological_sort()  # the converter puts casts of inputs last, which ONNX forbids
    except Exception as error:
        name = type(error).__name__
        raise BocompressError(f"the network cannot be converted to fp16 ({name}: {first_line(error)})") from error
    sign(converted.model, metadata)
    save_onnx(converted.model, target)


def _require_range(proto: onnx.ModelProto, source: Path, images: Tensor, large: bool) -> None:
    """Raise BocompressError if a weight, or an activation on the images, is beyond float16."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    largest = {
        name: float(np.abs(values).max())
        for name, values in weights.items()
        if values.size and np.issubdtype(values.dtype, np.floating)
    }
    with scratch_folder() as folder, silence():
        for name, (low, high) in tensor_ranges(source, images, Path(folder), large).items():
            largest[name] = max(abs(low), abs(high))
    worst = max(largest, key=lambda name: largest[name])
    if not largest[worst] <= MAX_FP16:
        raise BocompressError(
            f"values overflow: {worst} reaches {largest[worst]:.3g} on real images, and fp16 ends at {MAX_FP16:g}"
        )
