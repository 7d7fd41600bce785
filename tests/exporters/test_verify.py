"""The export check of ONNX Runtime against torch, which a damaged file must not pass, and the comparison of files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from click.testing import Result
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor, nn

from compressor.errors import InputError, VerificationError
from exporters.onnx import export_onnx
from exporters.precision.float16 import convert_fp16
from exporters.session import open_session, run_batches
from exporters.verify import VERIFY_IMAGES, Labels, verify_files, verify_onnx


def digit_images(count: int, size: int) -> Tensor:
    """Handwritten digits as (count, 3, size, size), zero mean and unit deviation."""
    images = torch.tensor(load_digits().images[:count], dtype=torch.float32)[:, None]
    images = nn.functional.interpolate((images - images.mean()) / images.std(), size=size, mode="bilinear")
    return images.repeat(1, 3, 1, 1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return digit_images(VERIFY_IMAGES, 32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """ResNet-18 with random weights and batch norms that have seen digits."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10).train()
    with torch.no_grad():
        for _ in range(3):
            network(digit_images(64, 32))
    return network


@pytest.fixture(scope="module")
def exported(model: nn.Module, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "model.onnx"
    export_onnx(model, images[:2], path, {})
    return path


def damage(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(source)
    change(proto)
    onnx.save(proto, target)
    return target


def change_weight(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    change(weight)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))


def test_a_right_file_passes(exported: Path, model: nn.Module, images: Tensor) -> None:
    record = verify_onnx(exported, model, images)
    assert 0 < record.max_abs_error < 1e-3
    assert record.max_rel_error < 1e-5
    assert record.top1_agreement == 1.0
    assert (record.images, record.batch_sizes, record.tolerance) == (16, [1, 4, 6], 1e-4)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("batch_sizes", "seen"), [((8,), [1, 8]), ((1,), [1, 2]), ((1, 3, 3), [1, 3]), ((40,), [1, 16])]
)
def test_one_and_a_larger_batch_always_run(
    exported: Path, model: nn.Module, images: Tensor, batch_sizes: tuple[int, ...], seen: list[int]
) -> None:
    assert verify_onnx(exported, model, images, batch_sizes).batch_sizes == seen


def test_an_altered_weight_fails(exported: Path, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    def scale_one_filter(weight: np.ndarray) -> None:
        weight[0] *= 1.5

    def scale_conv(proto: onnx.ModelProto) -> None:
        change_weight(proto, "layer3.0.conv1.weight", scale_one_filter)

    path = damage(exported, tmp_path / "altered.onnx", scale_conv)
    with pytest.raises(VerificationError) as caught:
        verify_onnx(path, model, images)
    assert str(path) in str(caught.value)
    assert "0.0001 is allowed" in str(caught.value)


def test_other_weights_fail(exported: Path, images: Tensor) -> None:
    torch.manual_seed(1)
    with pytest.raises(VerificationError, match="does not compute what the torch network computes"):
        verify_onnx(exported, torchvision.models.resnet18(num_classes=10), images)


def test_nan_fails(exported: Path, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    def spoil(weight: np.ndarray) -> None:
        weight.flat[0] = np.nan

    # In the last layer every weight meets every image; at 1 px a corner of a 3x3 kernel meets only padding.
    path = damage(exported, tmp_path / "nan.onnx", lambda proto: change_weight(proto, "fc.weight", spoil))
    with pytest.raises(VerificationError, match="NaN"):
        verify_onnx(path, model, images)


def test_a_fixed_batch_fails(exported: Path, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    def fix_batch(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 6

    path = damage(exported, tmp_path / "fixed.onnx", fix_batch)
    with pytest.raises(VerificationError, match="does not run on batches of 1"):
        verify_onnx(path, model, images)


def test_a_graph_that_is_wrong_at_another_batch_size_fails(tmp_path: Path) -> None:
    """The batch has leaked into the mathematics: right for single images only."""
    x = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3])
    y = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    axes = numpy_helper.from_array(np.array([0]), "axes")
    node = onnx.helper.make_node("ReduceSum", ["input", "axes"], ["sum"])
    expand = onnx.helper.make_node("Expand", ["sum", "shape"], ["logits"])
    shape = onnx.helper.make_node("Shape", ["input"], ["shape"])
    graph = onnx.helper.make_graph([node, shape, expand], "leak", [x], [y], [axes])
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "leak.onnx")
    with pytest.raises(VerificationError, match="differ by up to"):
        verify_onnx(tmp_path / "leak.onnx", nn.Identity(), torch.eye(3))


def test_other_shapes_fail(exported: Path, images: Tensor) -> None:
    with pytest.raises(VerificationError, match=r"\[1, 10\] where torch gives \[1, 7\]"):
        verify_onnx(exported, torchvision.models.resnet18(num_classes=7), images)


def test_half_a_file_fails(exported: Path, model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(exported.read_bytes()[:1_000_000])
    with pytest.raises(VerificationError, match="cannot load") as caught:
        verify_onnx(path, model, images)
    assert "\n" not in str(caught.value)


def test_torch_itself_gives_nan(exported: Path, images: Tensor) -> None:
    network = torchvision.models.resnet18(num_classes=10)
    nn.init.constant_(network.fc.bias, float("nan"))
    with pytest.raises(VerificationError, match="torch network itself"):
        verify_onnx(exported, network, images)


def test_bad_input_is_an_error_in_one_sentence(
    exported: Path, model: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="at least 2 images"):
        verify_onnx(exported, model, images[:1])
    with pytest.raises(InputError, match="at least one image"):
        verify_onnx(exported, model, images, batch_sizes=(0, 4))
    with pytest.raises(InputError, match="there is no file"):
        verify_onnx(tmp_path / "none.onnx", model, images)


def test_a_file_is_the_same_as_itself(exported: Path, images: Tensor) -> None:
    record = verify_files(exported, exported, images)
    assert (record.same, record.max_abs_error, record.top1_agreement, record.divergence) == (True, 0.0, 1.0, None)


@pytest.mark.parametrize("layer", ["layer2.1.conv1", "fc"])
def test_two_files_diverge_first_at_the_layer_that_differs(
    exported: Path, images: Tensor, tmp_path: Path, layer: str
) -> None:
    def disturb(weight: np.ndarray) -> None:
        weight *= 1.5

    changed = damage(exported, tmp_path / "x.onnx", lambda proto: change_weight(proto, f"{layer}.weight", disturb))
    record = verify_files(exported, changed, images)
    assert not record.same
    assert record.divergence is not None
    assert record.divergence.layer == layer
    assert record.divergence.relative_error > record.tolerance
    ours, theirs = (
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images.numpy()})[0]
        for path in (exported, changed)
    )
    assert record.max_abs_error == pytest.approx(np.abs(ours - theirs).max(), rel=1e-4)
    assert record.worst_image == np.abs(ours - theirs).max(1).argmax()
    assert record.function_norm == pytest.approx(np.square(ours - theirs).sum(1).mean(), rel=1e-4)


def test_files_of_other_precision_are_compared_within_a_tolerance(
    exported: Path, images: Tensor, tmp_path: Path
) -> None:
    convert_fp16(exported, tmp_path / "half.onnx", images, {})
    assert verify_files(exported, tmp_path / "half.onnx", images, tolerance=0.02).same
    record = verify_files(exported, tmp_path / "half.onnx", images, tolerance=1e-7)
    assert not record.same
    assert record.tensors_compared >= 1


def test_outputs_that_are_no_numbers_are_never_the_same(exported: Path, images: Tensor, tmp_path: Path) -> None:
    def spoil(weight: np.ndarray) -> None:
        weight[3] = np.nan

    changed = damage(exported, tmp_path / "x.onnx", lambda proto: change_weight(proto, "fc.weight", spoil))
    record = verify_files(exported, changed, images)
    assert not record.same
    assert record.divergence is not None
    assert record.divergence.layer == "fc"
    with pytest.raises(VerificationError, match="itself gives NaN"):
        verify_files(changed, exported, images)


def test_the_exit_code_of_verify_tells_whether_files_are_the_same(
    exported: Path, tmp_path: Path, invoke: Callable[..., Result], digit_images: Path
) -> None:
    def disturb(weight: np.ndarray) -> None:
        weight *= 1.5

    changed = damage(exported, tmp_path / "x.onnx", lambda proto: change_weight(proto, "fc.weight", disturb))
    options = ["--data", digit_images, "--max-images", 8, "--input-size", 32]
    assert invoke("bocompress", "verify", exported, exported, *options).exit_code == 0
    result = invoke("bocompress", "verify", exported, changed, *options)
    assert result.exit_code == 1
    assert "x.onnx differ: by " in result.stdout
    assert "where --tolerance allows 0.0001" in result.stdout
    assert "fc (tensor logits" in result.stdout
    assert invoke("bocompress", "verify", exported, changed, *options, "--tolerance", 1).exit_code == 0
    missing = invoke("bocompress", "verify", tmp_path / "none.onnx", exported, *options)
    assert missing.exit_code == 2
    assert missing.stderr == f"error: cannot read {tmp_path / 'none.onnx'}: No such file or directory\n"


def write_other(path: Path, shape: list[int | str], kind: type = np.float32, outputs: int = 1) -> Path:
    """A file of another tool: images of `kind`, of any shape, to 4 numbers, or to several outputs."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    number = onnx.TensorProto.FLOAT if kind == np.uint8 else element
    weight = np.random.default_rng(0).standard_normal((3, 4))
    dense = numpy_helper.from_array(weight.astype(np.float32 if kind == np.uint8 else kind), "w")
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["c"], to=number),
        onnx.helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "w"], ["y0"]),
        *(onnx.helper.make_node("Relu", ["y0"], [f"y{index}"]) for index in range(1, outputs)),
    ]
    results = [onnx.helper.make_tensor_value_info(f"y{index}", number, None) for index in range(outputs)]
    given = [onnx.helper.make_tensor_value_info("x", element, shape)]
    graph = onnx.helper.make_graph(nodes, "other", given, results, [dense])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7), path)
    return path


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ({"shape": [1, 3, 16, 16]}, {"shape": [1, 3, 16, 16]}, 0),
        ({"shape": [5, 3, 16, 16]}, {"shape": ["n", 3, "h", "w"]}, 0),
        ({"shape": ["n", 3, 16, 32]}, {"shape": [2, 3, 16, 32], "outputs": 3}, 0),
        ({"shape": ["n", 3, 16, 16]}, {"shape": ["n", 3, 16, 16], "kind": np.float16}, 1),
        ({"shape": [2, 3, 16, 16], "kind": np.uint8}, {"shape": ["n", 3, 16, 16], "kind": np.uint8}, 0),
        ({"shape": ["n", 3, 16, 16]}, {"shape": ["n", 3, 16, 32]}, 2),
        ({"shape": ["n", 16, 16, 3]}, {"shape": ["n", 16, 16, 3]}, 2),
        ({"shape": ["n", 3, 16, 16]}, {"shape": ["n", 3, 16]}, 2),
    ],
)
def test_files_of_other_tools_are_compared_or_refused(
    first: dict, second: dict, code: int, tmp_path: Path, invoke: Callable[..., Result], digit_images: Path
) -> None:
    files = [write_other(tmp_path / f"{name}.onnx", **kind) for name, kind in (("a", first), ("b", second))]
    result = invoke("bocompress", "verify", *files, "--data", digit_images, "--max-images", 8)
    assert result.exit_code == code, result.output
    if code == 2:
        assert result.stderr.count("error: ") == result.stderr.count("\n") == 1
    else:
        assert ".png" in result.stdout  # the worst image's name
    assert ("y0, the first of" in result.stdout) == ("outputs" in first)


def write_classes(path: Path, shift: int) -> Path:
    """A file that ends in ArgMax, and adds `shift` to the class: int64 of one column."""
    write_other(path, ["n", 3, 16, 16])
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([shift]), "shift"))
    argmax = onnx.helper.make_node("ArgMax", ["y0"], ["i"], axis=1, keepdims=1)
    proto.graph.node.extend([argmax, onnx.helper.make_node("Add", ["i", "shift"], ["class"])])
    proto.graph.output.pop()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ["n", 1]))
    onnx.save(proto, path)
    return path


def test_classes_agree_where_they_are_the_same_integers(tmp_path: Path) -> None:
    """Files that end in ArgMax decide by their number, not by its sign."""
    images = torch.rand((6, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    one, other = (write_classes(tmp_path / f"{shift}.onnx", shift) for shift in (1, 2))
    labels = torch.from_numpy(run_batches(open_session(one), one, images, 4)[:, 0]).long()
    record = verify_files(one, other, images, labels=Labels(labels, 6))
    assert (record.agreement_of, record.top1_agreement, record.same) == ("integers", 0.0, False)
    assert record.top1 is not None
    assert (record.top1.original, record.top1.compressed) == (1.0, 0.0)
    assert verify_files(one, one, images).top1_agreement == 1.0


def with_metadata(path: Path, **values: str) -> Path:
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, values)
    onnx.save(proto, path)
    return path


def normalizing(path: Path, mean: float, std: float) -> Path:
    """The network of `write_other` on pixels in [0, 1], which takes them normalized by this mean and deviation."""
    write_other(path, ["n", 3, 16, 16])
    proto = onnx.load(path)
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("s", std), ("m", mean))]
    proto.graph.initializer.extend(weights)
    proto.graph.node[0].input[0] = "pixels"
    nodes = [onnx.helper.make_node("Mul", ["x", "s"], ["xs"]), onnx.helper.make_node("Add", ["xs", "m"], ["pixels"])]
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *rest])
    onnx.save(proto, path)
    return with_metadata(path, mean=f"[{mean}, {mean}, {mean}]", std=f"[{std}, {std}, {std}]")


def test_each_file_is_fed_as_its_own_metadata_say(
    tmp_path: Path, invoke: Callable[..., Result], digit_images: Path
) -> None:
    options = ["--data", digit_images, "--max-images", 6]
    half, other = normalizing(tmp_path / "a.onnx", 0.5, 0.5), normalizing(tmp_path / "b.onnx", 0.2, 0.1)
    pixels = with_metadata(write_other(tmp_path / "c.onnx", ["n", 3, 16, 16]), normalization="in-graph")
    scaled = with_metadata(normalizing(tmp_path / "e.onnx", 0, 1 / 255), value_range="[0, 255]", mean="[0]", std="[1]")
    for files in ((half, other), (other, half), (pixels, half), (other, pixels), (scaled, half)):
        result = invoke("bocompress", "verify", *files, *options)
        assert result.exit_code == 0, result.output
    given = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    assert invoke("bocompress", "verify", half, other, *options, *given).exit_code == 1
    assert invoke("bocompress", "verify", half, half, *options, *given).exit_code == 0
    assert invoke("bocompress", "verify", half, half, *options, "--mean", "0.5").exit_code == 0
    wrong = invoke("bocompress", "verify", half, half, *options, "--mean", "1,2")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)


def test_what_was_assumed_is_said_where_files_differ_by_much(
    tmp_path: Path, invoke: Callable[..., Result], digit_images: Path
) -> None:
    number, byte = (
        write_other(tmp_path / f"{kind.__name__}.onnx", ["n", 3, 16, "w"], kind) for kind in (np.float32, np.uint8)
    )
    result = invoke("bocompress", "verify", byte, number, "--data", digit_images, "--max-images", 6)
    assert result.exit_code == 1
    assert "float32.onnx does not say how its images are normalized, --mean 0.485," in result.stderr
    result = invoke("bocompress", "verify", byte, number, "--data", digit_images, "--input-size", 64)
    assert result.exit_code == 2
    assert result.stderr == "error: the files take images of height 16 only: leave out --input-size\n"


def test_nan_is_said_in_words(
    exported: Path, tmp_path: Path, invoke: Callable[..., Result], digit_images: Path
) -> None:
    def spoil(weight: np.ndarray) -> None:
        weight[3] = np.nan

    changed = damage(exported, tmp_path / "x.onnx", lambda proto: change_weight(proto, "fc.weight", spoil))
    options = ["--data", digit_images, "--max-images", 8, "--input-size", 32]
    result = invoke("bocompress", "verify", exported, changed, *options)
    assert result.exit_code == 1
    assert "x.onnx gives NaN or infinity on 8 of 8 images" in result.stdout
    assert "e+30" not in result.stdout


def test_a_file_that_does_not_run_cannot_be_compared(
    exported: Path, tmp_path: Path, invoke: Callable[..., Result], digit_images: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported.read_bytes()[:1_000_000])
    options = ["--data", digit_images, "--max-images", 8, "--input-size", 32]
    for files in ((exported, broken), (broken, exported)):
        result = invoke("bocompress", "verify", *files, *options)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_labels_give_both_files_top1(exported: Path, images: Tensor) -> None:
    decided = run_batches(open_session(exported), exported, images, 4).argmax(1)
    labels = torch.from_numpy(decided).clone()
    labels[:4] = (labels[:4] + 1) % 10
    record = verify_files(exported, exported, images, labels=Labels(labels, 10))
    assert record.top1 is not None
    assert (record.top1.original, record.top1.compressed) == (0.75, 0.75)
    assert verify_files(exported, exported, images, labels=Labels(labels, 12)).top1 is None
