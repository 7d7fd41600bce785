"""Fine-tuning of a compressed network at fixed ranks, towards labels or the original's outputs (Sec. 4.3).

It trains the weights of the factors, biases, and scales and shifts of normalization layers. Weights that are zero stay
zero, so that a pruned network stays pruned. The network stays in eval mode: it is trained as it is exported, and
statistics of batch norms, which small sets estimate badly, stay as they are.

After each epoch the loss on the check images decides which weights are kept, the untuned ones among them, and a
checkpoint is written. A run that is resumed from it ends with the same bits: the order of the images depends on seed
and epoch alone, and optimizer and scheduler are in the checkpoint.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.factorization.layers.kinds import KINDS
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.risk import cross_entropy
from compressor.recovery.checkpoint import Checkpoint, read_progress
from compressor.recovery.records import TuneEpoch, TuneRecord
from compressor.recovery.schedules import make_scheduler
from compressor.recovery.settings import TuneSettings
from compressor.streams import Stream, generator

MOMENTUM = 0.9


@dataclass
class FineTuning:
    """One fine-tuning; `run` gives the tuned network, on `device`.

    Args:
        network: the compressed network on `device`; it is not changed.
        original: the original network on `device`.
        images: training images, with labels where `settings.by` is "labels".
        check: other images, at least two, likewise; the loss on them decides which weights are kept.
        settings: how to train.
        device: where to train.
        seed: seed of the order of the images.
        checkpoint: the file to write after every epoch; None for none.
        about: what the run depends on beside the settings, JSON values only; a checkpoint of another run is refused.
        resume: continue from the checkpoint, if there is one.
        on_step: called with the number of steps done and the progress in words.

    Raises:
        InputError: the checkpoint cannot be read or written, or belongs to another run.
    """

    network: nn.Module
    original: nn.Module
    images: ImageSet
    check: ImageSet
    settings: TuneSettings
    device: torch.device
    seed: int = 0
    checkpoint: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    on_step: Callable[[int, str], None] = lambda done, note: None

    def run(self) -> tuple[nn.Module, TuneRecord]:
        """The tuned network and the record. It ends early when the loss on the check images stops falling."""
        self._lap_began = time.perf_counter()
        self._check_norm = FunctionNorm(self.original, self.check, self.device)
        self._network = copy.deepcopy(self.network).eval().requires_grad_(True)
        settings = self.settings
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=settings.max_rate, momentum=MOMENTUM)
        self._scheduler = make_scheduler(
            self._optimizer, settings.schedule, self._steps_per_epoch, max(1, settings.epochs)
        )
        self._best = _weights(self._network)
        self._rows: list[TuneEpoch] = []
        if not self._restore():
            self._rows.append(self._checked(0, math.nan, 0.0))
        self._masks = _zero_masks(self._network)
        if not self._reason_to_stop():
            self._targets = self._training_targets()
        while not (reason := self._reason_to_stop()):
            self._rows.append(self._epoch(len(self._rows)))
            if self._best_epoch() == len(self._rows) - 1:
                self._best = _weights(self._network)
            self._keep()
        self._network.load_state_dict(self._best)
        return self._network.requires_grad_(False), self._record(reason)

    # One epoch

    def _epoch(self, number: int) -> TuneEpoch:
        losses, rate = [], 0.0
        for step, indices in self._batches(number):
            rate = self._optimizer.param_groups[0]["lr"]
            loss = self._step(indices)
            losses.append(loss * len(indices))
            self.on_step(step + 1, f"epoch {number} of {self.settings.epochs}, loss {loss:.3g}")
            if not math.isfinite(losses[-1]):
                break
        return self._checked(number, sum(losses) / len(self.images), rate)

    def _batches(self, number: int) -> Iterator[tuple[int, Tensor]]:
        """Numbers of the steps, counted over all epochs, with the images of each."""
        order = generator(self.seed, Stream.FINE_TUNING, number).permutation(len(self.images))
        first = (number - 1) * self._steps_per_epoch
        yield from enumerate(torch.from_numpy(order).split(self.settings.batch_size), first)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.images) / self.settings.batch_size)

    def _step(self, indices: Tensor) -> float:
        """One step of optimizer and scheduler on these images; the loss before it."""
        inputs = self.images.batch(indices).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
            outputs = self._network(inputs)
        loss = self._loss(outputs.float().reshape(len(indices), -1), self._targets[indices].to(self.device))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._scheduler.step()
        with torch.no_grad():
            for weight, mask in self._masks:
                weight.mul_(mask)
        return float(loss.detach())

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.settings.by == "labels":
            return cross_entropy(outputs, targets).mean()
        return (outputs - targets).square().sum(1).mean() / self._check_norm.output_energy

    def _training_targets(self) -> Tensor:
        """Labels (n,), or the original's outputs (n, num_outputs), computed once."""
        if self.settings.by == "labels":
            assert self.images.labels is not None
            return self.images.labels
        self.on_step(self._steps_per_epoch * (len(self._rows) - 1), "outputs of the original")
        return FunctionNorm(self.original, self.images, self.device).targets.cpu().clone()

    # After an epoch

    def _checked(self, epoch: int, train_loss: float, rate: float) -> TuneEpoch:
        """The epoch's row, with loss and function norm on the check images; what is not finite becomes null."""
        every = torch.arange(len(self.check))
        outputs = self._check_norm.outputs(self._network, every)
        norm = self._check_norm.of_outputs(outputs)
        loss = norm / self._check_norm.output_energy
        if self.settings.by == "labels":
            assert self.check.labels is not None
            loss = float(cross_entropy(outputs, self.check.labels.to(outputs.device)).mean())
        return TuneEpoch(
            epoch=epoch,
            learning_rate=rate,
            train_loss=_finite(train_loss),
            check_loss=_finite(loss),
            function_norm=norm,
            seconds=self._lap(),
        )

    def _lap(self) -> float:
        """Seconds since the last call."""
        began, self._lap_began = self._lap_began, time.perf_counter()
        return self._lap_began - began

    def _best_epoch(self) -> int:
        losses = [math.inf if row.check_loss is None else row.check_loss for row in self._rows]
        return int(np.argmin(losses))

    def _reason_to_stop(self) -> str:
        """In words; empty while training goes on."""
        last, patience = len(self._rows) - 1, self.settings.patience
        if last and self._rows[-1].train_loss is None:
            return f"in epoch {last} the loss was no longer a number: choose a lower --learning-rate"
        if last >= self.settings.epochs:
            return f"{last} {'epoch' if last == 1 else 'epochs'} done"
        if last - self._best_epoch() >= patience:
            return f"the loss on other images has not fallen for {patience} epochs"
        return ""

    def _record(self, reason: str) -> TuneRecord:
        settings = self.settings
        return TuneRecord(
            by=settings.by,
            schedule=settings.schedule,
            learning_rate=settings.max_rate,
            batch_size=settings.batch_size,
            autocast=settings.autocast,
            epochs=settings.epochs,
            train_images=len(self.images),
            check_images=len(self.check),
            kept_epoch=self._best_epoch(),
            stopped_because=reason,
            seconds=sum(row.seconds for row in self._rows),
            rows=self._rows,
        )

    # Checkpoint

    def _about(self) -> dict[str, Any]:
        return {**self.about, "fine-tuning settings": asdict(self.settings), "seed": self.seed}

    def _keep(self) -> None:
        """Write everything that the next epoch depends on to the checkpoint."""
        if self.checkpoint is None:
            return
        optimizer = self._optimizer.state_dict()
        state = {
            "rows": [row.model_dump() for row in self._rows],
            "param_groups": optimizer["param_groups"],
            "scheduler": self._scheduler.state_dict(),
        }
        tensors = {"network": _weights(self._network), "best": self._best, "optimizer": _flatten(optimizer["state"])}
        Checkpoint(self._about(), state, tensors).write(self.checkpoint)

    def _restore(self) -> bool:
        """Continue from the checkpoint, if that is wanted and there is one."""
        if not self.resume or self.checkpoint is None or not self.checkpoint.exists():
            return False
        found = read_progress(self.checkpoint, self._about())
        try:
            self._rows = [TuneEpoch.model_validate(row) for row in found.state["rows"]]
            self._network.load_state_dict(found.tensors["network"])
            self._best = {name: value.to(self.device) for name, value in found.tensors["best"].items()}
            states = _unflatten(found.tensors.get("optimizer", {}))
            self._optimizer.load_state_dict({"state": states, "param_groups": found.state["param_groups"]})
            if found.state["scheduler"].keys() != self._scheduler.state_dict().keys() or not self._fits():
                raise ValueError("the state is another optimizer's or another scheduler's")
            self._scheduler.load_state_dict(found.state["scheduler"])
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{self.checkpoint} is no checkpoint of this network; choose another --out") from error
        return True

    def _fits(self) -> bool:
        """Whether the optimizer's buffers have the shapes of their parameters."""
        states = self._optimizer.state.items()
        return all(value.shape == parameter.shape for parameter, state in states for value in state.values())


def _flatten(states: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, by the parameter's number and their own name."""
    return {
        f"{number}/{name}": value
        for number, state in states.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _unflatten(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """An optimizer's state, from what `_flatten` made of it."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        states.setdefault(int(number), {})[name] = value
    return states


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _zero_masks(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weights of convolutions and linear layers that have zeros, each with a mask: 0 at the zeros, else 1."""
    weights = [layer.weight for layer in network.modules() if isinstance(layer, KINDS)]
    masks = [(weight, (weight.detach() != 0).to(weight.dtype)) for weight in weights]
    return [(weight, mask) for weight, mask in masks if not mask.all()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
