"""ONNX files of strangers: what they refer to, what they give, and what they do when they are run."""

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import BocompressError, InputError
from exporters import strangers
from exporters.strangers import external_files, require_sound
from tests.hard.mutations import mutate_bytes
from tests.hard.test_parsers import FEW, try_all

SIDE, OUTPUTS = 8, 3 * 8 * 8
OPSET = [helper.make_opsetid("", 17)]


def value(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def make_file(
    path: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any] | None = None, **other: Any
) -> Path:
    """An ONNX file of images to the output y."""
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    inputs = other.get("inputs", [value("x", shape=["n", 3, SIDE, SIDE])])
    outputs = other.get("outputs", [value("y")])
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [*weights, *other.get("weights", [])])
    path.write_bytes(helper.make_model(graph, opset_imports=OPSET, ir_version=8).SerializeToString())
    return path


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


FLATTEN = node("Flatten", "x", "f")
SMALL = node("Flatten", "x", "y")


def outside(location: str, **entries: int) -> onnx.TensorProto:
    """A weight kept in another file."""
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.dims.extend([OUTPUTS, 10])
    for key, told in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(told))
    return tensor


@pytest.mark.parametrize(
    ("location", "entries", "reason"),
    [
        ("/dev/zero", {}, "outside its folder"),
        ("/etc/passwd", {}, "outside its folder"),
        ("../../../../../../../../dev/zero", {}, "outside its folder"),
        ("link", {}, "outside its folder"),
        ("missing", {}, "No such file"),
        ("pipe", {}, "no regular file"),
        (".", {}, "Is a directory"),
        ("weights", {"offset": 0, "length": 10**15}, "more weights"),
        ("weights", {"offset": 10**15}, "more weights"),
    ],
)
def test_weights_elsewhere_are_not_read(tmp_path: Path, location: str, entries: dict[str, int], reason: str) -> None:
    (tmp_path / "weights").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    path = make_file(
        tmp_path / "a.onnx", [FLATTEN, node("MatMul", "f w", "y")], {}, weights=[outside(location, **entries)]
    )
    with pytest.raises(InputError, match=reason):
        external_files(path)


def test_weights_beside_it_are_found(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(4 * 10 * OUTPUTS))
    path = make_file(tmp_path / "a.onnx", [FLATTEN, node("MatMul", "f w", "y")], {}, weights=[outside("weights")])
    assert external_files(path) == [tmp_path / "weights"]
    require_sound(path)


def endless() -> onnx.NodeProto:
    ports = [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v")]
    nodes = [node("Identity", "c", "c2"), node("Identity", "v", "v2")]
    body = helper.make_graph(nodes, "body", ports, [value("c2", TensorProto.BOOL, []), value("v2")])
    return node("Loop", "m t f", "y", body=body)


Case = tuple[Sequence[onnx.NodeProto], dict[str, Any], dict[str, Any]]
UNSOUND: dict[str, Case] = {
    "endless": ([FLATTEN, endless()], {"m": np.int64(2**60), "t": np.bool_(True)}, {}),
    "all memory": (
        [FLATTEN, node("ConstantOfShape", "s", "c"), node("ReduceMean", "c", "r"), node("Add", "f r", "y")],
        {"s": np.array([10**6, 10**6])},
        {},
    ),
    "no outputs": ([SMALL], {}, {"outputs": []}),
    "vast input": ([SMALL], {}, {"inputs": [value("x", shape=[1, 3, 2**20, 2**20])]}),
    "empty input": ([SMALL], {}, {"inputs": [value("x", shape=[0, 3, 8, 8])]}),
    "no such operator": ([node("Melt", "x", "y")], {}, {}),
    "a circle": ([node("Add", "x b", "a"), node("Add", "a x", "b"), node("Identity", "a", "y")], {}, {}),
    "texts in": ([node("Identity", "x", "y")], {}, {"inputs": [value("x", TensorProto.STRING, ["n", 3, 8, 8])]}),
}


@pytest.mark.hard
@pytest.mark.parametrize("name", [*UNSOUND])
def test_what_cannot_be_run_is_said_in_a_sentence(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, tally: Callable[..., None]
) -> None:
    monkeypatch.setattr(strangers, "SECONDS_ALLOWED", 20)
    nodes, constants, other = UNSOUND[name]
    path = make_file(tmp_path / "a.onnx", nodes, constants, **other)
    with pytest.raises(BocompressError):
        require_sound(path)
    tally("ONNX files that cannot be run", tried=1, refused=1, right=0)


def sound_file(path: Path) -> bytes:
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", "x w b", "c"),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "y"),
    ]
    constants = {"w": rng.normal(size=(4, 3, 3, 3)).astype("f4"), "b": np.zeros(4, "f4")}
    return make_file(path, nodes, constants).read_bytes()


@pytest.mark.parametrize("count", [FEW, pytest.param(200, marks=pytest.mark.hard)])
def test_altered_files_are_parsed_or_refused(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    rng, whole = random.Random(9), sound_file(tmp_path / "sound.onnx")

    def read(path: Path) -> bool:
        return all(part.parent == path.parent for part in external_files(path))

    contents = (mutate_bytes(whole, rng) for _ in range(count))
    tally("ONNX files, parsed", **try_all(contents, tmp_path / "a.onnx", read))


@pytest.mark.hard
def test_altered_files_are_run_or_refused(tmp_path: Path, tally: Callable[..., None]) -> None:
    rng, whole = random.Random(10), sound_file(tmp_path / "sound.onnx")

    def read(path: Path) -> bool:
        require_sound(path)
        return True

    contents = (mutate_bytes(whole, rng) for _ in range(20))
    tally("ONNX files, run", **try_all(contents, tmp_path / "a.onnx", read))


def test_a_broken_second_file_is_no_difference(invoke: Callable[..., Any], tmp_path: Path) -> None:
    sound_file(tmp_path / "first.onnx")
    (tmp_path / "second.onnx").write_bytes(b"no network" * 9)
    result = invoke("bocompress", "verify", tmp_path / "first.onnx", tmp_path / "second.onnx")
    assert result.exit_code == 2
    assert "second.onnx is not an ONNX network" in result.stderr
    assert len(result.stderr.splitlines()) == 1
