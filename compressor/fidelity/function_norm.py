"""The function norm L = E||f~(x) - f*(x)||^2 as fidelity, from per-image losses (Sec. 3.1, Eq. 5)."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.failures import is_shortage
from compressor.fidelity.decisions import decide
from compressor.fidelity.labels import fitting_labels
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.outputs.rows import gives_scores

BATCH_SIZE = 64
MAX_LOSS = 1e12


class FunctionNorm:
    """L(f~, f*) on a fixed set of images; the original's outputs are computed once.

    Args:
        original: the original network, on `device`.
        images: the images, at least two.
        device: where networks run.

    Attributes:
        targets: the original's outputs (n, num_outputs).
        output_energy: E||f*(x)||^2.
        decides: whether outputs are scores of classes; rows of other outputs (see `compressor.outputs.rows`) are not.
        labels: the images' labels (n,) where they fit the outputs, else None.

    Raises:
        InputError: fewer than two images, or the network's outputs are not one finite tensor.
    """

    def __init__(self, original: nn.Module, images: ImageSet, device: torch.device) -> None:
        if len(images) < 2:
            raise InputError(f"at least two images are needed to know the noise, got {len(images)}")
        self.images = images
        self._device = device
        self._batch_size = BATCH_SIZE  # less, once that was too much for the memory
        self.targets = self.outputs(original, torch.arange(len(images)))
        if not torch.isfinite(self.targets).all():
            raise InputError("the network's outputs on these images are not finite")
        self.output_energy = _energy(self.targets)
        self.decides = gives_scores(original)
        self.labels = fitting_labels(images, self.targets.shape[1]) if self.decides else None

    @property
    def noise_spec(self) -> NoiseSpecification:
        """The noise of a plan's losses is proportional to L."""
        return NoiseSpecification()

    @property
    def uninformative_loss(self) -> float:
        """L of a network whose outputs are all zero."""
        return self.output_energy

    def subset(self, count: int) -> "FunctionNorm":
        """The function norm on the first `count` images, without running the original again."""
        part = copy.copy(self)
        part.images = self.images.subset(range(count))
        part.targets = self.targets[:count]
        part.output_energy = _energy(part.targets)
        part.labels = None if self.labels is None else self.labels[:count]
        return part

    def outputs(self, network: nn.Module, indices: Tensor) -> Tensor:
        """Outputs (m, num_outputs) of `network` on the images `indices` (m,), in smaller batches if memory is short."""
        size, start, batches = min(self._batch_size, self.images.fitting(BATCH_SIZE)), 0, []
        while start < len(indices):
            part = indices[start : start + size]
            try:
                with torch.inference_mode():
                    batches.append(_as_rows(network(self.images.batch(part).to(self._device))))
            except Exception as error:
                if size == 1 or not is_shortage(error):
                    raise
                size = self._batch_size = size // 2
                continue
            start += len(part)
        return torch.cat(batches)

    def inputs_and_targets(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images `indices` (m,) on the device, and the original's outputs (m, num_outputs) for them."""
        return self.images.batch(indices).to(self._device), self.targets[indices.to(self.targets.device)]

    def losses(self, network: nn.Module, indices: NDArray[np.int64]) -> Losses:
        """Squared distances to the original's outputs on the images `indices` (m,)."""
        chosen = torch.from_numpy(indices)
        outputs = self.outputs(network, chosen)
        return Losses(indices, self.compare(outputs, chosen), flips=self._flips(outputs, chosen))

    def of_outputs(self, outputs: Tensor) -> float:
        """The function norm of a network's outputs (n, num_outputs) on all images, in their order."""
        return float(self.compare(outputs, torch.arange(len(outputs))).mean())

    def compare(self, outputs: Tensor, indices: Tensor) -> NDArray[np.float64]:
        """Squared distances (m,) of `outputs` (m, num_outputs) to the original's on the images `indices` (m,)."""
        differences = outputs - self.targets[indices.to(self.targets.device)]
        values = differences.double().square().sum(1).cpu().numpy()
        # A candidate may overflow: a large finite loss lets the search go on, and avoid it.
        return np.minimum(np.nan_to_num(values, nan=MAX_LOSS, posinf=MAX_LOSS), MAX_LOSS)

    def _flips(self, outputs: Tensor, indices: Tensor) -> NDArray[np.float64] | None:
        """Prediction flips (m,), see `Losses`; None without labels."""
        if self.labels is None:
            return None
        labels, targets = self.labels[indices], self.targets[indices.to(self.targets.device)]
        before, after = (decide(rows.cpu()) == labels for rows in (targets, outputs))
        return (before.double() - after.double()).numpy()


def _energy(outputs: Tensor) -> float:
    return float(outputs.double().square().sum(1).mean())


def _as_rows(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the network must return one tensor, it returns {type(outputs).__name__}: see compressor.outputs.rows"
        )
    return outputs.reshape(len(outputs), -1).float()
