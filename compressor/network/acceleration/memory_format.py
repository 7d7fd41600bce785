"""How batches of images lie in memory: channels first as torch has them, or last.

On a CPU most convolutional networks take a tenth to a third less time for large images that lie channels last, and
ResNets more for small ones (docs/method/network.md). The format depends on the images' size alone, as the order of sums
depends on it: equal runs are to give equal results.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import nn

from compressor.data.images import ImageSet

MIN_PIXELS = 112 * 112  # of an image, for channels last


def in_faster_format(sets: Sequence[ImageSet], network: nn.Module, device: torch.device) -> list[ImageSet]:
    """The sets of images, with batches in the format that networks are faster with.

    Args:
        sets: of images of one size, to run.
        network: the original, on `device`; one that cannot take channels last, as those that `view` activations as
            rows, is given them first.
        device: where networks run.
    """
    shape = sets[0].input_shape
    if device.type != "cpu" or len(shape) != 3 or prod(shape[1:]) < MIN_PIXELS:
        return list(sets)
    found = [replace(images, channels_last=True) for images in sets]
    try:
        with torch.inference_mode():
            network(next(images for images in found if len(images)).batch([0]))
    except RuntimeError:
        return list(sets)
    return found
