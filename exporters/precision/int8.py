"""Static quantization of a float32 ONNX file to int8 by ONNX Runtime, in the QDQ format.

Activations are unsigned 8-bit, weights signed with one scale per output channel, and weights use seven of their eight
bits. x86 processors without VNNI add pairs of products in 16 bits, which saturate at eight: ResNet-18 then lost 2 % of
its decisions, with seven bits none. The eighth bit would save a fifth of the rounding error on processors where it is
safe, and give wrong results on the others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, quant_pre_process
from onnxruntime.quantization.calibrate import TensorsData
from torch import Tensor

from compressor.errors import BocompressError, VerificationError
from compressor.files import scratch_folder
from compressor.text import first_line
from exporters.onnx import needs_data_file, save_onnx, sign, write_with_data
from exporters.opsets import silence
from exporters.precision.bias_correction import bias_shifts, shift_biases
from exporters.precision.equalization import equalize_channels
from exporters.precision.int8_calibration import BATCH_SIZE, CALIBRATORS, activation_ranges
from exporters.precision.layers import Array, GraphLayers, channel_statistics
from exporters.precision.places import place_nodes
from exporters.precision.sensitivity import WEIGHTED, choose_float_groups, group_nodes
from exporters.records import CalibrationName, FloatLayer, QuantizationRecord
from exporters.session import Logits, Rows, open_session, run_batches

CALIBRATION_IMAGES = 64  # 20, 100 and 400 gave ResNet-18 the same function norm within its error
CHECK_IMAGES = 48
STATISTICS_IMAGES = 32
# What ONNX Runtime's CPU provider computes, or passes on, in int8. Softmax and normalizations stay in float: they would
# only be surrounded by conversions. EfficientNet-B0 with Mul and Sigmoid in float ran slower than in float32.
OPERATORS = (
    *WEIGHTED,
    *("Add", "Mul", "Sigmoid", "LeakyRelu", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Split", "Gather", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad", "Resize"),
)
MAX_NORM = 1e30  # records hold no infinity

OnStep = Callable[[int, str], None]


@dataclass(frozen=True)
class QuantizationImages:
    """Real inputs of a network.

    Attributes:
        calibration: images (N, ...), of which the first `CALIBRATION_IMAGES` give the ranges of activations.
        check: other images (N, ...), on the first `CHECK_IMAGES` of which function norms are measured.
        rows: what they are measured of, made of all outputs; None for the first output.
    """

    calibration: Tensor
    check: Tensor
    rows: Rows | None = None


def quantize_int8(
    source: Path,
    target: Path,
    images: QuantizationImages,
    allowed_norm: float,
    layers: Sequence[str],
    metadata: Mapping[str, str],
    on_step: OnStep = lambda done, note: None,
) -> QuantizationRecord:
    """Write the int8 form of the float32 file `source` to `target`.

    Ranges of activations come from the calibration images, by the method (smallest and largest value, percentile,
    entropy) that adds the least function norm on the check images. Where all layers in int8 add more than
    `allowed_norm`, channels are scaled to like ranges and biases make up for rounded weights, if that helps; where they
    still do, each is quantized alone, and the costliest are left in float (see `choose_float_groups`).

    Args:
        source: the float32 file.
        target: the file to write; its batch size stays free.
        images: calibration and check images.
        allowed_norm: the function norm E||int8(x) - float(x)||^2 up to which no layer is left in float.
        layers: names of the network's layers, whose factors are then treated as one.
        metadata: as for `export_onnx`.
        on_step: called with the number of trials done and what is tried next.

    Raises:
        BocompressError: the network cannot be quantized.
    """
    calibration, check = images.calibration[:CALIBRATION_IMAGES], images.check[:CHECK_IMAGES]
    try:
        with scratch_folder() as folder, silence():
            trials = _Trials(source, Path(folder), check, images.rows, on_step)
            proto, record = _search_int8(trials, calibration, allowed_norm, layers)
    except VerificationError as error:
        raise BocompressError(f"the network cannot be quantized to int8: {error}") from error
    except BocompressError:
        raise
    except Exception as error:  # the quantizer asserts, and indexes tables by what it does not know
        name = type(error).__name__
        raise BocompressError(f"the network cannot be quantized to int8 ({name}: {first_line(error)})") from error
    sign(proto, metadata)
    save_onnx(proto, target)
    return record


class _Trials:
    """Int8 forms of one file, and the function norm that each adds on the check images."""

    def __init__(self, source: Path, folder: Path, check: Tensor, rows: Rows | None, on_step: OnStep) -> None:
        self._folder, self._rows, self._on_step = folder, rows, on_step
        self.check = check
        self.prepared = folder / "prepared.onnx"
        self._large = needs_data_file(onnx.load(source))
        options = {"save_as_external_data": True, "all_tensors_to_one_file": True} if self._large else {}
        _prepare(source, self.prepared, options)
        self.model = onnx.load(self.prepared)
        self.ranges: Any = None
        self.shifts: dict[str, Array] = {}
        self.count = 0
        self._expected = self._run(source)

    def adjusted(self, images: Tensor, method: CalibrationName) -> "_Trials | None":
        """The same with channels scaled to like ranges, and biases that make up for rounded weights.

        Args:
            images: real inputs (N, ...), of which the first `STATISTICS_IMAGES` tell of the channels.
            method: that gives the ranges of activations.

        Returns:
            None where the weights lie in a file of their own: these are not read.
        """
        if self._large:
            return None
        other = copy(self)
        other.model, other.prepared = deepcopy(self.model), self._folder / "adjusted.onnx"
        names = sorted({layer.given for layer in GraphLayers(other.model).layers})
        found = channel_statistics(other.model, names, images[:STATISTICS_IMAGES], self._folder / "channels.onnx")
        scales = equalize_channels(other.model, {name: largest for name, (largest, _) in found.items()})
        onnx.save(other.model, other.prepared)
        other.ranges = other.find_ranges(method, images)
        means = {name: mean * scales.get(name, 1.0) for name, (_, mean) in found.items()}
        other.shifts = bias_shifts(other.model, other.build(), means)
        return other

    def find_ranges(self, method: CalibrationName, images: Tensor) -> TensorsData:
        """Ranges of all tensors that may be quantized, on the images (N, ...)."""
        self._report(f"{method} ranges")
        return activation_ranges(self.prepared, images, method, OPERATORS, self._folder, self._large)

    def build(self, exclude: Sequence[str] = (), only: Sequence[str] = ()) -> onnx.ModelProto:
        """The network in int8: the nodes of `only` (empty: all that can be), without those of `exclude` and places."""
        model = deepcopy(self.model)
        left = {name for name in self.shifts if name in exclude or (only and name not in only)}
        shift_biases(model, {name: shift for name, shift in self.shifts.items() if name not in left})
        quantizer = QDQQuantizer(
            model,
            True,  # per channel
            True,  # seven bits for weights
            QuantType.QInt8,
            QuantType.QUInt8,
            self.ranges,
            list(only),
            [*exclude, *place_nodes(model)],
            list(OPERATORS),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        _drop_unused_domains(quantizer.model.model)
        return quantizer.model.model

    def added_norm(self, exclude: Sequence[str] = (), only: Sequence[str] = (), note: str = "") -> float:
        """E||int8(x) - float(x)||^2 on the check images; infinite where outputs are not finite."""
        self.count += 1
        self._report(note)
        path = self._folder / "trial.onnx"
        if self._large:
            write_with_data(self.build(exclude, only), path)
        else:
            onnx.save(self.build(exclude, only), path)
        return function_norm(self._run(path), self._expected)

    def _run(self, path: Path) -> Logits:
        return run_batches(open_session(path), path, self.check, BATCH_SIZE, self._rows)

    def _report(self, note: str) -> None:
        self._on_step(self.count, note)


def _search_int8(
    trials: _Trials, calibration: Tensor, allowed_norm: float, layers: Sequence[str]
) -> tuple[onnx.ModelProto, QuantizationRecord]:
    """The int8 network with the best ranges and the layers in float that the budget requires."""
    method, joint = _choose_ranges(trials, calibration)
    adjusted = trials.adjusted(calibration, method) if joint > allowed_norm else None
    if adjusted is not None:
        norm = adjusted.added_norm(note="scaled channels, shifted biases")
        trials.count = adjusted.count
        if norm < joint:
            trials, joint = adjusted, norm
    groups = group_nodes(trials.model, layers)
    float_layers, norm = _choose_float_layers(trials, groups, joint, allowed_norm)
    proto = trials.build(exclude=_nodes(groups, [layer.name for layer in float_layers]))
    if not np.isfinite(norm):
        raise BocompressError("the network cannot be quantized to int8: its outputs are no longer finite")
    return proto, QuantizationRecord(
        calibration=method,
        calibration_images=len(calibration),
        check_images=len(trials.check),
        added_norm=norm,
        added_norm_all=min(joint, MAX_NORM),
        adjusted=trials is adjusted,
        allowed_norm=allowed_norm,
        layers=len(groups),
        float_layers=float_layers,
        trials=trials.count,
    )


def _prepare(source: Path, target: Path, options: Mapping[str, Any]) -> None:
    """Fold batch norms and infer shapes; without symbolic inference where that breaks down (Swin)."""
    try:
        quant_pre_process(str(source), str(target), **options)
    except Exception:
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True, **options)


def _drop_unused_domains(proto: onnx.ModelProto) -> None:
    """ONNX Runtime's optimizer imports every operator domain it knows; other runtimes may not know them all."""
    used = {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def function_norm(outputs: Logits, expected: Logits) -> float:
    """Mean over images of the squared distance of two outputs (N, classes); infinite where one is not finite."""
    differences = np.asarray(outputs, dtype=np.float64) - expected
    norm = float(np.square(differences).sum(axis=1).mean())
    return norm if np.isfinite(norm) else float("inf")


def _choose_ranges(trials: _Trials, images: Tensor) -> tuple[CalibrationName, float]:
    """The calibration method that adds the least function norm, and that norm; the trials keep its ranges."""
    found: dict[CalibrationName, tuple[float, Any]] = {}
    failure: Exception | None = None
    for method in CALIBRATORS:
        try:
            trials.ranges = trials.find_ranges(method, images)
            found[method] = trials.added_norm(note=f"{method} ranges"), trials.ranges
        except Exception as error:  # histograms fail on constant tensors
            failure = error
    if not found:
        raise failure or BocompressError("no calibration method is left")
    best = min(found, key=lambda method: found[method][0])
    norm, trials.ranges = found[best]
    return best, norm


def _choose_float_layers(
    trials: _Trials, groups: Mapping[str, list[str]], joint: float, allowed: float
) -> tuple[list[FloatLayer], float]:
    """The layers to leave in float, and the function norm that the others add together."""
    if joint <= allowed:
        return [], joint
    sensitivity = {
        name: trials.added_norm(only=nodes, note=f"layer {number} of {len(groups)}: {name}")
        for number, (name, nodes) in enumerate(groups.items(), start=1)
    }

    def measure(names: Sequence[str]) -> float:
        return trials.added_norm(exclude=_nodes(groups, names), note=f"{len(names)} layers in float")

    chosen, norm = choose_float_groups(sensitivity, joint, allowed, measure, _sizes(trials.model, groups))
    return [FloatLayer(name=name, added_norm=min(sensitivity[name], MAX_NORM)) for name in chosen], norm


def _nodes(groups: Mapping[str, list[str]], names: Iterable[str]) -> list[str]:
    return [node for name in names for node in groups[name]]


def _sizes(model: onnx.ModelProto, groups: Mapping[str, list[str]]) -> dict[str, float]:
    """What each group gives up in float: its share of the weights, and one of as many groups, for its time."""
    tensors = {tensor.name: float(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes = {node.name: sum(tensors.get(name, 0.0) for name in node.input) for node in model.graph.node}
    whole = max(1.0, sum(nodes.values()))
    return {name: sum(nodes[node] for node in names) / whole + 1 / len(groups) for name, names in groups.items()}
