"""Second moments of layers: sums against NumPy, gradients against one backward pass per output, in any passes."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.factorization.moments import INPUT_FLOOR, OUTPUT_FLOOR, LayerMoments, with_floor
from compressor.network.calibration import gradients as gradients_module
from compressor.network.calibration import moments as calibrate
from compressor.network.calibration.gradients import NUM_PROJECTIONS, OutputGradients
from compressor.network.calibration.moments import RunningMoments, chunks, collect_moments
from compressor.network.layers import FoundLayer, compressible, find_layers

CPU = torch.device("cpu")


def images_of(*shape: int, seed: int = 0) -> ImageSet:
    return from_batches([torch.randn(*shape, generator=torch.Generator().manual_seed(seed))], shape[0])


def layers_of(model: nn.Module, images: ImageSet) -> list[FoundLayer]:
    return find_layers(model.eval().requires_grad_(False), images.batch([0]))


def moments_of(model: nn.Module, images: ImageSet, seed: int = 0) -> dict[str, LayerMoments]:
    found = collect_moments(OutputGradients(model, images, CPU, seed), layers_of(model, images))
    return {layer.name: moments for layer, moments in found}


# Sums


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1), st.integers(0, 99)
)
def test_moments_are_those_of_all_rows(groups: int, n: int, m: int, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (3 + rng.standard_normal((sum(sizes), groups, size)) for size in (n, m))
    moments, begin = RunningMoments(groups), 0
    for size in sizes:
        rows, targets = (torch.from_numpy(part[begin : begin + size]).float().flatten(1) for part in (x, y))
        moments.add(rows, targets)
        begin += size
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(moments.mean(), x.mean(0), **close)
    np.testing.assert_allclose(moments.target_mean(), y.mean(0), **close)
    for group in range(groups):
        one, two = x[:, group], y[:, group]
        both = np.cov(one.T, two.T, bias=True)
        np.testing.assert_allclose(moments.covariance()[group], both[:n, :n], **close)
        np.testing.assert_allclose(moments.cross_covariance()[group], both[:n, n:], **close)
    assert moments.variance() == pytest.approx(x.var(0).sum(), rel=1e-4, abs=1e-4)
    assert moments.count == sum(sizes)


def test_small_variation_about_a_large_mean_is_kept_and_none_is_none() -> None:
    torch.manual_seed(0)
    moving, still = 1000 + 1e-2 * torch.randn(500, 3), torch.full((500, 2), 123.456)
    rows = torch.cat([moving, still], 1)
    moments = RunningMoments(1)
    for part in rows.split(64):
        moments.add(part, part)
    expected = np.cov(moving.double().numpy().T, bias=True)
    for found in (moments.covariance()[0], moments.cross_covariance()[0]):
        np.testing.assert_allclose(found[:3, :3], expected, rtol=1e-3, atol=1e-7)
        assert not found[3:].any()
        assert not found[:, 3:].any()


# Moments of a network


@pytest.fixture
def network() -> nn.Module:
    """Convolutions whose outputs the next module overwrites."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 1),
        nn.Hardswish(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


def test_every_layer_gets_its_moments_in_order(network: nn.Module) -> None:
    images = images_of(40, 3, 8, 8)
    layers = layers_of(network, images)
    found = list(collect_moments(OutputGradients(network, images, CPU, 0), layers))
    assert [layer.name for layer, _ in found] == ["0", "2", "5", "9"]
    for layer, moments in found:
        groups, num_in = layer.num_groups, torch.Size(layer.shape[1:]).numel()
        num_out = layer.shape[0] // groups
        assert moments.covariance.shape == (groups, num_in, num_in)
        assert moments.mean.shape == (groups, num_in)
        assert moments.outputs.shape == (groups, num_out, num_out)
        assert (moments.covariance.dtype, moments.outputs.dtype) == (torch.float32, torch.float64)
        for part in (moments.covariance, moments.outputs):
            torch.testing.assert_close(part, part.mT, rtol=1e-4, atol=1e-6)  # products are summed in float32
            assert float(torch.linalg.eigvalsh(part).min()) > 0
    assert not any(module._forward_hooks for module in network.modules())


def patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """By torch's own unfold: (positions, n), groups one after the other."""
    columns = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.movedim(1, -1).flatten(0, 1).double()


def test_covariances_are_those_of_the_inputs(network: nn.Module) -> None:
    images = images_of(40, 3, 8, 8)
    metrics = moments_of(network, images)
    with torch.inference_mode():
        inputs = {name: network[: int(name)](images.batch(slice(None)).clone()) for name in metrics}
    for name, moments in metrics.items():
        layer = network[int(name)]
        rows = patches(layer, inputs[name]) if isinstance(layer, nn.Conv2d) else inputs[name].double()
        for group, part in enumerate(rows.chunk(len(moments.mean), 1)):
            torch.testing.assert_close(moments.mean[group], part.mean(0), rtol=1e-4, atol=1e-5)
            expected = with_floor(part.T.cov(correction=0)[None], INPUT_FLOOR)[0]
            torch.testing.assert_close(moments.covariance[group].double(), expected, rtol=1e-3, atol=1e-5)


def exact_weights(network: nn.Module, images: ImageSet, name: str) -> Tensor:
    """The mean over positions of J^T J by one backward pass per output, up to its scale, before the floor."""
    begin = int(name) + 1
    layer = network[int(name)]
    before = network[:begin](images.batch(slice(None))).detach()
    total = 0
    for image in before:
        jacobian = torch.autograd.functional.jacobian(lambda z: network[begin:](z[None].clone())[0], image)
        flat = jacobian.flatten(2) if isinstance(layer, nn.Conv2d) else jacobian[..., None]
        total = total + torch.einsum("kop,kqp->oq", flat, flat)
    groups, size = getattr(layer, "groups", 1), len(before[0]) // getattr(layer, "groups", 1)
    blocks = total.reshape(groups, size, groups, size)
    kept = torch.stack([blocks[group, :, group] for group in range(groups)])
    return kept / kept.diagonal(dim1=-2, dim2=-1).mean()


@pytest.mark.parametrize("name", ["0", "2", "5", "9"])
def test_gradient_moments_are_those_of_the_jacobian(
    network: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients_module, "NUM_PROJECTIONS", 300)
    images = images_of(6, 3, 8, 8)
    found = OutputGradients(network, images, CPU, 0).by_position([name])[name]
    expected = exact_weights(network, images, name).double()
    expected = expected + OUTPUT_FLOOR * torch.diag_embed(
        expected.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).expand(expected.shape[:2])
    )
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_gradient_moments_of_a_linear_network_with_one_output_are_exact() -> None:
    """A single random sign squares to one."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 1))
    images = images_of(20, 6)
    found = OutputGradients(network, images, CPU, 0).by_position(["0", "1"])
    for name, jacobian in (("0", network[2].weight @ network[1].weight), ("1", network[2].weight)):
        exact = (jacobian.T @ jacobian).double().detach()
        shrinkage = OUTPUT_FLOOR + len(exact) / (20 * NUM_PROJECTIONS)
        exact = exact / exact.diagonal().mean() + shrinkage * torch.eye(len(exact), dtype=torch.float64)
        torch.testing.assert_close(found[name][0], exact, rtol=1e-5, atol=1e-6)


def test_too_wide_layers_get_no_moments(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MAX_INPUTS", 26)
    assert list(moments_of(network, images_of(10, 3, 8, 8))) == ["5", "9"]
    monkeypatch.setattr(calibrate, "MAX_INPUTS", 27)
    assert list(moments_of(network, images_of(10, 3, 8, 8))) == ["0", "5", "9"]


@pytest.mark.parametrize("max_rows", [100, 100_000])
def test_passes_for_few_layers_each_give_the_same(
    network: nn.Module, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random positions, too: a layer's do not depend on the other layers of the pass."""
    monkeypatch.setattr(calibrate, "MAX_ROWS", max_rows)
    images = images_of(40, 3, 8, 8)
    together = moments_of(network, images)
    monkeypatch.setattr(calibrate, "MEMORY_BYTES", 1)
    apart = moments_of(network, images)
    assert list(apart) == list(together)
    for name, moments in together.items():
        for part in ("covariance", "mean", "outputs"):
            torch.testing.assert_close(getattr(apart[name], part), getattr(moments, part))


def test_chunks_keep_to_the_memory_and_the_order(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of(network, images_of(2, 3, 8, 8))
    sizes = dict(zip(("0", "2", "5", "9"), (300, 900, 100, 200), strict=True))

    def cut(memory: int) -> list[list[str]]:
        monkeypatch.setattr(calibrate, "MEMORY_BYTES", memory)
        return [[layer.name for layer in chunk] for chunk in chunks(layers, lambda layer: sizes[layer.name])]

    assert cut(1000) == [["0"], ["2", "5"], ["9"]]
    assert cut(1499) == [["0", "2", "5"], ["9"]]
    assert cut(1500) == [["0", "2", "5", "9"]]
    assert cut(1) == [["0"], ["2"], ["5"], ["9"]]
    assert list(chunks([], lambda layer: 1)) == []


def test_a_limited_number_of_positions_enters(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MAX_ROWS", 100)
    images = images_of(40, 3, 8, 8)
    layers, gradients = layers_of(network, images), OutputGradients(network, images, CPU, 0)
    replay = gradients.replay([layer.name for layer in layers])
    moments = calibrate._input_moments(gradients, layers, replay)
    assert [part.count for part in moments.values()] == [100, 100, 100, 40]
    assert moments_of(network, images)["0"].covariance.equal(moments_of(network, images)["0"].covariance)
    assert not moments_of(network, images)["0"].covariance.equal(moments_of(network, images, 1)["0"].covariance)


def test_the_network_and_the_images_stay_as_they_were(network: nn.Module) -> None:
    images = images_of(10, 3, 8, 8)
    pixels, before = images.data.clone(), {name: value.clone() for name, value in network.state_dict().items()}
    moments_of(network, images)
    assert torch.equal(images.data, pixels)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


class Frozen(nn.Module):
    """A network that computes a part of itself without gradients."""

    def __init__(self, context: Callable[[], torch.no_grad]) -> None:
        super().__init__()
        self.body, self.head, self.context = nn.Linear(6, 6), nn.Linear(6, 3), context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            hidden = torch.relu(self.body(x))
        return self.head(hidden.clone())


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(1)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_parts_without_gradients_get_the_identity(context: Callable[[], torch.no_grad]) -> None:
    metrics = moments_of(Frozen(context), images_of(20, 6))
    torch.testing.assert_close(metrics["body"].outputs[0], torch.eye(6, dtype=torch.float64))
    assert float(metrics["head"].covariance.diagonal(dim1=-2, dim2=-1).min()) > 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_network_without_any_gradient(context: Callable[[], torch.no_grad]) -> None:
    class Decorated(Frozen):
        def forward(self, x: Tensor) -> Tensor:
            with self.context():
                return super().forward(x)

    for moments in moments_of(Decorated(context), images_of(20, 6)).values():
        torch.testing.assert_close(moments.outputs[0], torch.eye(len(moments.outputs[0]), dtype=torch.float64))


def test_a_network_that_changes_its_input_in_place() -> None:
    images = images_of(20, 6)
    before = images.data.clone()
    metrics = moments_of(nn.Sequential(InPlace(), nn.Linear(6, 3)), images)
    assert list(metrics) == ["1"]
    assert torch.equal(images.data, before)


def test_equal_images_give_positive_definite_moments(network: nn.Module) -> None:
    images = from_batches([torch.ones(20, 3, 8, 8)], 20)
    for moments in moments_of(network, images).values():
        torch.linalg.cholesky(moments.covariance)
        torch.linalg.cholesky(moments.outputs)


# Unusual networks


class Awkward(nn.Module):
    """Keywords, one image at a time, two calls of one layer, outputs (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.twice = nn.Linear(6, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.stack([self.conv(image) for image in x]).mean((-1, -2))
        mixed = self.twice(input=torch.relu(self.twice(features)))
        return torch.stack([self.last(row) for row in mixed]).sum(1)


class Cached(nn.Module):
    """Keeps a tensor of its first pass, which then has no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 5)
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        if self.scale is None:
            self.scale = torch.ones_like(hidden[:1]) * 2
        return self.second(hidden * self.scale)


def awkward_images(*shape: int) -> ImageSet:
    torch.manual_seed(0)
    return from_batches([torch.randn(24, *shape)], 24)


def test_unusual_calls_are_counted() -> None:
    model, images = Awkward().eval().requires_grad_(False), awkward_images(3, 6, 6)
    layers = compressible(find_layers(model, images.batch([0])))
    found = [layer.name for layer, _ in collect_moments(OutputGradients(model, images, CPU, 0), layers)]
    assert found == [layer.name for layer in layers] == ["conv", "twice", "last"]


def test_a_network_without_gradients_gets_the_identity() -> None:
    model, images = Cached().eval().requires_grad_(False), awkward_images(12)
    with torch.inference_mode():
        model(images.batch([0]))  # the tensor it keeps cannot be used by autograd any more
    layers = compressible(find_layers(model, images.batch([0])))
    weights = OutputGradients(model, images, CPU, 0).by_position([layer.name for layer in layers])
    assert all(torch.equal(weight[0], torch.eye(weight.shape[-1], dtype=weight.dtype)) for weight in weights.values())


def test_autocast_inside_a_network_does_not_round_the_sums() -> None:
    rows = torch.randn(50, 8) + 4.0
    sums = RunningMoments(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums.add(rows)
    np.testing.assert_allclose(sums.covariance()[0], np.cov(rows.double().numpy().T, bias=True), atol=1e-5)


def test_sums_of_gradients_are_found_once_for_all_who_ask(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(10, 3, 8, 8)
    kept = OutputGradients(network, images, CPU, 0)
    first = kept.by_position(["0", "2"])
    with monkeypatch.context() as patch:
        patch.setattr(gradients_module, "projected_gradients", lambda *_: pytest.fail("a second pass"))
        torch.testing.assert_close(kept.by_position(["2"])["2"], first["2"])
        of_images = kept.by_image(["0"])["0"]
    monkeypatch.setattr(gradients_module, "KEPT_BYTES", 0)
    again = OutputGradients(network, images, CPU, 0)
    torch.testing.assert_close(again.by_image(["0"])["0"], of_images)
    assert not again._kept


def test_sums_by_image_weigh_what_positions_share(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that are the same at all P positions count P^2 times, those that cancel P times in all."""
    same, opposite = torch.ones(2, 8, 3, 3), torch.ones(2, 8, 1, 2) * torch.tensor([1.0, -1.0])
    for gradient, expected in ((same, 81.0), (opposite, 2.0)):
        given = iter([(0, gradient)])
        monkeypatch.setattr(gradients_module, "projected_gradients", lambda *_, given=given: given)
        found = OutputGradients(network, images_of(4, 3, 8, 8), CPU, 0).by_image(["0"])["0"]
        torch.testing.assert_close(found, torch.full((8, 8), expected, dtype=torch.float64))


@pytest.mark.parametrize("groups", [1, 2])
def test_some_of_many_positions_tell_the_sums_of_all(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups)).eval().requires_grad_(False)
    gradient = torch.randn(2, 8, 6, 10).cumsum(1) + torch.randn(2, 8, 1, 1)
    monkeypatch.setattr(gradients_module, "projected_gradients", lambda *_: iter([(0, gradient)] * 500))

    def sums() -> tuple[torch.Tensor, torch.Tensor]:
        kept = OutputGradients(network, images_of(4, 4, 8, 8), CPU, 0)
        return kept.by_image(["0"])["0"], kept.by_position(["0"])["0"]

    whole = sums()
    monkeypatch.setattr(gradients_module, "MAX_POSITIONS", 20)
    for expected, found in zip(whole, sums(), strict=True):
        assert not torch.equal(expected, found)
        assert float((found - expected).norm() / expected.norm()) < 0.03


def test_short_memory_is_no_reason_to_go_without_gradients(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> Iterator[tuple[int, torch.Tensor]]:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")
        yield

    monkeypatch.setattr(gradients_module, "projected_gradients", short)
    with pytest.raises(RuntimeError, match="not enough memory"):
        OutputGradients(network, images_of(4, 3, 8, 8), CPU, 0).by_position(["0"])
