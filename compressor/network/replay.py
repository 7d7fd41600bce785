"""Passes that begin behind a module whose outputs are kept, where all that comes before it changes no more.

Layers are refitted front to back: what one of them receives, and what the network returns, depends on the part before
it through a few tensors only. Which module's output carries all of it, a residual block's for instance, is found by
trial: everything before it returns no numbers, and the network's outputs must still be the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.files.tensors_on_disk import TensorsOnDisk
from compressor.network.hooks import BATCH_SIZE, inputs_of, noting, output_of
from compressor.process.memory import at_once

# Of the outputs that are kept for one set of images: in a file, or in the memory of an accelerator.
MAX_BYTES_ON_DISK, MAX_BYTES_IN_MEMORY = 1 << 31, 1 << 27


@dataclass(frozen=True)
class Cut:
    """A module from whose output alone the rest of the network can be computed.

    Attributes:
        name: of the module.
        end: when its call ends, in calls begun and ended.
        numbers: how many it returns for one image.
        before: names of the modules that need not run, and the shape of what each returns for one image.
    """

    name: str
    end: int
    numbers: int
    before: dict[str, torch.Size]


@dataclass(frozen=True)
class _Calls:
    """A module's calls in a pass of one image: when the first begins and the last ends, in calls begun and ended.

    `shape` is that of the last one's output, None where it returns no tensor.
    """

    begin: int
    end: int
    shape: torch.Size | None
    count: int = 1


class Cuts:
    """The cuts of a network between the layers that will change; the network may be changed by replacing these.

    Args:
        network: the network.
        layers: names of the layers, none of which contains another.
        example: one input (1, ...), on the network's device.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], example: Tensor) -> None:
        self._network = network
        self._example = example
        self._calls = _record_calls(network, layers, example)
        self._found: dict[str, Cut | None] = {}

    def before(self, layers: Iterable[str], max_numbers: int) -> Cut | None:
        """The last cut that ends before any of the layers is used and returns at most `max_numbers`; None where there
        is none.

        Call it first for the network as it was given.
        """
        begins = [self._calls[layer].begin for layer in layers if layer in self._calls]
        if not begins:
            return None
        first = min(begins)
        ended = sorted((calls.end, name) for name, calls in self._calls.items() if calls.end < first)
        for _, name in reversed(ended):
            if name not in self._found:
                self._found[name] = self._try(name)
            cut = self._found[name]
            if cut is not None and cut.numbers <= max_numbers:
                return cut
        return None

    def _try(self, name: str) -> Cut | None:
        """The cut at this module, if it is one: with no number from before it, the outputs are still the same."""
        calls = self._calls[name]
        if calls.count > 1 or not calls.shape or calls.shape[0] != 1:
            return None
        cut, network = Cut(name, calls.end, calls.shape.numel(), self._modules_before(name)), self._network
        kept: list[Tensor] = []
        with torch.inference_mode():
            with noting([network.get_submodule(name)], lambda _module, output: kept.append(output.clone())):
                expected = network(self._example.clone())
            with suppress(RuntimeError), resumed(network, cut, kept[0], 1):
                return cut if torch.equal(network(self._example.clone()), expected) else None
        return None

    def _modules_before(self, name: str) -> dict[str, torch.Size]:
        """The modules that have ended when this one ends, less those within others of them."""
        end = self._calls[name].end
        chosen: dict[str, torch.Size] = {}
        for other, calls in self._calls.items():  # in the order of names: a module comes before its parts
            is_within = any(other.startswith(f"{around}.") for around in (*chosen, name))
            if calls.end < end and not is_within and calls.shape:
                chosen[other] = calls.shape
        return chosen


class Replay:
    """Runs a network on a set of images, from the last cut before the layers that still change.

    Args:
        cuts: of the network.
        images: the images.
        device: where the network runs.
    """

    def __init__(self, cuts: Cuts, images: ImageSet, device: torch.device) -> None:
        self._cuts = cuts
        self._images = images
        self._device = device
        self._parts = torch.arange(len(images)).split(images.fitting(BATCH_SIZE))
        self._cut: Cut | None = None
        self._kept = self._new_list()
        self._max_bytes = MAX_BYTES_ON_DISK if self._is_on_disk else at_once(MAX_BYTES_IN_MEMORY)

    def advance(self, network: nn.Module, *layers: str) -> None:
        """Keep what the last cut before the layers returns, since nothing that is used before them will change.

        For one that is used before the present cut, passes begin at the images again.
        """
        cut = self._cuts.before(layers, self._max_bytes // (4 * len(self._images)))
        if cut == self._cut:
            return
        if self._cut is not None and (cut is None or cut.end < self._cut.end):
            self._cut, self._kept = None, self._new_list()
        if cut is None:
            return
        kept = self._new_list()
        try:
            for number in range(len(self._parts)):
                kept.append(self._output_of(network, cut.name, number))
        except OSError:  # the disk is full
            self._max_bytes = cut.numbers * 4 * len(self._images) // 2
            return
        self._cut, self._kept = cut, kept

    @property
    def _is_on_disk(self) -> bool:
        return self._device.type == "cpu"

    def _new_list(self) -> "TensorsOnDisk | list[Tensor]":
        return TensorsOnDisk() if self._is_on_disk else []

    def passes(self, network: nn.Module) -> Iterator[Tensor]:
        """The images batch by batch; the network's pass over one of them begins behind the cut until the next."""
        for number in range(len(self._parts)):
            with self._resumed(network, number) as batch:
                yield batch

    def inputs(self, network: nn.Module, layer: str, calls: int = 1) -> Iterator[list[Tensor]]:
        """What the layer receives in its first calls, batch by batch."""
        module = network.get_submodule(layer)
        for batch in self.passes(network):
            yield inputs_of(network, module, batch, calls)

    def outputs(self, network: nn.Module) -> Tensor:
        """What the network returns for all images (n, num_outputs)."""
        with torch.inference_mode():
            return torch.cat([network(batch).reshape(len(batch), -1).float() for batch in self.passes(network)])

    def _output_of(self, network: nn.Module, name: str, number: int) -> Tensor:
        with self._resumed(network, number) as batch:
            return output_of(network, network.get_submodule(name), batch)

    @contextmanager
    def _resumed(self, network: nn.Module, number: int) -> Iterator[Tensor]:
        """The batch of this number; passes of it begin behind the cut."""
        batch = self._images.batch(self._parts[number]).to(self._device)
        if self._cut is None:
            yield batch
            return
        with resumed(network, self._cut, self._kept[number], len(batch)):
            yield batch


@contextmanager
def resumed(network: nn.Module, cut: Cut, kept: Tensor, count: int) -> Iterator[None]:
    """Within the block a pass of `count` images begins behind the cut, which returns `kept`.

    What comes before returns tensors of the right shape that are no numbers and take no memory.

    Args:
        network: as it was when the cut was found, but for layers behind it.
        cut: where passes begin.
        kept: what the cut's module returned for these images (count, ...).
        count: images of a pass.
    """
    with ExitStack() as stack:
        for name, shape in cut.before.items():
            nothing = kept.new_full((1,) * len(shape), torch.nan).expand(shape[0] * count, *shape[1:])
            stack.enter_context(_returning(network.get_submodule(name), nothing))
        stack.enter_context(_returning(network.get_submodule(cut.name), kept, copied=True))
        yield


@contextmanager
def _returning(module: nn.Module, value: Tensor, copied: bool = False) -> Iterator[None]:
    """Within the block the module computes nothing and returns `value`, or a copy that may be changed in place."""
    module.forward = lambda *_args, **_kwargs: value.clone() if copied else value
    try:
        yield
    finally:
        del module.forward


def _record_calls(network: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, _Calls]:
    """The calls of each module in a pass, by name; without the network itself, parts of the layers, and what does not
    run."""
    inside = tuple(f"{layer}." for layer in layers)
    names = {module: name for name, module in network.named_modules() if name and not name.startswith(inside)}
    begins: dict[nn.Module, int] = {}
    found: dict[nn.Module, _Calls] = {}
    clock = iter(range(1, 10**9))

    def begin(module: nn.Module) -> None:
        begins.setdefault(module, next(clock))

    def end(module: nn.Module, output: object) -> None:
        shape = output.shape if isinstance(output, Tensor) else None
        count = found[module].count + 1 if module in found else 1
        found[module] = _Calls(begins[module], next(clock), shape, count)

    with noting(names, end, begin), torch.inference_mode():
        network(example.clone())
    return {name: found[module] for module, name in names.items() if module in found}
