"""Passes of a network that has readers of hidden channels: what these receive, return and are added to."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.channels.groups import Reader
from compressor.channels.tracing import in_order, plain_name, tensors_in
from compressor.data.images import ImageSet
from compressor.network.hooks import Captured, watching
from compressor.network.replay import Cuts, Replay


@dataclass
class Call:
    """One call of a reader: its input, its output, and what the output is added to (None where it is not)."""

    value: Tensor
    output: Tensor
    other: Tensor | None = None


class Passes:
    """Passes of a network over calibration images, from the last cut before the readers that are asked for.

    Args:
        network: the network; only its readers change.
        readers: in the order of use, the order in which they are asked for.
        images: the images.
        device: where the network runs.
    """

    def __init__(self, network: nn.Module, readers: Sequence[Reader], images: ImageSet, device: torch.device) -> None:
        example = images.batch([0]).to(device)
        self.num_images = len(images)
        self._additions = count_additions(network, example)
        self._replay = Replay(Cuts(network, [reader.name for reader in readers], example), images, device)

    def calls(self, network: nn.Module, readers: Sequence[Reader]) -> Iterator[tuple[int, list[tuple[Reader, Call]]]]:
        """For every batch its size and what the readers do; those before the first of these must change no more."""
        self._replay.advance(network, *(reader.name for reader in readers))
        are_added = any(reader.addition is not None for reader in readers)
        skipped: int | None = None if are_added else 0
        for batch in self._replay.passes(network):
            if skipped is None:  # additions of modules that do not run behind the cut
                skipped = self._additions - count_additions(network, batch.clone())
            yield len(batch), calls_of(network, readers, batch, skipped)


def calls_of(
    network: nn.Module, readers: Sequence[Reader], batch: Tensor, skipped: int = 0
) -> list[tuple[Reader, Call]]:
    """Inputs and outputs of the readers when the network runs on a batch; the pass ends after the last of them.

    Args:
        network: that holds the readers.
        readers: in the order of use.
        batch: inputs (N, ...), on the network's device.
        skipped: how many of the network's additions this pass leaves out, all of them before the readers'.
    """
    calls: dict[int, Call] = {}
    last = {reader.addition - skipped: number for number, reader in enumerate(readers) if reader.addition is not None}

    def finish() -> None:
        waiting = any(call.other is None and readers[i].addition is not None for i, call in calls.items())
        if len(calls) == len(readers) and not waiting:
            raise Captured

    def keep(number: int, value: Tensor, output: Tensor) -> None:
        calls[number] = Call(value.clone(), output.clone())  # the next modules may change them in place
        finish()

    def add(count: int, operands: Sequence[Tensor]) -> None:
        if (number := last.get(count)) is not None:
            calls[number].other = operands[0 if readers[number].adds_right else 1].clone()
            finish()

    modules = [network.get_submodule(reader.name) for reader in readers]
    with torch.inference_mode(), suppress(Captured), watching(modules, keep), _Additions(add):
        network(batch)
    return [(readers[number], calls[number]) for number in sorted(calls)]


def count_additions(network: nn.Module, batch: Tensor) -> int:
    """How many additions of tensors a pass has; the network may change the batch in place."""
    counted = _Additions(lambda _count, _operands: None)
    with torch.inference_mode(), counted:
        network(batch)
    return counted.count


class _Additions(TorchFunctionMode):
    """Calls `on_addition(number, operands)` before every addition of tensors, numbered as in tracing."""

    def __init__(self, on_addition: Callable[[int, Sequence[Any]], None]) -> None:
        super().__init__()
        self.count = 0
        self._on_addition = on_addition

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if plain_name(func) == "add" and any(True for _ in tensors_in([list(args), kwargs or {}])):
            self._on_addition(self.count, in_order(args, kwargs))
            self.count += 1
        return func(*args, **(kwargs or {}))
