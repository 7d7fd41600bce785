"""Attention of torchvision's Video Swin within windows of time and space, through layers that are called."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODULE, CLASS = "torchvision.models.video.swin_transformer", "ShiftedWindowAttention3d"
# Added to the score of two tokens that the shift moved into one window from opposite ends of the clip.
MASKED_SCORE = -100.0
AXES = (1, 2, 3)


class ClipWindowAttention(nn.Module):
    """The attention of `original`, with its tensors: (N, T, H, W, C) to (N, T, H, W, C)."""

    relative_position_index: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.window_size = list(original.window_size)
        self.shift_size = list(original.shift_size)
        self.num_heads = original.num_heads
        self.attention_dropout = original.attention_dropout
        self.dropout = original.dropout
        self.qkv, self.proj = original.qkv, original.proj
        self.relative_position_bias_table = original.relative_position_bias_table
        self.register_buffer("relative_position_index", original.relative_position_index)
        self.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """Pad to whole windows, roll, attend within windows, then undo the rolling and the padding."""
        sizes = x.shape[1:4]
        # A side of a single window is not shifted, and the window is no longer than the side.
        fits = [size <= window for size, window in zip(sizes, self.window_size, strict=True)]
        windows = [size if fit else window for size, window, fit in zip(sizes, self.window_size, fits, strict=True)]
        shifts = [0 if fit else shift for shift, fit in zip(self.shift_size, fits, strict=True)]
        ends = [-size % window for size, window in zip(sizes, windows, strict=True)]
        x = F.pad(x, (0, 0, *chain.from_iterable((0, end) for end in reversed(ends))))
        padded = x.shape[1:4]
        if any(shifts):
            x = x.roll([-shift for shift in shifts], dims=AXES)
        x = from_windows(self._attend(to_windows(x, windows), self._bias(x, windows, shifts)), padded, windows)
        if any(shifts):
            x = x.roll(shifts, dims=AXES)
        return x[:, : sizes[0], : sizes[1], : sizes[2]]

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """(N, windows, L, C) to the same shape."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).transpose(-4, -2).unbind(-3)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        weights = F.dropout((scores + bias).softmax(-1), self.attention_dropout, self.training)
        attended = (weights @ value).transpose(-3, -2).flatten(-2)
        return F.dropout(self.proj(attended), self.dropout, self.training)

    def _bias(self, like: Tensor, windows: Sequence[int], shifts: Sequence[int]) -> Tensor:
        """What is added to the scores: (heads, L, L), or (windows, heads, L, L) where windows are shifted."""
        tokens = windows[0] * windows[1] * windows[2]
        index = self.relative_position_index[:tokens, :tokens].flatten()
        bias = self.relative_position_bias_table[index].view(tokens, tokens, -1).permute(2, 0, 1)
        if not any(shifts):
            return bias
        regions = like.new_zeros(1, *like.shape[1:4], 1)
        for axis, shift in zip(AXES, shifts, strict=True):
            if shift:
                crossed = torch.arange(like.shape[axis], device=like.device) >= like.shape[axis] - shift
                regions = regions + 2.0**axis * crossed.to(like.dtype).view(-1, *[1] * (4 - axis))
        of_window = to_windows(regions, windows)[0]
        return bias + MASKED_SCORE * (of_window != of_window.transpose(1, 2))[:, None].to(bias.dtype)


def to_windows(x: Tensor, windows: Sequence[int]) -> Tensor:
    """(N, T, H, W, C) to (N, windows, tokens of a window, C)."""
    for axis in reversed(AXES):
        x = x.unflatten(axis, (-1, windows[axis - 1]))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def from_windows(x: Tensor, sizes: Sequence[int], windows: Sequence[int]) -> Tensor:
    """(N, windows, tokens of a window, C) to (N, T, H, W, C); `sizes` are (T, H, W)."""
    counts = [size // window for size, window in zip(sizes, windows, strict=True)]
    x = x.unflatten(2, tuple(windows)).unflatten(1, tuple(counts))
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
