"""Attention that is not opened: other than plain self-attention, or with something attached to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import swin_transformer as swin

from compressor.network.attention import SelfAttention, open_attention
from tests.network.attention.networks import EMBED, Attends, error, random_weights


class Crossed(Attends):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x + 1, x + 1, need_weights=False)[0]


class Seldom(Attends):
    """Once with a mask, once without."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(x.shape[1], x.shape[1])
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.attention(x, x, x, need_weights=False, attn_mask=mask)[0]


class Unused(Attends):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Unbatched(Attends):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[0])[None]


class Doubling(nn.MultiheadAttention):
    def forward(self, *args: Any, **options: Any) -> Any:
        output, weights = super().forward(*args, **options)
        return 2 * output, weights


def subclassed() -> nn.Module:
    model = Attends()
    model.attention = Doubling(EMBED, 2, batch_first=True)
    return model


def hooked() -> nn.Module:
    model = Attends()
    model.attention.register_forward_hook(lambda module, inputs, output: (2 * output[0], None))
    return model


def parametrized() -> nn.Module:
    model = Attends()
    nn.utils.parametrizations.weight_norm(model.attention.out_proj)
    return model


def hooked_window() -> nn.Module:
    model = swin.ShiftedWindowAttention(EMBED, [2, 2], [1, 1], 2)
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    return nn.Sequential(nn.Unflatten(1, (2, 3)), model)


MASK = torch.zeros(6, 6)
LEFT: dict[str, Callable[[], nn.Module]] = {
    "cross-attention": Crossed,
    "masked": lambda: Attends({"need_weights": False, "attn_mask": MASK}),
    "padded": lambda: Attends({"need_weights": False, "key_padding_mask": MASK[:1] > 0}),
    "causal": lambda: Attends({"need_weights": False, "is_causal": True}),
    "weights wanted": lambda: Attends({}),
    "masked at times": Seldom,
    "never called": Unused,
    "without a batch": Unbatched,
    "learnt keys": lambda: Attends(add_bias_kv=True),
    "zero keys": lambda: Attends(add_zero_attn=True),
    "unpacked weights": lambda: Attends(kdim=EMBED, vdim=EMBED + 1),
    "subclass": subclassed,
    "hook": hooked,
    "parametrized": parametrized,
    "window with a hook": hooked_window,
    "fused encoder": lambda: nn.TransformerEncoderLayer(EMBED, 2, 16, batch_first=True),
    "no attention": lambda: nn.Linear(EMBED, EMBED),
}


@pytest.mark.parametrize("case", LEFT)
def test_other_attention_is_left(case: str) -> None:
    model = LEFT[case]().eval()
    if case == "unpacked weights":
        model.forward = lambda x: model.attention(x, x, nn.functional.pad(x, (0, 1)), need_weights=False)[0]
    assert open_attention(model, torch.randn(1, 6, EMBED)) is model


def test_only_the_plain_one_of_two_is_opened() -> None:
    model = random_weights(nn.Sequential(Attends(), Crossed()))
    tokens = torch.randn(2, 6, EMBED)
    opened = open_attention(model, tokens)
    assert [type(part.attention) for part in opened] == [SelfAttention, nn.MultiheadAttention]
    assert error(opened, model, tokens) < 1e-5


@pytest.mark.parametrize(
    "options",
    [{}, {"attn_mask": MASK}, {"key_padding_mask": MASK[:1] > 0}, {"is_causal": True}, {"need_weights": True}],
)
def test_a_call_that_the_example_did_not_make_is_refused(options: dict[str, Any]) -> None:
    tokens = torch.randn(1, 6, EMBED)
    attention = open_attention(Attends().eval(), tokens).attention
    key = tokens if options else tokens + 1
    with pytest.raises(ValueError, match="one sequence and no mask"):
        attention(tokens, key, key, **{"need_weights": False, **options})
    assert attention(tokens, tokens, tokens, need_weights=False)[1] is None
