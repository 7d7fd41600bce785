"""Networks that lose channels by torch-pruning's criteria, at a share of their operations.

torch-pruning ranks channels by an importance that its criterion gives, over the whole network or layer by layer, and
removes a share of them. The share is found by bisection, so that the operations are those asked for. No group falls
below the share of its channels that hidden channels keep in any case (`allocation.MIN_SHARE`): torch-pruning empties
groups that it ranks low, and leaves those that it would empty whole.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.studies.network.channel_allocation import MIN_SHARE
from compressor.channels.groups import ChannelGroup
from compressor.data.images import ImageSet
from compressor.network.hooks import batches
from compressor.network.macs import count_macs

CRITERIA: Mapping[str, Callable[[], Any]] = {
    "magnitude": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "Taylor": lambda: torch_pruning.importance.GroupTaylorImportance(),
    "batch-norm scale": lambda: torch_pruning.importance.BNScaleImportance(),
}
BATCH_SIZE = 64  # for statistics of batch norms
CLOSE, WITHIN = 0.004, 0.01  # of the operations asked for: good enough to stop, and good enough
BISECTIONS = 14


@dataclass(frozen=True)
class Scope:
    """Which channels torch-pruning may remove.

    Attributes:
        hidden_only: those of the groups that this project finds; else those of residual streams as well.
        ranked_together: all in one ranking; else the same share of every group, its default.
    """

    hidden_only: bool
    ranked_together: bool


SCOPES = {
    "hidden": Scope(True, True),
    "all": Scope(False, True),
    "all, one share": Scope(False, False),
}


class Floored:
    """An importance under which the best channels of every group come last.

    Args:
        criterion: gives the importance (U,) of a group's channels.
        multiple: the channels that stay are a multiple of it, at least MIN_SHARE of the group.
    """

    def __init__(self, criterion: Callable[[Any], Tensor | None], multiple: int) -> None:
        self._criterion, self._multiple = criterion, multiple
        self.kept = self.total = 0

    def __call__(self, group: Any) -> Tensor | None:
        importance = self._criterion(group)
        if importance is None:
            return None
        kept = min(len(importance), -(-round(MIN_SHARE * len(importance)) // self._multiple) * self._multiple)
        self.kept, self.total = self.kept + kept, self.total + len(importance)
        importance = importance.clone()
        importance[importance.argsort(descending=True)[:kept]] = torch.finfo(importance.dtype).max
        return importance


class TorchPruning:
    """One network, and what torch-pruning makes of it.

    Args:
        model: the network, in eval mode; it is not changed.
        groups: its groups of hidden channels.
        images: for the gradients of Taylor's criterion, and the example; with labels, or the network's decisions are
            taken for these.
        multiple: of all widths.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], images: ImageSet, multiple: int) -> None:
        self._model, self._images, self._multiple = model, images, multiple
        self._hidden = {name for group in groups for name in (*group.producers, *group.between)}
        self._last = _last_layer(model)
        self._example = images.batch([0])
        self._gradients: dict[str, Tensor] | None = None

    def network(self, criterion: str, scope: str, share: float) -> nn.Module | None:
        """The network with this share of its multiply-accumulates, within one per cent where bisection finds it.

        Where widths of many groups change at once, and none is so near, the smallest that is found above it. None where
        the least channels that may stay take more.
        """
        whole, _ = count_macs(self._model, self._example)
        low, high = 0.0, self._largest_share(criterion, scope)
        found = {high: self._pruned(criterion, scope, high)}
        excess = {high: self._operations(found[high]) / whole / share - 1}
        if excess[high] > WITHIN:
            return None
        while len(excess) <= BISECTIONS and min(map(abs, excess.values())) > CLOSE:
            middle = (low + high) / 2
            found[middle] = self._pruned(criterion, scope, middle)
            excess[middle] = self._operations(found[middle]) / whole / share - 1
            low, high = (middle, high) if excess[middle] > 0 else (low, middle)
        return found[min(excess, key=lambda ratio: _distance(excess[ratio]))]

    def _operations(self, network: nn.Module) -> int:
        return count_macs(network, self._example)[0]

    def _largest_share(self, criterion: str, scope: str) -> float:
        """Of the channels that may be removed at all."""
        importance = Floored(CRITERIA[criterion](), self._multiple)
        self._prune(importance, SCOPES[scope], criterion, 0.0)
        if not SCOPES[scope].ranked_together:
            return 1 - MIN_SHARE
        return 1 - (importance.kept + 0.5) / max(1, importance.total)  # half a channel for rounding

    def _pruned(self, criterion: str, scope: str, ratio: float) -> nn.Module:
        return self._prune(Floored(CRITERIA[criterion](), self._multiple), SCOPES[scope], criterion, ratio)

    def _prune(self, importance: Floored, scope: Scope, criterion: str, ratio: float) -> nn.Module:
        """A copy of the network without this share of the channels in scope."""
        network = copy.deepcopy(self._model).requires_grad_(True)
        if criterion == "Taylor":
            self._set_gradients(network)
        left_out = [module for name, module in network.named_modules() if self._is_left_out(name, module, scope)]
        pruner = torch_pruning.pruner.BasePruner(
            network,
            self._example,
            importance=importance,
            global_pruning=scope.ranked_together,
            pruning_ratio=ratio,
            ignored_layers=left_out,
            round_to=self._multiple,
        )
        pruner.step()
        network.zero_grad()
        return network.eval().requires_grad_(False)

    def _is_left_out(self, name: str, module: nn.Module, scope: Scope) -> bool:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return False
        return name == self._last or (scope.hidden_only and name not in self._hidden)

    def _set_gradients(self, network: nn.Module) -> None:
        if self._gradients is None:
            self._gradients = loss_gradients(self._model, self._images)
        for name, parameter in network.named_parameters():
            parameter.grad = self._gradients[name].clone()


def _distance(excess: float) -> tuple[bool, float]:
    """The order of networks by their operations over those asked for, less one: near, else above, else below."""
    near = abs(excess) <= WITHIN
    return (not near and excess < 0, abs(excess))


def loss_gradients(model: nn.Module, images: ImageSet) -> dict[str, Tensor]:
    """Gradients of the images' mean cross-entropy by the parameters' names, against labels or the model's decisions."""
    network = copy.deepcopy(model).requires_grad_(True)
    seen = 0
    for batch in batches(images, torch.device("cpu")):
        outputs = network(batch)
        labels = outputs.argmax(1) if images.labels is None else images.labels[seen : seen + len(batch)]
        seen += len(batch)
        (cross_entropy(outputs, labels, reduction="sum") / len(images)).backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in network.named_parameters()
    }


def with_new_statistics(network: nn.Module, images: ImageSet) -> nn.Module:
    """A copy whose batch norms have the means and variances of these images, averaged over batches of the same size."""
    network = copy.deepcopy(network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches weigh the same
        norm.train()
    with torch.no_grad():
        for indices in torch.arange(len(images)).tensor_split(-(-len(images) // BATCH_SIZE)):
            network(images.batch(indices))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def _last_layer(model: nn.Module) -> str:
    """The layer that computes the outputs, taken to be the last one that is defined."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
