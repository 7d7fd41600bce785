"""Fine-tuning of a compressed network at fixed ranks, by labels or by what the original computes (Sec. 4.3).

Only numbers change: weights of the factors, biases, scales and shifts of normalization layers. Weights that are zero
stay zero, so that a pruned network stays pruned. The network is in eval mode throughout: what is trained is what is
exported, and statistics of batch norms, which small sets estimate badly, stay as they are.

After each epoch the loss on images outside the training decides which weights are kept, the untuned ones among them,
and a checkpoint is written from which the next epoch follows as if nothing had happened: the order of the images
depends on seed and epoch alone, the learning rate on the step.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.function_norm import FunctionNorm
from compressor.files import replace_when_whole
from compressor.recovery.records import TuneEpoch, TuneRecord
from compressor.recovery.schedules import TuneSettings, rate_at
from compressor.streams import Stream, generator

MOMENTUM = 0.9


@dataclass
class FineTuning:
    """One fine-tuning; `run` gives the tuned network, on `device`.

    Args:
        network: the compressed network on `device`; it is left as it is.
        teacher: the original on `device`.
        images: to train on, with labels where `settings.by` is "labels".
        check: other images, likewise, which decide what is kept. At least two.
        settings: how.
        seed: of the order of the images.
        checkpoint: the file to keep, None for none.
        about: what the run depends on beside the settings, JSON values only; a checkpoint of another run is refused.
        resume: go on from the checkpoint, if there is one.
        on_step: told steps done and how it stands.

    Raises:
        InputError: the checkpoint cannot be read or written, or belongs to another run.
    """

    network: nn.Module
    teacher: nn.Module
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
        """Tune until the epochs are over or the loss on the check images no longer falls."""
        self._lap_began = time.perf_counter()
        self._evaluate_outside = FunctionNorm(self.teacher, self.check, self.device)
        self._network = copy.deepcopy(self.network).eval().requires_grad_(True)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=0.0, momentum=MOMENTUM)
        self._best = _weights(self._network)
        self._rows: list[TuneEpoch] = []
        self._first_step: tuple[int, float] | None = None
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
            rate = self._set_rate(step)
            loss = self._step(indices)
            losses.append(loss * len(indices))
            left = self._time_left(step + 1)
            self.on_step(step + 1, f"epoch {number} of {self.settings.epochs}, loss {loss:.3g}{left}")
            if not math.isfinite(losses[-1]):
                break
        return self._checked(number, sum(losses) / len(self.images), rate)

    def _batches(self, number: int) -> Iterator[tuple[int, Tensor]]:
        """Steps counted over all epochs, with the images of each."""
        order = generator(self.seed, Stream.FINE_TUNING, number).permutation(len(self.images))
        first = (number - 1) * self._steps_per_epoch
        yield from enumerate(torch.from_numpy(order).split(self.settings.batch_size), first)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.images) / self.settings.batch_size)

    def _time_left(self, done: int) -> str:
        """To the end of all epochs, by the steps that this process has done; nothing after the first."""
        now = time.perf_counter()
        if self._first_step is None:
            self._first_step = done, now
            return ""
        first, began = self._first_step
        seconds = (now - began) / (done - first) * (self._steps_per_epoch * self.settings.epochs - done)
        return f", {seconds:.0f} s left" if seconds < 90 else f", {seconds / 60:.0f} min left"

    def _set_rate(self, step: int) -> float:
        settings = self.settings
        rate = rate_at(settings.schedule, settings.highest_rate, step, self._steps_per_epoch, settings.epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _step(self, indices: Tensor) -> float:
        inputs = self.images.batch(indices).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
            outputs = self._network(inputs)
        loss = self._loss(outputs.float().reshape(len(indices), -1), self._targets[indices].to(self.device))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            for weight, mask in self._masks:
                weight.mul_(mask)
        return float(loss.detach())

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.settings.by == "labels":
            return nn.functional.cross_entropy(outputs, targets)
        return (outputs - targets).square().sum(1).mean() / self._evaluate_outside.output_energy

    def _training_targets(self) -> Tensor:
        """Labels (n,), or the original's outputs (n, num_outputs), computed once."""
        if self.settings.by == "labels":
            assert self.images.labels is not None
            return self.images.labels
        self.on_step(self._steps_per_epoch * (len(self._rows) - 1), "outputs of the original")
        return FunctionNorm(self.teacher, self.images, self.device).targets.cpu().clone()

    # After an epoch

    def _checked(self, epoch: int, train_loss: float, rate: float) -> TuneEpoch:
        """Loss and function norm on the check images; figures that are not finite become null."""
        every = torch.arange(len(self.check))
        outputs = self._evaluate_outside.outputs(self._network, every)
        norm = float(self._evaluate_outside.compare(outputs, every).mean())
        loss = norm / self._evaluate_outside.output_energy
        if self.settings.by == "labels":
            assert self.check.labels is not None
            loss = float(nn.functional.cross_entropy(outputs, self.check.labels.to(outputs.device)))
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
        """In words; empty while there is reason to go on."""
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
            learning_rate=settings.highest_rate,
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
        """Everything the next epoch depends on, in one file, whole or not at all."""
        if self.checkpoint is None:
            return
        parameters = self._network.named_parameters()
        states = {name: self._optimizer.state.get(value, {}) for name, value in parameters}
        momenta = {name: state["momentum_buffer"] for name, state in states.items() if state}  # unused ones have none
        groups = {"now": _weights(self._network), "best": self._best, "momentum": momenta}
        tensors = {
            f"{group}/{name}": value.cpu().contiguous()
            for group, values in groups.items()
            for name, value in values.items()
        }
        state = {"about": self._about(), "rows": [row.model_dump() for row in self._rows]}
        with replace_when_whole(self.checkpoint) as partial:
            partial.write_bytes(save(tensors, {"state": json.dumps(state)}))

    def _restore(self) -> bool:
        """Take up the checkpoint, if that is wanted and there is one."""
        if not self.resume or self.checkpoint is None or not self.checkpoint.exists():
            return False
        state, tensors = _read(self.checkpoint)
        _require_same(state.get("about"), self._about(), self.checkpoint)
        try:
            self._rows = [TuneEpoch.model_validate(row) for row in state["rows"]]
            self._network.load_state_dict(_part(tensors, "now"))
            self._best = {name: value.to(self.device) for name, value in _part(tensors, "best").items()}
            momenta = _part(tensors, "momentum")
            for name, value in self._network.named_parameters():
                if name in momenta:
                    self._optimizer.state[value]["momentum_buffer"] = momenta[name].to(self.device)
        except (ValidationError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{self.checkpoint} is no checkpoint of this network; choose another --out") from error
        return True


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _zero_masks(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weights of convolutions and linear layers that have zeros, and 1 where they have none."""
    weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    masks = [(weight, (weight.detach() != 0).to(weight.dtype)) for weight in weights]
    return [(weight, mask) for weight, mask in masks if not mask.all()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _part(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}/"): value for name, value in tensors.items() if name.startswith(f"{group}/")}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with suppress(OSError, SafetensorError, ValueError, RecursionError), safe_open(path, framework="pt") as file:
        state = json.loads((file.metadata() or {}).get("state", ""))
        if isinstance(state, dict):
            return state, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    raise InputError(f"{path} is not a checkpoint of a fine-tuning; choose another --out")


def _require_same(stored: Any, wanted: Mapping[str, Any], path: Path) -> None:
    stored = stored if isinstance(stored, dict) else {}
    # As JSON has them: tuples are lists there.
    now = json.loads(json.dumps(wanted))
    different = sorted(key for key in {*stored, *now} if stored.get(key) != now.get(key))
    if different:
        raise InputError(f"{path} was written with other {', '.join(different)}; --resume needs the same")
