"""What a runtime offers, so that files can be timed in it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compressor.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to run on one batch.

    Attributes:
        run: computes the model once on the batch it was loaded with.
        load_ms: milliseconds that loading took, the first run not included.
    """

    run: Run
    load_ms: float


class Runtime(Protocol):
    """One runtime; its entry is in `exporters.runtimes.registry`."""

    name: str
    """What the table of runtimes lists it under; the name of its package."""
    label: str
    """What people call it."""

    def providers(self) -> list[str]:
        """Where models can run here, nowhere if it is not installed; the CPU is `exporters.session.CPU`."""

    def open(self, model: Path | bytes, batch: NDArray[Any], provider: str, threads: int) -> OpenedModel:
        """The model, loaded anew and run once on the batch.

        Args:
            model: an ONNX file, or the content of one.
            batch: inputs (N, ...).
            provider: one of `providers()`.
            threads: that compute an operator; with one, the thread that calls does all the work (its processor time
                is taken for the latency).

        Raises:
            InputError: there is no such file, or the provider cannot be used.
            BocompressError: the model does not load, or does not run on the batch.
        """


def tile_batch(images: "NDArray[Any] | Tensor", batch_size: int) -> NDArray[Any]:
    """Images (N, ...) repeated or cut to (batch_size, ...), in order, in host memory.

    Raises:
        InputError: there are no images.
    """
    # Torch is not imported for this: files can be compared where only their runtime is wanted.
    on_host = np.asarray(images if isinstance(images, np.ndarray) else images.detach().cpu())
    if on_host.ndim < 1 or len(on_host) == 0:
        raise InputError("latency needs at least one image to run on")
    return np.ascontiguousarray(on_host[np.arange(batch_size) % len(on_host)])
