"""One pass over calibration images: the metric of every layer, from unlabelled images and without training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.factorization.moments import INPUT_FLOOR, OUTPUT_FLOOR, LayerMoments, with_floor
from compressor.network.hooks import batches, sample_positions, watching
from compressor.network.layers import FoundLayer

MAX_INPUTS = 5120  # of one output, and outputs of a group; wider layers get no metric. A matrix takes 210 MB at most.
MEMORY_BYTES = 1 << 30  # for what one pass collects; more layers take more passes
MAX_ROWS = 8192  # places per layer that enter its covariance
GRADIENT_IMAGES = 64
GRADIENT_BATCH = 8
PROJECTIONS = 4  # random combinations of the network's outputs whose gradients are taken per image


@dataclass
class Moments:
    """Running sums over rows x (rows, groups * n) and, where given, targets y (rows, groups * m), in float64.

    Sums are over differences from the first row: what hardly varies about a large mean keeps its digits, and what does
    not vary at all has a covariance of exactly zero. Memory: groups * n * (n + m) numbers.
    """

    groups: int
    count: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _origins: dict[str, Tensor] = field(default_factory=dict)

    def add(self, rows: Tensor, targets: Tensor | None = None) -> None:
        """Add rows; products of one batch are taken in single precision or the rows' own, if that is higher."""
        with torch.autocast(rows.device.type, enabled=False):  # the network's own would round them
            x = self._from_origin("x", rows)
            self.count += len(rows)
            self._add("x", x.double().sum(1))
            self._add("xx", x.mT @ x)
            if targets is not None:
                y = self._from_origin("y", targets)
                self._add("y", y.double().sum(1))
                self._add("xy", x.mT @ y)

    def mean(self) -> Tensor:
        """Mean of the rows, (groups, n)."""
        return self._shift("x") + self._origin("x")

    def target_mean(self) -> Tensor:
        """Mean of the targets, (groups, m)."""
        return self._shift("y") + self._origin("y")

    def second_moment(self) -> Tensor:
        """Mean of x x^T, (groups, n, n)."""
        mean = self.mean()
        return self.covariance() + mean[:, :, None] * mean[:, None, :]

    def covariance(self) -> Tensor:
        """Covariance of the rows, (groups, n, n)."""
        shift = self._shift("x")
        return self._sums["xx"] / self.count - shift[:, :, None] * shift[:, None, :]

    def cross_covariance(self) -> Tensor:
        """Covariance of rows and targets, (groups, n, m)."""
        return self._sums["xy"] / self.count - self._shift("x")[:, :, None] * self._shift("y")[:, None, :]

    def _shift(self, name: str) -> Tensor:
        return self._sums[name] / self.count

    def _origin(self, name: str) -> Tensor:
        return self._origins[name][:, 0].double().cpu()

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double().cpu()
        if name in self._sums:
            self._sums[name] += value
        else:
            self._sums[name] = value

    def _from_origin(self, name: str, rows: Tensor) -> Tensor:
        """Rows by group (groups, rows, n) less the first row of all."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        by_group = rows.reshape(len(rows), self.groups, -1).transpose(0, 1)
        if name not in self._origins:
            self._origins[name] = by_group[:, :1].clone()
        return by_group - self._origins[name]


def has_moments(layer: FoundLayer) -> bool:
    """Whether covariance of the inputs and weight of the outputs are small enough to be kept."""
    return max(_num_inputs(layer), layer.shape[0] // layer.num_groups) <= MAX_INPUTS


def collect_moments(
    model: nn.Module,
    layers: Sequence[FoundLayer],
    images: ImageSet,
    device: torch.device,
    seed: int,
    on_step: Callable[[int, str], None] = lambda count, text: None,
) -> Iterator[tuple[FoundLayer, LayerMoments]]:
    """The metric of each of `layers` that is not too wide for one, in order.

    Covariances are summed over at most MAX_ROWS random places per layer, in as many passes as keep their memory
    under MEMORY_BYTES (or one layer's). Layers without a metric are left out.

    Args:
        model: the original network on `device`, in eval mode.
        layers: layers of `model`.
        images: calibration images.
        device: where the network is.
        seed: of the places and of the combinations of outputs.
        on_step: told the number of layers done and a word.
    """
    done = 0
    for chunk in chunks([layer for layer in layers if has_moments(layer)], _moment_bytes):
        on_step(done, f"inputs of {len(chunk)} layers")
        moments = _input_moments(model, chunk, images, device, seed)
        on_step(done, f"gradients at {len(chunk)} layers")
        outputs = output_weights(model, chunk, images, device, seed)
        for layer in chunk:
            done += 1
            on_step(done, layer.name)
            yield layer, make_moments(moments.pop(layer.name), outputs.pop(layer.name))


def rows_of_batch(batch_size: int, num_images: int) -> int:
    """The batch's share of MAX_ROWS, rounded up."""
    return -(-MAX_ROWS * batch_size // num_images)


def make_moments(moments: Moments, outputs: Tensor) -> LayerMoments:
    """The metric from sums over a layer's inputs and the weight of its outputs."""
    return LayerMoments(with_floor(moments.covariance(), INPUT_FLOOR), moments.mean(), outputs)


def _num_inputs(layer: FoundLayer) -> int:
    return int(torch.Size(layer.shape[1:]).numel())


def _moment_bytes(layer: FoundLayer) -> int:
    groups, num_out = layer.num_groups, layer.shape[0] // layer.num_groups
    return 8 * groups * (_num_inputs(layer) ** 2 + num_out**2)


def chunks(layers: Sequence[FoundLayer], bytes_of: Callable[[FoundLayer], int]) -> Iterator[list[FoundLayer]]:
    """The layers in order, in runs that together take MEMORY_BYTES at most (or one layer's)."""
    chunk: list[FoundLayer] = []
    used = 0
    for layer in layers:
        if chunk and used + bytes_of(layer) > MEMORY_BYTES:
            yield chunk
            chunk, used = [], 0
        chunk.append(layer)
        used += bytes_of(layer)
    if chunk:
        yield chunk


def _input_moments(
    model: nn.Module, layers: Sequence[FoundLayer], images: ImageSet, device: torch.device, seed: int
) -> dict[str, Moments]:
    moments = {layer.name: Moments(layer.num_groups) for layer in layers}
    # Each its own: a layer's places do not depend on which others are looked at.
    generators = [torch.Generator().manual_seed(seed) for _ in layers]

    def add(number: int, value: Tensor, output: Tensor) -> None:
        layer = layers[number]
        count = rows_of_batch(len(batch), len(images))
        positions = sample_positions(layer.module, output, count, generators[number])
        moments[layer.name].add(positions.of_input(layer.module, value))

    with torch.inference_mode(), watching([layer.module for layer in layers], add):
        for batch in batches(images, device):
            model(batch)
    return moments


def output_weights(
    model: nn.Module, layers: Sequence[FoundLayer], images: ImageSet, device: torch.device, seed: int
) -> dict[str, Tensor]:
    """How much the network's outputs feel each layer's outputs: E[sum over places of J^T J], (groups, m, m) each.

    J is the network's Jacobian there; J^T J is estimated without bias from the gradients of random +-1 combinations
    of the outputs, summed over a layer's calls. Only the blocks within a group are kept, and what few gradients leave
    open is drawn towards the identity. Where a network cannot be differentiated, or in a part that it computes without
    gradients, all outputs weigh the same.
    """
    try:
        with torch.backends.cudnn.flags(enabled=False):  # its recurrent layers have no gradients in eval mode
            weights = _gradient_moments(model, layers, images, device, seed)
    except RuntimeError:
        return {layer.name: _identity(layer) for layer in layers}
    return {name: _shrunk(sums) for name, sums in weights.items()}


def _shrunk(gradients: Moments) -> Tensor:
    """Their second moment, scaled, and drawn towards the identity by outputs / rows: a vector's head has few rows."""
    squares = _scaled(gradients.second_moment())
    return with_floor(squares, OUTPUT_FLOOR + squares.shape[-1] / gradients.count)


def _identity(layer: FoundLayer) -> Tensor:
    size = layer.shape[0] // layer.num_groups
    return torch.eye(size, dtype=torch.float64).repeat(layer.num_groups, 1, 1)


def _gradient_moments(
    model: nn.Module, layers: Sequence[FoundLayer], images: ImageSet, device: torch.device, seed: int
) -> dict[str, Moments]:
    """Sums over the gradients of random combinations of the outputs at every place of the layers' outputs."""
    weights = {layer.name: Moments(layer.num_groups) for layer in layers}
    few = images.subset(range(min(GRADIENT_IMAGES, len(images))))
    generator = torch.Generator().manual_seed(seed)
    seen: list[tuple[int, Tensor]] = []

    def remember(number: int, _value: Tensor, output: Tensor) -> Tensor:
        seen.append((number, output if output.requires_grad else torch.zeros_like(output).requires_grad_()))
        return output.clone()  # what comes next may change its input in place

    with torch.enable_grad(), watching([layer.module for layer in layers], remember):
        for batch in batches(few, device, GRADIENT_BATCH):
            outputs = model(batch.requires_grad_().clone()).reshape(len(batch), -1)
            outputs = outputs if outputs.requires_grad else outputs.clone() * batch.new_ones(1).requires_grad_()
            for _ in range(PROJECTIONS):
                signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
                gradients = torch.autograd.grad(
                    (outputs * signs).sum(),
                    [output for _, output in seen],
                    retain_graph=True,
                    materialize_grads=True,
                )
                for (number, _), gradient in zip(seen, gradients, strict=True):
                    weights[layers[number].name].add(_as_rows(layers[number].module, gradient))
            seen.clear()
            del outputs, gradients  # or their graph lives on beside the next one
    return weights


def _as_rows(layer: nn.Module, output: Tensor) -> Tensor:
    channels_last = output.movedim(-3, -1) if isinstance(layer, nn.Conv2d) else output
    return channels_last.reshape(-1, channels_last.shape[-1])


def _scaled(squares: Tensor) -> Tensor:
    """To a mean diagonal of 1, if any: only ratios count, and gradients may be tiny."""
    return squares / squares.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-300)
