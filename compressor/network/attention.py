"""Attention whose linear layers are called, so that they can be factorized like any other layer.

`nn.MultiheadAttention` and torchvision's Swin attention, of images and clips, hand the weights of their linear layers
to a function. The modules here hold the same tensors and compute the same, but through layers that a network can have
replaced. MaxViT's attention calls its layers already.
"""

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.network.clips import attention as clips
from compressor.network.hooks import attached

# By name: a torchvision that does not work with this torch is to be reported where it is imported, not here.
SWIN_MODULE = "torchvision.models.swin_transformer"
SWIN_V1, SWIN_V2 = "ShiftedWindowAttention", "ShiftedWindowAttentionV2"
# Added to the score of two tokens that the shift moved into one window from opposite edges of the image.
MASKED_SCORE = -100.0
MAX_LOGIT_SCALE = math.log(100.0)


def open_attention(model: nn.Module, example: Tensor) -> nn.Module:
    """Replace attention by modules that call their linear layers and compute the same.

    All tensors are shared with `model`, which is left unchanged, but for two small new ones in Swin v2: the bias of
    `qkv`, and the table of relative positions in place of the perceptron that computes it. Attention other than plain
    self-attention is kept, and so is all inside `nn.TransformerEncoderLayer`.

    Args:
        model: the network, in eval mode.
        example: one input batch (N, ...); its first sample shows how attention is called.

    Returns:
        The new network, or `model` itself where it has no such attention.
    """
    opened: dict[int, nn.Module] = {id(part): SelfAttention(part) for part in _plain_self_attention(model, example)}
    kinds = {(SWIN_MODULE, SWIN_V1): WindowAttention, (SWIN_MODULE, SWIN_V2): WindowAttention}
    windows: dict[tuple[str, str], type[nn.Module]] = {**kinds, (clips.MODULE, clips.CLASS): clips.ClipWindowAttention}
    for part in model.modules():
        opener = windows.get((type(part).__module__, type(part).__name__))
        if opener and _is_pristine(part) and _holds_its_weight(part.qkv) and _holds_its_weight(part.proj):
            opened[id(part)] = opener(part)
    if not opened:
        return model
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, {**tensors, **opened})  # also where a module occurs twice


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` for one sequence that attends to itself, without masks and attention weights.

    It is called like the original: `(x, x, x, need_weights=False)` returns `(output, None)`, with x and output of
    shape (N, L, E), or (L, N, E) without `batch_first`.
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = original.embed_dim
        self.num_heads = original.num_heads
        self.batch_first = original.batch_first
        self.dropout = original.dropout
        assert original.in_proj_weight is not None
        self.in_proj = _linear(original.in_proj_weight, original.in_proj_bias)
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias)
        self.train(original.training)

    def forward(  # noqa: PLR0913
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend; the parameters are those of `nn.MultiheadAttention`.

        Raises:
            ValueError: another key or value, a mask or the weights are asked for, unlike in the example.
        """
        masked = is_causal or not (key_padding_mask is None and attn_mask is None)
        if not (query is key is value) or masked or need_weights:
            raise ValueError("this attention takes one sequence and no mask, and returns no weights")
        if self.batch_first:
            return self._attend(query), None
        return self._attend(query.transpose(0, 1)).transpose(0, 1), None

    def _attend(self, x: Tensor) -> Tensor:
        """(N, L, E) to (N, L, E)."""
        query, key, value = _split_heads(self.in_proj(x), self.num_heads)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(_join_heads(attended))


class WindowAttention(nn.Module):
    """Attention of Swin v1 and v2 within windows that may be shifted: (N, H, W, C) to (N, H, W, C).

    With a `logit_scale` it is v2's cosine attention, without one v1's.
    """

    relative_position_index: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.window_size = list(original.window_size)
        self.shift_size = list(original.shift_size)
        self.num_heads = original.num_heads
        self.attention_dropout = original.attention_dropout
        self.dropout = original.dropout
        of_v2 = type(original).__name__ == SWIN_V2
        self.qkv = _linear(original.qkv.weight, _without_key_bias(original.qkv.bias) if of_v2 else original.qkv.bias)
        self.proj = _linear(original.proj.weight, original.proj.bias)
        self.relative_position_bias_table = _tabulate(original) if of_v2 else original.relative_position_bias_table
        self.register_buffer("relative_position_index", original.relative_position_index)
        self.logit_scale = original.logit_scale if of_v2 else None
        self.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """Pad to whole windows, roll, attend within windows, then undo the rolling and the padding."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
        padded = x.shape[1:3]
        # A single window is not shifted.
        spans = zip(self.shift_size, self.window_size, padded, strict=True)
        down, right = (0 if window >= length else shift for shift, window, length in spans)
        if down or right:
            x = x.roll((-down, -right), dims=(1, 2))
        x = self._attend(_to_windows(x, self.window_size), self._score_bias(padded, (down, right)))
        x = _from_windows(x, padded, self.window_size)
        if down or right:
            x = x.roll((down, right), dims=(1, 2))
        return x[:, :height, :width]

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """(N, windows, L, C) to the same shape."""
        query, key, value = _split_heads(self.qkv(x), self.num_heads)
        weights = (self._scores(query, key) + bias).softmax(-1)
        weights = F.dropout(weights, self.attention_dropout, self.training)
        return F.dropout(self.proj(_join_heads(weights @ value)), self.dropout, self.training)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(..., heads, L, D) twice to (..., heads, L, L)."""
        if self.logit_scale is None:
            return (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        cosines = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        return cosines * self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def _score_bias(self, padded: Sequence[int], shift: tuple[int, int]) -> Tensor:
        """What is added to the scores: (heads, L, L), or (windows, heads, L, L) where windows are shifted."""
        tokens = self.window_size[0] * self.window_size[1]
        table = self.relative_position_bias_table
        bias = table[self.relative_position_index].view(tokens, tokens, -1).permute(2, 0, 1)
        if shift == (0, 0):
            return bias
        rows, columns = (_crossed_edge(bias, *side) for side in zip(padded, shift, strict=True))
        regions = _to_windows((2 * rows[:, None] + columns)[None, :, :, None], self.window_size)[0]
        apart = regions != regions.transpose(1, 2)
        return bias + MASKED_SCORE * apart[:, None].to(bias.dtype)


# Which attention can be opened


def _plain_self_attention(model: nn.Module, example: Tensor) -> list[nn.MultiheadAttention]:
    """The modules that one pass calls at least once, and always with one sequence, no mask and no weights."""
    fused = fused_modules(model)
    calls: dict[nn.MultiheadAttention, list[bool]] = {
        module: []
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and _has_plain_parts(module) and module not in fused
    }
    if not calls:
        return []
    hooks = (module.register_forward_pre_hook(_note_call(plain), with_kwargs=True) for module, plain in calls.items())
    with attached(hooks), torch.inference_mode():
        model(example[:1])
    return [module for module, plain in calls.items() if plain and all(plain)]


def fused_modules(model: nn.Module) -> set[nn.Module]:
    """All within `nn.TransformerEncoderLayer`, which in eval mode reads its parts' weights itself."""
    encoders = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    return {part for encoder in encoders for part in encoder.modules()}


def _note_call(plain: list[bool]) -> Any:
    """A forward pre-hook that appends to `plain` whether `SelfAttention` could take the call."""
    signature = inspect.signature(nn.MultiheadAttention.forward)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = signature.bind(module, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        same = given["query"] is given["key"] is given["value"]
        masked = given["is_causal"] or not (given["key_padding_mask"] is None and given["attn_mask"] is None)
        plain.append(same and given["query"].dim() == 3 and not masked and not given["need_weights"])

    return note


def _has_plain_parts(attention: nn.MultiheadAttention) -> bool:
    """Whether there is one packed weight and no extra key."""
    return (
        type(attention) is nn.MultiheadAttention
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and attention.bias_v is None
        and not attention.add_zero_attn
        and _is_pristine(attention)
        and _holds_its_weight(attention.out_proj)
    )


def _is_pristine(module: nn.Module) -> bool:
    """Whether there are no hooks, which would be lost; old-style weight norms are hooks, too."""
    return not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _holds_its_weight(layer: Any) -> bool:
    """Whether the weight is a parameter: not computed by a parametrization, and not factorized already."""
    return isinstance(getattr(layer, "weight", None), nn.Parameter)


# Parts


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer around given parameters, made on "meta" to save memory and random numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = weight
    layer.register_parameter("bias", bias)
    return layer


def _without_key_bias(bias: nn.Parameter | None) -> nn.Parameter | None:
    """The bias with its middle third set to zero, which Swin v2 does at every call."""
    if bias is None:
        return None
    query, key, value = bias.detach().chunk(3)
    return nn.Parameter(torch.cat([query, torch.zeros_like(key), value]), bias.requires_grad)


def _tabulate(original: Any) -> nn.Parameter:
    """The biases of Swin v2's relative positions, (positions, heads), as v1 stores them.

    The perceptron that computes them has a constant input: running it costs time, and to compress it is pointless.
    """
    with torch.no_grad():
        table = original.cpb_mlp(original.relative_coords_table).view(-1, original.num_heads)
        return nn.Parameter(16 * table.sigmoid(), original.logit_scale.requires_grad)


def _split_heads(packed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., L, 3 E), packed by query, key and value, to three of (..., heads, L, E / heads)."""
    query, key, value = packed.unflatten(-1, (3, heads, -1)).transpose(-4, -2).unbind(-3)
    return query, key, value


def _join_heads(x: Tensor) -> Tensor:
    """(..., heads, L, D) to (..., L, heads D)."""
    return x.transpose(-3, -2).flatten(-2)


def _to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(N, H, W, C) to (N, windows, tokens of a window, C)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _from_windows(x: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """(N, windows, tokens of a window, C) to (N, H, W, C); `size` is (H, W)."""
    x = x.unflatten(2, tuple(window)).unflatten(1, (size[0] // window[0], size[1] // window[1]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _crossed_edge(like: Tensor, length: int, shift: int) -> Tensor:
    """1 for the positions of a side that the roll moved from its other end, else 0; all 1 at shift 0: (length,).

    Written so that the ONNX exporter leaves the mask to the runtime: as a constant it would make the file larger.
    """
    crossed = like.new_zeros(length)
    crossed[-shift:] = 1
    return crossed
