"""Files of strangers beside others: outputs of all kinds, loops that depend on the input, metadata without sense."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import InputError, ShortageError
from compressor.process.children import python_command
from exporters import strangers
from exporters.feeding import class_names_of, normalization_of, transform_of
from exporters.session import open_session, run_within
from exporters.strangers import require_sound
from exporters.verify import verify_files

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FLATTEN = helper.make_node("Flatten", ["x"], ["y"])


def value(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def make_file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, Any] | None = None,
) -> Path:
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", [value("x", shape=["n", 3, 8, 8])], outputs, weights)
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def test_texts_and_sequences_beside_numbers_are_left_out(tmp_path: Path) -> None:
    nodes = [
        FLATTEN,
        helper.make_node("Cast", ["x"], ["texts"], to=TensorProto.STRING),
        helper.make_node("SequenceConstruct", ["x"], ["several"]),
    ]
    several = helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None)
    path = make_file(tmp_path / "a.onnx", nodes, [value("y"), value("texts", TensorProto.STRING), several])
    found = verify_files(path, path, IMAGES)
    assert found.same
    assert (found.output, found.outputs) == ("y", 3)


def test_empty_outputs_decide_nothing(tmp_path: Path) -> None:
    nodes = [FLATTEN, helper.make_node("Slice", ["y", "start", "start", "axis"], ["none"])]
    constants = {"start": np.array([0]), "axis": np.array([1])}
    for outputs in ([value("none")], [value("y"), value("none")]):
        path = make_file(tmp_path / "a.onnx", nodes, outputs, constants)
        assert verify_files(path, path, IMAGES).same


def loop(condition: str) -> list[onnx.NodeProto]:
    """Goes on as long as `condition`, an input's or a constant's name, is true."""
    ports = [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v")]
    nodes = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])]
    body = helper.make_graph(nodes, "body", ports, [value("c2", TensorProto.BOOL, []), value("v2")])
    return [FLATTEN, helper.make_node("Loop", ["most", condition, "y"], ["z"], body=body)]


def endless_but_on_zeros(path: Path) -> Path:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["highest"], keepdims=0),
        helper.make_node("Greater", ["highest", "zero"], ["goes_on"]),
        *loop("goes_on"),
    ]
    return make_file(path, nodes, [value("z")], {"most": np.int64(2**60), "zero": np.float32(0)})


def test_a_loop_that_zeros_do_not_enter_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = endless_but_on_zeros(tmp_path / "a.onnx")
    with pytest.raises(TimeoutError, match=r"no end came within 0\.2 seconds"):
        run_within(open_session(path, threads=1), None, {"x": np.ones((1, 3, 8, 8), np.float32)}, 0.2)
    monkeypatch.setattr(strangers, "SECONDS_ALLOWED", 5)
    with pytest.raises(InputError, match="does not run to its end within 5 seconds"):
        require_sound(path)


SENSE = {
    **{"input_height": "8", "input_width": "8", "resize_size": "9", "interpolation": "bilinear"},
    **{"mean": "[0.5]", "std": "[0.5]"},
}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("input_height", ["0", "-8", "1000000000", "9" * 5000, "eight"]),
        ("resize_size", ["0", "1000000000", ""]),
        ("interpolation", ["nearest", ""]),
        ("input_frames", ["0", "-1", "99999999"]),
        ("mean", ["NaN", "[NaN]", "[1e999]", "[1" + "0" * 400 + "]", "[" * 100_000, "{}", "[]", '["a"]', "7"]),
        ("std", ["[0]", "[-1]", "[NaN]", "[null]", "[]", "[[1]]"]),
    ],
)
def test_metadata_without_sense_are_none(key: str, values: list[str]) -> None:
    assert transform_of(SENSE) is not None
    for given in values:
        assert transform_of({**SENSE, key: given}) is None, given
    if key in ("mean", "std"):
        assert all(normalization_of({**SENSE, key: given}) is None for given in values)


@pytest.mark.parametrize("names", ["[" * 100_000, "7", "{}", "", "[" + "9" * 5000 + "]"])
def test_names_of_classes_without_sense_are_none(names: str) -> None:
    assert class_names_of({"class_names": names}) is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (["Traceback", "MemoryError"], ShortageError),
        (["ImportError: libopenblas.so: failed to map segment from shared object"], ShortageError),
        (["too little memory (bad allocation): close other programs"], ShortageError),
        (["a.onnx is not an ONNX network (cannot allocate memory for ants)"], InputError),
        (["ValueError: nonsense"], InputError),
    ],
)
def test_a_process_that_ended_for_want_of_memory_says_nothing_of_the_file(said: list[str], kind: type) -> None:
    assert type(strangers._explain_end(Path("a.onnx"), said)) is kind


def test_a_limit_of_memory_that_is_there_already_is_not_raised(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a.onnx", [FLATTEN], [value("y")])
    limited = f"ulimit -v 4000000; exec {shlex.join(python_command('exporters.strangers', path, 8))}"
    done = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
