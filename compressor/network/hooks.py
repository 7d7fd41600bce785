"""Inputs and outputs of modules in a running network, and patches of convolutions as rows of a matrix."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.data.images import ImageSet
from compressor.factorization.layers.kinds import Convolution, axes_of
from compressor.streams import Stream, derived_seed

BATCH_SIZE = 32
MAX_ACTIVATIONS = 2 * 10**7  # that a pass with gradients holds at once: 80 MB


class Captured(Exception):
    """The input was captured; the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class OutputPositions:
    """Some positions of a layer's output, the same for every output of that shape.

    Attributes:
        indices: for a convolution's output (N, Co, H, W) image, row and column of each position, and for images of
            other axes alike; for others its index in all but the last dimension, flattened.
    """

    indices: tuple[Tensor, ...]

    def of_output(self, output: Tensor) -> Tensor:
        """The outputs (rows, Co) at these positions."""
        if len(self.indices) > 1:
            image, *pixel = self.indices
            return _batched(output, len(pixel)).movedim(1, -1)[(image, *pixel)]
        return output.reshape(-1, output.shape[-1])[self.indices[0]]

    def of_input(self, layer: nn.Module, value: Tensor) -> Tensor:
        """The part of its input from which `layer` computes these outputs.

        Returns:
            (rows, groups * n): patches in the order of the weight, group after group.
        """
        if isinstance(layer, Convolution):
            return _patches(layer, _batched(value, axes_of(layer)), *self.indices)
        return value.reshape(-1, value.shape[-1])[self.indices[0]]


def sample_positions(layer: nn.Module, output: Tensor, count: int, generator: torch.Generator) -> OutputPositions:
    """At most `count` distinct random positions of the layer's output.

    Args:
        layer: a convolution, or a layer that acts on the last dimension.
        output: of the layer, on any device, which the positions share.
        count: how many at most.
        generator: draws them, on the CPU.
    """
    if axes := axes_of(layer):
        batched = _batched(output, axes)
        size = batched.shape[:1] + batched.shape[2:]
        chosen = torch.randperm(size.numel(), generator=generator)[:count].to(output.device)
        return OutputPositions(torch.unravel_index(chosen, size))
    total = output.shape[:-1].numel()
    return OutputPositions((torch.randperm(total, generator=generator)[:count].to(output.device),))


def position_generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator per layer for `sample_positions`, so that a layer's positions do not depend on the other layers."""
    return [torch.Generator().manual_seed(derived_seed(seed, Stream.POSITIONS)) for _ in range(count)]


def _batched(value: Tensor, axes: int) -> Tensor:
    """Images (N, C, ...) of so many axes, also where the batch dimension is missing."""
    return value if value.dim() == axes + 2 else value[None]


def _patches(layer: Convolution, value: Tensor, image: Tensor, *pixel: Tensor) -> Tensor:
    """The patches (rows, C * kh * kw) that a convolution multiplies at these positions of its output."""
    padded, strides = _with_zeros_between(layer, value) if isinstance(layer, nn.ConvTranspose2d) else _pad(layer, value)
    axes = len(pixel)
    steps = [
        (position[:, None] * stride + dilation * torch.arange(size, device=value.device)).view(
            -1, *[size if other == axis else 1 for other in range(axes)]
        )
        for axis, (position, stride, dilation, size) in enumerate(
            zip(pixel, strides, layer.dilation, layer.kernel_size, strict=True)
        )
    ]
    gathered = padded.movedim(1, -1)[(image.view(-1, *[1] * axes), *steps)]  # (rows, kh, kw, C)
    return gathered.movedim(-1, 1).flatten(1)


def _pad(layer: Convolution, value: Tensor) -> tuple[Tensor, Sequence[int]]:
    """The padded input, and by how many pixels patches of neighbors lie apart along each axis."""
    # torch keeps a convolution's padding for F.pad in this attribute for every mode, 'same' and 'valid' included.
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return nn.functional.pad(value, padding, mode=mode) if any(padding) else value, layer.stride


def _with_zeros_between(layer: nn.ConvTranspose2d, value: Tensor) -> tuple[Tensor, Sequence[int]]:
    """The input of the convolution that a transposed one is, as of `_pad`."""
    *lead, height, width = value.shape
    sparse = value.new_zeros(
        *lead, *((side - 1) * step + 1 for side, step in zip((height, width), layer.stride, strict=True))
    )
    sparse[..., :: layer.stride[0], :: layer.stride[1]] = value
    padding: list[int] = []
    for axis in (1, 0):  # the last axis comes first, and padding may be negative
        margin = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        padding += [margin, margin + layer.output_padding[axis]]
    return nn.functional.pad(sparse, padding), (1, 1)


def batches(images: ImageSet, device: torch.device, size: int = BATCH_SIZE) -> Iterator[Tensor]:
    """The images in order, batch by batch; the network may change a batch in place.

    Args:
        images: all of them.
        device: where the batches come.
        size: images of a batch, fewer where they are large.
    """
    for indices in torch.arange(len(images)).split(images.fitting(size)):
        yield images.batch(indices).to(device)


def fitting_with_gradients(network: nn.Module, example: Tensor, most: int) -> int:
    """How many images a pass with gradients takes at once.

    The graph keeps what every module returns; within MAX_ACTIVATIONS, or one image's.

    Args:
        network: that is to run.
        example: one input (1, ...).
        most: the number is at most this.
    """
    count = 0

    def add(_module: nn.Module, output: object) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in network.modules() if next(module.children(), None) is None]
    with torch.inference_mode(), noting(leaves, add):
        network(example.clone())
    return max(1, min(most, MAX_ACTIVATIONS // max(count, 1)))


def differentiable(output: Tensor) -> Tensor:
    """A module's output, for gradients by it, also where it does not depend on the network's input."""
    return output if output.requires_grad else output.detach().requires_grad_()


@contextmanager
def attached(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks at the end of a with-block, also where registering one of them fails.

    Args:
        hooks: the handles; a generator that registers them is run here.
    """
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield


def inputs_of(network: nn.Module, module: nn.Module, batch: Tensor, calls: int = 1) -> list[Tensor]:
    """The first inputs of a module in its first calls in a running network; the pass ends there.

    Args:
        network: that runs.
        module: a part of it, or itself.
        batch: inputs of the network (N, ...).
        calls: how many.
    """
    found: list[Tensor] = []

    def keep(_module: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
        value = _first(args, kwargs)
        if len(found) + 1 < calls:
            found.append(value.clone())  # later modules may change it in place
            return
        found.append(value)
        raise Captured

    hook = module.register_forward_pre_hook(keep, with_kwargs=True)
    with attached([hook]), suppress(Captured), torch.inference_mode():
        network(batch)
    return found


def output_of(network: nn.Module, module: nn.Module, batch: Tensor) -> Tensor:
    """A copy of what a module returns in a running network; the pass ends there.

    Args:
        network: that runs.
        module: a part of it, or itself; it returns one tensor.
        batch: inputs of the network (N, ...).
    """
    found: list[Tensor] = []

    def keep(_module: nn.Module, output: Tensor) -> None:
        found.append(output.clone())
        raise Captured

    with noting([module], keep), suppress(Captured), torch.inference_mode():
        network(batch)
    return found[0]


def _first(args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Tensor:
    """A module's first input, be it positional or by keyword."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def watching(modules: Sequence[nn.Module], on_call: Callable[[int, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `on_call(index, input, output)` whenever one of the modules runs within the with-block.

    Args:
        modules: the modules.
        on_call: given the module's index in `modules`; what it returns, if anything, replaces the output.
    """

    def hook(index: int) -> Callable[..., Tensor | None]:
        return lambda module, args, kwargs, output: on_call(index, _first(args, kwargs), output)

    # Before other hooks: where the network is itself one of the modules, one makes rows of its outputs.
    watched = (
        module.register_forward_hook(hook(i), with_kwargs=True, prepend=True) for i, module in enumerate(modules)
    )
    with attached(watched):
        yield


def watch_batches(
    network: nn.Module,
    modules: Sequence[nn.Module],
    batches: Iterable[Tensor],
    on_call: Callable[[int, Tensor, Tensor, int], None],
) -> None:
    """Run the network on batches, and tell of every call of the modules.

    A pass ends with the last of these calls: how many there are is seen in the first one, which runs to its end.

    Args:
        network: that runs.
        modules: parts of it, or itself.
        batches: inputs of the network (N, ...), which it may change.
        on_call: given the module's index in `modules`, its input and output, and the number of images N.
    """
    calls, most, size = 0, 0, 0

    def note(index: int, value: Tensor, output: Tensor) -> None:
        nonlocal calls
        on_call(index, value, output, size)
        calls += 1
        if calls == most:
            raise Captured

    with torch.inference_mode(), watching(modules, note):
        for batch in batches:
            calls, size = 0, len(batch)
            with suppress(Captured):
                network(batch)
            most = most or calls


@contextmanager
def noting(
    modules: Iterable[nn.Module],
    on_end: Callable[[nn.Module, Any], None],
    on_begin: Callable[[nn.Module], None] = lambda module: None,
) -> Iterator[None]:
    """Tells when modules begin and end within the with-block, whatever they take and return.

    Args:
        modules: any, in a network or not.
        on_end: called after each call of one of them, with the module and what it returned.
        on_begin: called before, with the module.
    """

    def register() -> Iterator[RemovableHandle]:
        for module in modules:
            yield module.register_forward_pre_hook(lambda module, _args: on_begin(module))
            yield module.register_forward_hook(lambda module, _args, output: on_end(module, output), prepend=True)

    with attached(register()):
        yield


def count_calls(network: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, int]:
    """How often a forward pass of `example` calls the modules, in the order of first calls; without uncalled ones.

    Args:
        network: that runs.
        names: of modules of it.
        example: an input (N, ...).
    """
    order: list[str] = []

    def note(index: int, _value: Tensor, _output: Tensor) -> None:
        order.append(names[index])

    with torch.inference_mode(), watching([network.get_submodule(name) for name in names], note):
        network(example)
    return dict(Counter(order))
