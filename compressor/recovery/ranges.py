"""Equal ranges of what factors hand on, so that one scale of an 8-bit tensor serves all of its channels.

Components of a decomposition come by importance: the first may be hundreds of times as large as the last, of which 8
bits would leave nothing. Scaling each channel and taking it back in the next factor changes no output (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", Sec. 4.1, with ranges of activations);
by powers of two not even its rounding, and ranges within a factor of two of each other cost half a bit.
"""

import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.factorization.layers.kinds import axes_of
from compressor.network.hooks import batches, watching
from compressor.network.pruning import factor_pairs, rescale

MAX_IMAGES = 64
LEAST = 1e-6  # of the largest range: a channel that is next to nothing is not blown up


def equalize_ranges(network: nn.Module, images: ImageSet, device: torch.device) -> nn.Module:
    """Scale every channel between factors, by a power of two, to a largest absolute value near 1 on the images.

    In place, with new tensors for the weights; returns `network`, which computes what it did.

    Args:
        network: in eval mode, on `device`.
        images: the first MAX_IMAGES are used.
        device: where it runs.
    """
    pairs = factor_pairs(network)
    if not pairs:
        return network
    largest: list[Tensor] = [torch.zeros(())] * len(pairs)

    def note(index: int, _: Tensor, output: Tensor) -> None:
        channels = output.movedim(-axes_of(pairs[index][0]) - 1, -1)
        largest[index] = torch.maximum(largest[index].to(output.device), channels.abs().flatten(0, -2).amax(0))

    with torch.inference_mode(), watching([first for first, _ in pairs], note):
        for batch in batches(images.subset(range(min(MAX_IMAGES, len(images)))), device):
            network(batch)
    for (first, second), range_of in zip(pairs, largest, strict=True):
        if range_of.dim():
            floor = LEAST * range_of.max()
            exponents = -range_of.clamp_min(1e-30).log2().round()
            rescale(first, second, torch.where(range_of > floor, exponents.exp2(), 1.0).clone())
    return network
