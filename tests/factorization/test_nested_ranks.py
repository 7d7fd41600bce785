"""Nested ranks: what one factorization holds for every rank is what is built for each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.factorization.base import Factors, NestedFactors
from compressor.factorization.layers.kinds import weight_of
from compressor.factorization.registry import METHODS, applicable_methods
from tests.factorization.fitted import EXACT, check_along, convolutions, random_moments
from tests.factorization.kinds import inputs_of, plain, transposed


def check_nested(layer: nn.Conv2d | nn.Linear, factors: Factors, inputs: Tensor) -> None:
    """The first features make up every rank."""
    nested = factors.nested(factors.max_rank)
    assert nested is not None
    assert isinstance(nested, NestedFactors)
    with torch.inference_mode():
        features = nested.features(inputs)
        check_along(nested, [factors.build(rank) for rank in range(1, factors.max_rank + 1)], inputs)
        for rank in range(1, factors.max_rank + 1):
            truth, kept = factors.build(rank)(inputs), rank * nested.width
            if nested.channels_last:
                found = features[..., :kept] @ nested.outputs[0, :kept]
            else:
                by_group = features.unflatten(1, (layer.groups, -1))[:, :, :kept]
                found = torch.einsum("bgs...,gso->bgo...", by_group, nested.outputs[:, :kept]).flatten(1, 2)
            if nested.bias is not None:
                found = found + nested.bias.reshape(-1, *([1] * (0 if nested.channels_last else inputs.dim() - 2)))
            assert float((found - truth).abs().max()) < EXACT * max(1.0, float(truth.abs().max()))


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.booleans())
def test_nested_ranks_of_a_convolution_are_those_built_one_by_one(layer: nn.Conv2d, fitted: bool) -> None:
    factors = METHODS["spatial"].factorize(layer, *([random_moments(layer)] if fitted else []))
    check_nested(layer, factors, torch.randn(2, layer.in_channels, 11, 12))


@settings(max_examples=40, deadline=None)
@given(st.one_of(plain(), transposed()), st.booleans())
def test_nested_ranks_of_other_kinds_are_those_built_one_by_one(layer: nn.Module, fitted: bool) -> None:
    method = METHODS[applicable_methods(weight_of(layer).shape, layer.groups)[0]]
    check_nested(layer, method.factorize(layer, *([random_moments(layer)] if fitted else [])), inputs_of(layer))


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 5), ()),
        (nn.Linear(5, 7, bias=False), (3, 2)),
        (nn.Conv2d(4, 6, 1, groups=2), (5, 5)),
        (nn.Conv2d(6, 4, 1, stride=2, bias=False), (5, 5)),
    ],
)
def test_nested_ranks_of_a_matrix_are_those_built_one_by_one(
    layer: nn.Module, shape: tuple[int, ...], fitted: bool
) -> None:
    factors = METHODS["svd"].factorize(layer, *([random_moments(layer)] if fitted else []))
    num_in = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    check_nested(
        layer, factors, torch.randn(2, *((*shape, num_in) if isinstance(layer, nn.Linear) else (num_in, *shape)))
    )


@pytest.mark.parametrize("rank", [0, 6])
def test_nested_ranks_beyond_the_maximum_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must lie in"):
        METHODS["svd"].factorize(nn.Linear(7, 5)).nested(rank)


@pytest.mark.parametrize("method", ["tucker", "cp", "interpolative"])
def test_other_methods_have_no_nested_ranks(method: str) -> None:
    assert METHODS[method].factorize(nn.Conv2d(4, 6, 3)).nested(2) is None
