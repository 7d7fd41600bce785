"""Convolutions of signals and clips, and transposed ones, of every geometry, with inputs that they take."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

SIDES = {1: (13,), 2: (6, 7), 3: (6, 7, 8)}
MODES = ("zeros", "reflect", "replicate", "circular")
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def plain(draw: st.DrawFn, axes: tuple[int, ...] = (1, 3), groups: tuple[int, ...] = (1, 2)) -> nn.Module:
    """Convolutions whose padding any mode can make of SIDES."""
    count = draw(st.sampled_from(axes))
    num_groups = draw(st.sampled_from(groups))
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1,) * count if padding == "same" else _sizes(draw, count, 1, 2)
    torch.manual_seed(draw(st.integers(0, 1000)))
    return (
        PLAIN[count](
            num_groups * draw(st.integers(1, 4)),
            num_groups * draw(st.integers(1, 4)),
            _sizes(draw, count, 1, 3),
            stride=stride,
            padding=_sizes(draw, count, 0, 2) if padding == "numbers" else padding,
            dilation=_sizes(draw, count, 1, 2),
            groups=num_groups,
            bias=draw(st.booleans()),
            padding_mode=draw(st.sampled_from(MODES)),
        )
        .eval()
        .requires_grad_(False)
    )


@st.composite
def transposed(draw: st.DrawFn, groups: tuple[int, ...] = (1, 2)) -> nn.ConvTranspose2d:
    """Transposed convolutions, also those that crop what they compute and those with a padded output."""
    num_groups = draw(st.sampled_from(groups))
    stride, dilation = _sizes(draw, 2, 1, 3), _sizes(draw, 2, 1, 2)
    room = [max(step, wide) - 1 for step, wide in zip(stride, dilation, strict=True)]
    torch.manual_seed(draw(st.integers(0, 1000)))
    return (
        nn.ConvTranspose2d(
            num_groups * draw(st.integers(1, 4)),
            num_groups * draw(st.integers(1, 4)),
            _sizes(draw, 2, 1, 4),
            stride=stride,
            padding=_sizes(draw, 2, 0, 2),
            output_padding=tuple(draw(st.integers(0, most)) for most in room),
            dilation=dilation,
            groups=num_groups,
            bias=draw(st.booleans()),
        )
        .eval()
        .requires_grad_(False)
    )


def _sizes(draw: st.DrawFn, count: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(least, most)) for _ in range(count))


def inputs_of(layer: nn.Module, count: int = 2) -> Tensor:
    """Random inputs that the layer takes."""
    return torch.randn(count, layer.in_channels, *SIDES[layer.weight.dim() - 2])
