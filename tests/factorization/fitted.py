"""Layers, second moments and the errors that factors make on them."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.factorization.base import AllRanks
from compressor.factorization.layers.kinds import weight_of
from compressor.factorization.moments import LayerMoments


def identity_moments(groups: int, num_inputs: int, num_outputs: int) -> LayerMoments:
    """The moments under which the best factors are those of plain truncation: all identities, and no mean."""
    return LayerMoments(
        covariance=torch.eye(num_inputs, dtype=torch.float64).expand(groups, -1, -1),
        mean=torch.zeros(groups, num_inputs, dtype=torch.float64),
        outputs=torch.eye(num_outputs, dtype=torch.float64).expand(groups, -1, -1),
    )


MODES = ("zeros", "reflect", "replicate", "circular")
EXACT = 1e-4


def spread(size: int, generator: torch.Generator, groups: int = 1) -> Tensor:
    """Random covariances (groups, size, size) whose standard deviations lie between 0.2 and 2."""
    basis, _ = torch.linalg.qr(torch.randn(groups, size, size, generator=generator, dtype=torch.float64))
    deviations = 0.2 + 1.8 * torch.rand(groups, size, generator=generator, dtype=torch.float64)
    return (basis * deviations.square()[:, None]) @ basis.mT


def random_moments(layer: nn.Module, seed: int = 0) -> LayerMoments:
    generator = torch.Generator().manual_seed(seed)
    groups = getattr(layer, "groups", 1)
    num_out, num_in = len(weight_of(layer)) // groups, weight_of(layer)[0].numel()
    mean = torch.randn(groups, num_in, generator=generator, dtype=torch.float64)
    return LayerMoments(spread(num_in, generator, groups), mean, spread(num_out, generator, groups))


def as_matrix(layer: nn.Module, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What `module` does to one patch of `layer`: weight (groups, Co/groups, n) and bias (groups, Co/groups).

    Found from every patch with a single one, for layers without padding.
    """
    groups, num_in = getattr(layer, "groups", 1), layer.weight[0].numel()
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, *layer.kernel_size)
    with torch.inference_mode():
        bias = module(torch.zeros(1, *shape)).double().flatten(1)
        inputs = torch.eye(num_in).repeat(1, groups).reshape(num_in, *shape)
        given = module(inputs).double().flatten(1) - bias
    return given.T.reshape(groups, -1, num_in), bias.reshape(groups, -1)


def output_error(layer: nn.Module, module: nn.Module, moments: LayerMoments) -> tuple[Tensor, float]:
    """Mean (groups, Co/groups) of the change of the outputs, and its variance summed over outputs."""
    (weight, bias), (changed, changed_bias) = as_matrix(layer, layer), as_matrix(layer, module)
    difference = changed - weight
    mean = torch.einsum("gon,gn->go", difference, moments.mean) + changed_bias - bias
    return mean, float(((difference @ moments.covariance) * difference).sum())


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@st.composite
def convolutions(draw: st.DrawFn, groups: tuple[int, ...] = (1, 2), largest: int = 4) -> nn.Conv2d:
    """Convolutions of every geometry that an 11 x 12 image can take."""
    num_groups = draw(st.sampled_from(groups))
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    if padding == "numbers":
        padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return nn.Conv2d(
        num_groups * draw(st.integers(1, largest)),
        num_groups * draw(st.integers(1, largest)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        stride=stride,
        padding=padding,
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        groups=num_groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(MODES)),
    ).eval()


torch.manual_seed(0)


LAYERS = [
    ("svd", nn.Linear(14, 9)),
    ("svd", nn.Linear(9, 14, bias=False)),
    ("svd", nn.Conv2d(12, 8, 1, groups=2)),
    ("spatial", nn.Conv2d(4, 6, 3)),
    ("spatial", nn.Conv2d(6, 8, (3, 2), groups=2)),
    ("spatial", nn.Conv2d(3, 8, (1, 5), bias=False)),
    ("tucker", nn.Conv2d(6, 8, 3)),
    ("tucker", nn.Conv2d(3, 12, (2, 3), bias=False)),
    ("cp", nn.Conv2d(4, 5, 3)),
    ("interpolative", nn.Linear(9, 14)),
    ("interpolative", nn.Conv2d(4, 8, 2)),
    ("interpolative", nn.Conv2d(3, 8, 2, bias=False)),
]


def scaled(layer: nn.Module, scale: float) -> nn.Module:
    """The layer with other weights."""
    other = type(layer)(*shape_of(layer), groups=layer.groups) if isinstance(layer, nn.Conv2d) else None
    other = other or nn.Linear(layer.in_features, layer.out_features)
    other.weight.data = scale * layer.weight.detach()
    other.bias.data.zero_()
    return other


def shape_of(layer: nn.Conv2d) -> tuple[Any, ...]:
    return layer.in_channels, layer.out_channels, layer.kernel_size


def last_of(module: nn.Module) -> nn.Module:
    return module.rest if hasattr(module, "rest") else module[-1]


def check_along(found: AllRanks, built: Sequence[nn.Module], inputs: Tensor) -> None:
    """Inner products at all ranks are those with the outputs of each."""
    outputs = torch.stack([module(inputs) for module in built])
    gradients = torch.randn(3, *outputs.shape[1:])
    expected = torch.einsum("pbn,kbn->pbk", gradients.flatten(2), outputs.flatten(2))
    scale = max(1.0, float(expected.abs().max()))
    assert float((found.along(inputs, gradients) - expected).abs().max()) < EXACT * scale
