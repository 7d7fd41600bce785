"""Networks of other outputs than one matrix of scores: energies of their outputs, and what each of them lost.

On the test images everything is counted in full, at all positions.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.function_norm import BATCH_SIZE
from compressor.fidelity.records import OutputRecord
from compressor.outputs.rows import RowView, make_view, with_rows
from compressor.outputs.structure import Output, named_tensors

ENERGY_IMAGES = 64  # from which the energies of outputs are known


def give_rows(
    network: nn.Module,
    outputs: Sequence[Output],
    images: ImageSet,
    device: torch.device,
    weights: Mapping[str, float],
    seed: int,
) -> nn.Module:
    """The network, returning rows from now on where it does not return one matrix of scores.

    Args:
        network: on the device.
        outputs: what it returns.
        images: on the first of which the outputs' energies are measured.
        device: where it runs.
        weights: of the outputs, by name; empty for all alike.
        seed: of the values that stand for all.

    Raises:
        InputError: the weights do not fit the outputs, or these are not finite.
    """
    if not weights and is_matrix(network, outputs, images.batch([0]).to(device)):
        return network
    some = images.subset(range(min(ENERGY_IMAGES, len(images))))
    totals = {output.name: 0.0 for output in outputs if output.is_float}
    for _, tensors in run_whole(network, some, device):
        for output in outputs:
            if output.is_float:
                totals[output.name] += float(_squares(tensors[output.name], output).sum())
    energies = {name: total / len(some) for name, total in totals.items()}
    if not torch.tensor(list(energies.values())).isfinite().all():
        raise InputError("the network's outputs on these images are not finite")
    return with_rows(network, make_view(outputs, energies, weights, seed))


def is_matrix(network: nn.Module, outputs: Sequence[Output], example: Tensor) -> bool:
    """Whether a network returns one tensor (N, classes), and nothing around it.

    Args:
        network: on the example's device.
        outputs: what it returns.
        example: one input (1, ...).
    """
    if len(outputs) != 1 or len(outputs[0].shape) != 1 or not outputs[0].is_float:
        return False
    with torch.inference_mode():
        return isinstance(network(example), Tensor)


def run_whole(network: nn.Module, images: ImageSet, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yields the indices of images (n,) and all outputs (n, ...) for them by name, batch by batch.

    Args:
        network: on the device, with its outputs in their structure.
        images: in this order.
        device: where it runs.
    """
    for indices in torch.arange(len(images)).split(images.fitting(BATCH_SIZE)):
        with torch.inference_mode():  # which must not hold while others work
            tensors = named_tensors(network(images.batch(indices).to(device)))
        yield indices, tensors


def _squares(tensor: Tensor, output: Output) -> Tensor:
    """Squared lengths (N,) of an output (N, ...), at a position on average."""
    return tensor.double().reshape(len(tensor), -1).square().sum(1) / output.num_positions


class OutputLosses:
    """What each output of a network lost, added up batch by batch.

    Args:
        view: the original's, which says what counts in L.
    """

    def __init__(self, view: RowView) -> None:
        self._view = view
        self._floats = [output for output in view.outputs if output.is_float]
        self._distances: dict[str, list[Tensor]] = {output.name: [] for output in self._floats}
        self._lengths: dict[str, list[Tensor]] = {output.name: [] for output in self._floats}

    def add(self, targets: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Add the original's outputs (n, ...) by name, and the network's."""
        for output in self._floats:
            target = targets[output.name].double()
            self._lengths[output.name].append(_squares(target, output).cpu())
            self._distances[output.name].append(_squares(outputs[output.name].double() - target, output).cpu())

    def squares(self) -> Tensor:
        """L of each image (N,)."""
        return self._total(self._distances)

    def energy(self) -> float:
        """The original's output energy, in the same unit."""
        return float(self._total(self._lengths).mean())

    def _total(self, squares: Mapping[str, Sequence[Tensor]]) -> Tensor:
        rows = [part.share * torch.cat(list(squares[part.output.name])) for part in self._view.parts]
        return torch.stack(rows).sum(0)

    def records(self) -> list[OutputRecord]:
        """What each output lost."""
        weights = {part.output.name: part.weight for part in self._view.parts}
        records = []
        for output in self._floats:
            norm = float(torch.cat(self._distances[output.name]).mean())
            energy = float(torch.cat(self._lengths[output.name]).mean())
            records.append(
                OutputRecord(
                    name=output.name,
                    shape=list(output.shape),
                    weight=weights.get(output.name, 0.0),
                    function_norm=norm,
                    energy=energy,
                    relative=norm / energy if energy > 0 else None,
                )
            )
        return records
