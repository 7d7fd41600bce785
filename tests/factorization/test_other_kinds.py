"""Factors of convolutions of signals and clips, and of transposed ones: exact at full rank, best under moments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.factorization.layers.kinds import groups_of, set_weight, weight_of
from compressor.factorization.registry import METHODS, applicable_methods
from compressor.network.calibration.moments import RunningMoments, make_moments
from compressor.network.hooks import sample_positions
from compressor.network.layers import find_layers
from compressor.network.macs import count_macs
from tests.factorization.kinds import inputs_of, plain, transposed

EXACT = 1e-4


def spread(layer: nn.Module) -> float:
    """Scale of a layer's outputs, also where they are all its bias."""
    return float(layer.weight.abs().sum()) + 1.0


@settings(max_examples=120, deadline=None)
@given(st.one_of(plain(), transposed()), st.data())
def test_factors_are_exact_at_full_rank(layer: nn.Module, data: st.DataObject) -> None:
    shape = weight_of(layer).shape
    method = METHODS[data.draw(st.sampled_from(applicable_methods(shape, layer.groups)))]
    factors, inputs = method.factorize(layer), inputs_of(layer)
    assert factors.max_rank == method.max_rank(shape, layer.groups)
    with torch.inference_mode():
        torch.testing.assert_close(
            factors.build(factors.max_rank)(inputs), layer(inputs), rtol=0, atol=EXACT * spread(layer)
        )


@settings(max_examples=80, deadline=None)
@given(st.one_of(plain(), transposed()), st.data())
def test_factors_have_the_parameters_that_are_counted(layer: nn.Module, data: st.DataObject) -> None:
    shape = weight_of(layer).shape
    name = data.draw(st.sampled_from(applicable_methods(shape, layer.groups)))
    factors = METHODS[name].factorize(layer)
    rank = data.draw(st.integers(1, factors.max_rank))
    weights = [value.numel() for key, value in factors.build(rank).named_parameters() if key.endswith("weight")]
    if name != "interpolative" or rank < shape[0]:  # at rank Co it is the layer
        assert sorted(weights) == sorted(METHODS[name].factor_params(shape, layer.groups, rank))


@settings(max_examples=80, deadline=None)
@given(st.one_of(plain(), transposed()), st.integers(1, 300))
def test_rows_times_the_weight_are_the_outputs(layer: nn.Module, count: int) -> None:
    inputs = inputs_of(layer, 3)
    with torch.inference_mode():
        outputs = layer(inputs)
        positions = sample_positions(layer, outputs, count, torch.Generator().manual_seed(0))
        rows, expected = positions.of_input(layer, inputs), positions.of_output(outputs)
    assert len(rows) == min(count, outputs[:, 0].numel())
    by_group = rows.unflatten(1, (layer.groups, -1))
    weight = weight_of(layer).flatten(1).unflatten(0, (layer.groups, -1))
    found = torch.einsum("rgn,gon->rgo", by_group, weight).flatten(1)
    torch.testing.assert_close(found if layer.bias is None else found + layer.bias, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(6, 8, 5, padding=2),
        nn.Conv1d(6, 8, 5, groups=2),
        nn.Conv3d(4, 8, 3, padding=1),
        nn.Conv3d(4, 8, (1, 3, 3), stride=2),
        nn.Conv3d(6, 8, (3, 1, 1)),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
        nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, groups=2),
    ],
    ids=str,
)
def test_factors_fitted_to_inputs_lose_less_on_them(layer: nn.Module) -> None:
    torch.manual_seed(0)
    inputs = inputs_of(layer, 24)
    inputs = inputs * torch.linspace(0.1, 2, layer.in_channels).view(-1, *[1] * (inputs.dim() - 2)) + 0.5
    with torch.inference_mode():
        outputs = layer(inputs)
        positions = sample_positions(layer, outputs, 3000, torch.Generator().manual_seed(0))
        sums = RunningMoments(layer.groups)
        sums.add(positions.of_input(layer, inputs))
        same = torch.eye(outputs.shape[1] // layer.groups, dtype=torch.float64).repeat(layer.groups, 1, 1)
        moments = make_moments(sums, same)
        for name in applicable_methods(weight_of(layer).shape, layer.groups):
            method = METHODS[name]
            rank = max(1, method.max_rank(weight_of(layer).shape, layer.groups) // 3)
            fitted = method.factorize(layer, moments)
            losses = [
                float((factors.build(rank)(inputs) - outputs).square().mean())
                for factors in (method.factorize(layer), fitted)
            ]
            assert losses[1] < losses[0], name


@pytest.mark.parametrize(
    ("layer", "method"),
    [
        (nn.Conv1d(32, 32, 5), "svd"),
        (nn.Conv1d(32, 32, 1), "svd"),
        (nn.Conv3d(32, 32, 3), "spatial"),
        (nn.Conv3d(32, 32, (1, 3, 3)), "spatial"),
        (nn.Conv3d(32, 32, (3, 1, 1)), "svd"),
        (nn.Conv3d(32, 32, 1), "svd"),
        (nn.ConvTranspose2d(32, 16, 2, stride=2), "spatial"),
    ],
    ids=str,
)
def test_their_default_methods_and_costs(layer: nn.Module, method: str) -> None:
    inputs = inputs_of(layer, 1)
    (found,) = find_layers(nn.Sequential(layer).eval(), inputs)
    assert (found.method, found.skipped) == (method, None)
    with torch.inference_mode():
        per_position = found.params
        positions = inputs[0, 0].numel() if isinstance(layer, nn.ConvTranspose2d) else layer(inputs)[0, 0].numel()
    assert found.macs == per_position * positions == count_macs(layer, inputs)[0]


def test_the_2_plus_1_dimensional_split() -> None:
    """Time first, then frames, with the layer's geometry divided between them."""
    layer = nn.Conv3d(8, 8, 3, stride=(1, 2, 2), padding=1)
    first, second = METHODS["spatial"].factorize(layer).build(5)
    assert (first.kernel_size, first.stride, first.padding) == ((3, 1, 1), (1, 1, 1), (1, 0, 0))
    assert (second.kernel_size, second.stride, second.padding) == ((1, 3, 3), (1, 2, 2), (0, 1, 1))


@settings(max_examples=30, deadline=None)
@given(st.one_of(plain(), transposed()))
def test_a_weight_comes_back_as_it_was_set(layer: nn.Module) -> None:
    weight = torch.randn_like(weight_of(layer))
    set_weight(layer, weight)
    assert torch.equal(weight_of(layer), weight)
    assert groups_of(layer) == layer.groups
