"""What modules of a running network receive and give; and patches of convolutions as rows of a matrix."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet

BATCH_SIZE = 32


class Captured(Exception):
    """What was sought has been seen; the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class OutputPositions:
    """OutputPositions of a layer's output, the same in every network of that shape: `count` of them drawn at random.

    For a convolution's output (N, Co, H, W) the indices of image, row and column; else the index among all but the
    last dimension.
    """

    indices: tuple[Tensor, ...]

    def of_output(self, output: Tensor) -> Tensor:
        """The outputs (rows, Co) at these places."""
        if len(self.indices) == 3:
            image, row, column = self.indices
            return (output if output.dim() == 4 else output[None])[image, :, row, column]
        return output.reshape(-1, output.shape[-1])[self.indices[0]]

    def of_input(self, layer: nn.Module, value: Tensor) -> Tensor:
        """What `layer` sees of its input there: rows (rows, n), n in the order of its weight, group after group."""
        if isinstance(layer, nn.Conv2d):
            return _patches(layer, value if value.dim() == 4 else value[None], *self.indices)
        return value.reshape(-1, value.shape[-1])[self.indices[0]]


def sample_positions(layer: nn.Module, output: Tensor, count: int, generator: torch.Generator) -> OutputPositions:
    """At most `count` distinct places of the layer's output."""
    if isinstance(layer, nn.Conv2d):
        num_images, (height, width) = output.shape[:-3].numel(), output.shape[-2:]  # one image may come alone
        chosen = torch.randperm(num_images * height * width, generator=generator)[:count].to(output.device)
        image, place = chosen // (height * width), chosen % (height * width)
        return OutputPositions((image, place // width, place % width))
    total = output.shape[:-1].numel()
    return OutputPositions((torch.randperm(total, generator=generator)[:count].to(output.device),))


def _patches(layer: nn.Conv2d, value: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    # nn.Conv2d keeps its padding for F.pad in this attribute for every mode, 'same' and 'valid' included.
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(value, padding, mode=mode) if any(padding) else value
    rows, columns = (
        place[:, None] * stride + dilation * torch.arange(size, device=value.device)
        for place, stride, dilation, size in zip(
            (row, column), layer.stride, layer.dilation, layer.kernel_size, strict=True
        )
    )
    # Indices split by a slice put the gathered dimensions first: (rows, kh, kw, C).
    gathered = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2).flatten(1)


def batches(images: ImageSet, device: torch.device, size: int = BATCH_SIZE) -> Iterator[Tensor]:
    """The images in order, ready for the network, which may change them in place."""
    for indices in torch.arange(len(images)).split(size):
        yield images.batch(indices).to(device)


def input_of(network: nn.Module, module: nn.Module, batch: Tensor) -> Tensor:
    """What `module` receives when `network` runs on `batch`; the pass ends there."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
        seen.append(_first(args, kwargs))
        raise Captured

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.inference_mode():
            network(batch)
    except Captured:
        pass
    finally:
        handle.remove()
    return seen[0]


def _first(args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Tensor:
    """The input of a layer, be it given by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def watching(modules: Sequence[nn.Module], see: Callable[[int, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """While open, `see(number, input, output)` is told of every call of the modules; it may replace the output."""

    def watch(number: int) -> Callable[..., Tensor | None]:
        return lambda module, args, kwargs, output: see(number, _first(args, kwargs), output)

    handles = [module.register_forward_hook(watch(number), with_kwargs=True) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_order_of_use(network: nn.Module, names: Sequence[str], example: Tensor) -> list[str]:
    """The named modules in the order in which a forward pass first calls them."""
    order: list[str] = []

    def note(number: int, _value: Tensor, _output: Tensor) -> None:
        order.append(names[number])

    with torch.inference_mode(), watching([network.get_submodule(name) for name in names], note):
        network(example)
    return list(dict.fromkeys(order))
