"""Batch norms in the layers before them: for passes that only serve to measure a network.

In eval mode a batch norm multiplies every channel and adds to it, which the layer before can do. On a CPU MobileNetV2's
passes take about three quarters of the time without norms, a ResNet-50's four fifths (docs/method/network.md). What is
delivered keeps them, since it may be trained again.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from compressor.factorization.base import AllRanks, JointFactors, LayerByRank, NestedFactors
from compressor.factorization.layers.kinds import Layer, computes_as_its_kind
from compressor.factorization.layers.making import chain, geometry_of, is_chain, make_conv, make_linear
from compressor.failures import is_shortage
from compressor.network.hooks import attached, watching
from compressor.network.surgery import copy_sharing_tensors, replace_layer

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
FROZEN = "FrozenBatchNorm2d"  # torchvision's, of detectors
FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
MAX_DIFFERENCE = 1e-3  # between the outputs with norms and without, in parts of the largest


@dataclass(frozen=True)
class Folded:
    """A network whose layers do what the batch norms behind them did.

    Attributes:
        network: the network; it shares all other tensors with the original.
        norms: the original's norms, by the names of the layers that they were folded into.
    """

    network: nn.Module
    norms: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def scales(self) -> dict[str, Tensor]:
        """What outputs of the original's layers are multiplied by here (Co,), float64, on the CPU, by name."""
        return {name: _affine(norm)[0] for name, norm in self.norms.items()}

    def module(self, name: str, module: nn.Module) -> nn.Module:
        """What stands here for a module that would replace a layer of the original.

        Args:
            name: of the layer.
            module: in its place there.
        """
        return _with_norm(module, self.norms[name]) if name in self.norms else module

    def factors(self, found: Mapping[str, LayerByRank | JointFactors]) -> dict[str, LayerByRank | JointFactors]:
        """Factors of layers here, from those of the original's, by name; `LayerByRank` is all that they are."""
        return {
            name: _FoldedReaders(factors, self)
            if isinstance(factors, JointFactors)
            else _FoldedFactors(factors, self.norms[name])
            if name in self.norms
            else factors
            for name, factors in found.items()
        }


def fold_norms(model: nn.Module, example: Tensor) -> Folded:
    """The network without the batch norms that alone read a layer's outputs; itself where that cannot be had.

    Args:
        model: in eval mode, left unchanged.
        example: inputs (N, ...) that it takes.
    """
    try:  # a forward may read what a layer or a norm has beside its outputs
        return _fold(model, example)
    except Exception as error:
        if is_shortage(error):
            raise
        return Folded(model)


def _fold(model: nn.Module, example: Tensor) -> Folded:
    def run() -> Tensor:
        outputs: Tensor = model(example.clone())
        return outputs

    modules = dict(model.named_modules())
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = run()
        pairs = _pairs(modules, run)
        if not _read_alone(modules, pairs, run, expected):
            pairs = {name: norm for name, norm in pairs.items() if _read_alone(modules, {name: norm}, run, expected)}
        norms = {name: modules[norm] for name, norm in pairs.items()}
    network = copy_sharing_tensors(model)
    for name, norm in pairs.items():
        replace_layer(network, name, _with_norm(modules[name], modules[norm]))
        replace_layer(network, norm, nn.Identity())
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        difference = (network(example.clone()) - expected).abs().max()
    return Folded(network, norms) if difference <= MAX_DIFFERENCE * expected.abs().max() else Folded(model)


def _pairs(modules: Mapping[str, nn.Module], run: Callable[[], Tensor]) -> dict[str, str]:
    """Names of the norms that are given a layer's outputs, by the layer's name; each of the two is called once."""
    watched = {name: module for name, module in modules.items() if name and (_is_norm(module) or _is_layer(module))}
    names, calls = list(watched), []

    def keep(index: int, given: Tensor, output: Tensor) -> None:
        calls.append((names[index], given, output))

    with watching(list(watched.values()), keep):
        run()
    times = Counter(name for name, _, _ in calls)
    # Behind a linear layer only where its outputs are rows: of others a norm takes another axis.
    layers = {
        id(output): name
        for name, _, output in calls
        if _is_layer(watched[name]) and (output.dim() == 2 or not isinstance(watched[name], nn.Linear))
    }
    return {
        layers[id(given)]: name
        for name, given, _ in calls
        if _is_norm(watched[name]) and id(given) in layers and times[name] == times[layers[id(given)]] == 1
    }


def _read_alone(
    modules: Mapping[str, nn.Module], pairs: Mapping[str, str], run: Callable[[], Tensor], expected: Tensor
) -> bool:
    """Whether nothing but the norms reads the layers' outputs: it would find no numbers there."""
    found: dict[str, Tensor] = {}
    layers = list(pairs)

    def hide(index: int, _given: Tensor, output: Tensor) -> Tensor:
        found[layers[index]] = output
        return torch.full_like(output, torch.nan)

    def show(name: str) -> Callable[[nn.Module, Any], Any]:
        return lambda _norm, _given: (found[name],)

    shown = (modules[norm].register_forward_pre_hook(show(name)) for name, norm in pairs.items())
    with watching([modules[name] for name in layers], hide), attached(shown):
        return torch.equal(run(), expected)


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    return isinstance(module, FOLDABLE) and computes_as_its_kind(module)


def _is_norm(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__name__ == FROZEN and kind.__module__.startswith("torchvision."):
        return True
    is_plain = isinstance(module, NORMS) and kind.forward is nn.BatchNorm2d.forward
    return is_plain and not module.training and module.running_mean is not None


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a norm multiplies each channel by, and what it adds (Co,), float64, on the CPU."""
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * _exact(norm.weight)
    shift = -_exact(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + _exact(norm.bias)


def _exact(values: Tensor) -> Tensor:
    return values.detach().cpu().double()


def _with_norm(module: nn.Module, norm: nn.Module) -> nn.Module:
    """A module that does what the norm does to its outputs, too."""
    if _is_layer(module):
        return _scaled(module, *_affine(norm))
    if is_chain(module):
        *first, last = module.children()
        return chain(*first, _with_norm(last, norm))
    return nn.Sequential(module, norm).eval()


def _scaled(layer: Layer, scale: Tensor, shift: Tensor) -> nn.Module:
    weight = layer.weight.detach()
    bias = shift if layer.bias is None else shift + scale * _exact(layer.bias)
    weight, bias = weight * scale.to(weight).view(-1, *[1] * (weight.dim() - 1)), bias.to(weight)
    if isinstance(layer, nn.Linear):
        return make_linear(weight, bias)
    return make_conv(weight, bias, layer, layer.groups, **geometry_of(layer))


@dataclass(frozen=True)
class _FoldedFactors:
    """Factors of a layer, with the norm behind it."""

    factors_of_layer: LayerByRank
    norm: nn.Module

    def build(self, rank: int) -> nn.Module:
        return _with_norm(self.factors_of_layer.build(rank), self.norm)

    def nested(self, limit: int) -> AllRanks | None:
        found = self.factors_of_layer.nested(limit)
        return None if found is None else _with_norm_at_all_ranks(found, self.norm)


class _FoldedReaders(JointFactors):
    """Joint factors, with the norms behind some of the layers."""

    def __init__(self, factors: JointFactors, folded: Folded) -> None:
        self._factors, self._folded = factors, folded
        self.layers = factors.layers
        self.max_rank = factors.max_rank

    def build(self, rank: int) -> Mapping[str, nn.Module]:
        return {name: self._folded.module(name, module) for name, module in self._factors.build(rank).items()}

    def nested(self, name: str, limit: int) -> AllRanks:
        found = self._factors.nested(name, limit)
        norm = self._folded.norms.get(name)
        return found if norm is None else _with_norm_at_all_ranks(found, norm)


def _with_norm_at_all_ranks(found: AllRanks, norm: nn.Module) -> AllRanks:
    scale, shift = _affine(norm)
    if not isinstance(found, NestedFactors):
        return _NormedRanks(found, scale, shift)
    outputs = found.outputs * scale.to(found.outputs).view(len(found.outputs), 1, -1)
    bias = shift if found.bias is None else shift + scale * _exact(found.bias)
    return replace(found, outputs=outputs, bias=bias.to(outputs))


@dataclass(frozen=True)
class _NormedRanks:
    """A layer at all ranks, whose outputs are multiplied by `scale` and moved by `shift` (Co,)."""

    ranks: AllRanks
    scale: Tensor
    shift: Tensor

    def along(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """See `AllRanks.along`."""
        # Channels lie third; a linear layer whose norm was folded has no axes behind them.
        by_channel = gradients.flatten(3).sum(3) if gradients.dim() > 3 else gradients
        scale = self.scale.to(gradients).view(-1, *[1] * (gradients.dim() - 3))
        scaled = self.ranks.along(inputs, gradients * scale)
        return scaled + (by_channel @ self.shift.to(gradients))[..., None]
