"""Which layers can be compressed, why others cannot, and how many parameters each rank has (Sec. 3.3)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from compressor.errors import InputError
from compressor.factorization.layers.kinds import KINDS, OTHERS, Layer, computes_as_its_kind, groups_of, weight_of
from compressor.factorization.records import Method, MethodChoice
from compressor.factorization.registry import applicable_methods, find_break_even_rank, num_params_table
from compressor.network.attention import fused_modules
from compressor.network.hooks import noting
from compressor.network.macs import count_macs
from compressor.network.records import Kind, LayerRecord

# The layer sets of the paper's experiments (Sec. 4); Table 1 counts a ninth for ResNet-18 but names none.
PAPER_LAYERS = {"resnet": "layer*.conv2", "vgg": "*", "fc": "*"}


class Ranked(Protocol):
    """What a plan gives a rank: a layer, or a group of layers that share hidden channels, whose rank is their number.

    Attributes:
        name: its name in plans.
        dense_rank: the rank by which it is left as it is.
    """

    @property
    def name(self) -> str:
        """See the class."""

    @property
    def dense_rank(self) -> int:
        """See the class."""


@dataclass(frozen=True)
class FoundLayer:
    """A conv or linear layer of a network.

    Attributes:
        name: its name in the network.
        module: the layer.
        kind: "conv" or "linear".
        macs: multiply-accumulates of one forward pass for one image.
        method: how it is factorized; None where it cannot be.
        break_even_rank: the largest rank at which the factors have no more parameters than the layer.
        skipped: why it is not compressed; None where it is.
        left_out: whether it is to stay as it is, by the patterns given.
    """

    name: str
    module: nn.Module
    kind: Kind
    macs: int
    method: Method | None = None
    break_even_rank: int = 0
    skipped: str | None = None
    left_out: bool = False

    @property
    def shape(self) -> list[int]:
        """Shape of the weight that multiplies a patch, (Co, Ci/groups, ...)."""
        return list(weight_of(self.module).shape)

    @property
    def params(self) -> int:
        """Parameters of the weight, without the bias (factors fitted to images add one where there was none)."""
        return weight_of(self.module).numel()

    @property
    def num_groups(self) -> int:
        """Groups of a convolution, else 1."""
        return groups_of(self.module)

    @property
    def weighted_module(self) -> Layer:
        """The module, for layers that can be compressed."""
        assert isinstance(self.module, KINDS)
        return self.module

    def params_by_rank(self) -> list[int]:
        """Parameters at ranks 1, 2, ... and last of the dense layer; `dense_rank` numbers."""
        assert self.method is not None
        return num_params_table(self.method, self.shape, self.num_groups, self.break_even_rank, self.params)

    @cached_property
    def dense_rank(self) -> int:
        """The rank by which the search means the dense layer: one above the last rank that makes it smaller."""
        return len(self.params_by_rank())

    def record(self) -> LayerRecord:
        """The layer as `inspect` and the report show it."""
        return LayerRecord(
            name=self.name,
            kind=self.kind,
            shape=self.shape,
            method=self.method,
            break_even_rank=self.break_even_rank or None,
            params=self.params,
            macs=self.macs,
            skipped=self.skipped,
        )


def find_layers(
    model: nn.Module,
    example: Tensor,
    method: MethodChoice = "auto",
    include: Sequence[str] = (),
    skip: Sequence[str] = (),
    arch: str = "",
) -> list[FoundLayer]:
    """Every conv and linear layer of `model` in order of definition, compressible or with its reason.

    Args:
        model: the network, in eval mode.
        example: one input batch, used for one forward pass (MACs, and which layers are called at all).
        method: a factorization by name, for the layers to which it applies. The others, and all under "auto" and
            "auto+cp", take the first of the registry that applies: spatial for k x k convolutions, else SVD.
        include: name patterns (fnmatch); empty means every layer; "paper" is the paper's set for `arch`.
        skip: name patterns to leave out.

    Raises:
        InputError: a pattern matches no layer, or the paper names no set for `arch`.
    """
    _, macs = count_macs(model, example)
    called = _called_modules(model, example)
    found = [
        _describe(name, module, macs.get(name, 0), method, called)
        for name, module in model.named_modules()
        if isinstance(module, (KINDS, OTHERS))
    ]
    found = _mark_shared_weights(model, found)
    return _select(found, _expand_sets(include, arch), skip)


def compressible(layers: Sequence[FoundLayer]) -> list[FoundLayer]:
    """The layers that are not skipped."""
    return [layer for layer in layers if layer.skipped is None]


def factorized_ranks(layers: Sequence[Ranked], ranks: Iterable[int]) -> dict[str, int]:
    """Ranks by name of what is compressed; what stays as it is is left out."""
    return {layer.name: int(rank) for layer, rank in zip(layers, ranks, strict=True) if int(rank) < layer.dense_rank}


def possible_methods(layer: FoundLayer) -> tuple[Method, ...]:
    """Names of the methods that apply to a layer, the default first."""
    return applicable_methods(layer.shape, layer.num_groups)


def with_method(layer: FoundLayer, method: Method) -> FoundLayer:
    """The layer with another method and the break-even rank under it."""
    break_even_rank = find_break_even_rank(method, layer.shape, layer.num_groups, layer.params)
    return replace(layer, method=method, break_even_rank=break_even_rank)


def _describe(name: str, module: nn.Module, macs: int, choice: MethodChoice, called: set[nn.Module]) -> FoundLayer:
    kind: Kind = "linear" if isinstance(module, nn.Linear) else "conv"
    layer = FoundLayer(name, module, kind, macs)
    if not computes_as_its_kind(module):
        return replace(layer, skipped=f"{type(module).__name__} is not supported")
    if module not in called:
        return replace(layer, skipped="its forward is never called (unused, or its owner reads the weight)")
    possible = possible_methods(layer)
    layer = with_method(layer, next((method for method in possible if method == choice), possible[0]))
    if groups_of(module) == getattr(module, "in_channels", 0) > 1:
        return replace(layer, skipped="depthwise: already thin, two thinner convolutions would only be slower")
    if layer.dense_rank < 2:
        return replace(layer, skipped=f"no rank makes it smaller (break-even rank {layer.break_even_rank})")
    return layer


def _called_modules(model: nn.Module, example: Tensor) -> set[nn.Module]:
    """The modules whose forward runs in a pass of the first sample."""
    called: set[nn.Module] = set()
    with noting(model.modules(), lambda module, _output: called.add(module)), torch.inference_mode():
        model(example[:1])
    # Fused encoders call their parts only while hooks are attached.
    return called - fused_modules(model)


def _mark_shared_weights(model: nn.Module, layers: list[FoundLayer]) -> list[FoundLayer]:
    """Skip layers whose weight occurs twice in the network: it cannot be replaced in one place alone."""
    every_module = model.named_modules(remove_duplicate=False)
    occurrences = Counter(id(weight) for _, module in every_module for weight in module.parameters(recurse=False))
    return [
        replace(layer, skipped="shares its weight with another layer")
        if occurrences[id(layer.module.weight)] > 1
        else layer
        for layer in layers
    ]


def _expand_sets(include: Sequence[str], arch: str) -> list[str]:
    patterns = []
    for pattern in include:
        if pattern != "paper":
            patterns.append(pattern)
            continue
        family = next((name for name in PAPER_LAYERS if arch.startswith(name)), None)
        if family is None:
            raise InputError(
                f"the paper names no layer set for {arch or 'this network'}; give name patterns, or '*' for all layers"
            )
        patterns.append(PAPER_LAYERS[family])
    return patterns


def _select(layers: list[FoundLayer], include: Sequence[str], skip: Sequence[str]) -> list[FoundLayer]:
    for pattern in (*include, *skip):
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            raise InputError(f"the layer pattern {pattern!r} matches no layer; `bocompress inspect` lists them")
    return [_leave_out(layer, include, skip) for layer in layers]


def _leave_out(layer: FoundLayer, include: Sequence[str], skip: Sequence[str]) -> FoundLayer:
    if include and not any(fnmatchcase(layer.name, pattern) for pattern in include):
        return replace(layer, skipped=layer.skipped or "not named by --layers", left_out=True)
    if any(fnmatchcase(layer.name, pattern) for pattern in skip):
        return replace(layer, skipped=layer.skipped or "left out by --skip", left_out=True)
    return layer
