"""Other pictures of the same things, for training: mirrored and shifted."""

import numpy as np
import torch
from torch import Tensor, nn

LARGEST_SHIFT = 1 / 8  # of a side


def augment(inputs: Tensor, rng: np.random.Generator) -> Tensor:
    """Images (n, channels, height, width), about half of them mirrored and all moved alike by up to an eighth of a
    side, edges repeated. Inputs of another shape are no images and stay as they are."""
    if inputs.dim() != 4:
        return inputs
    mirrored = torch.from_numpy(rng.random(len(inputs)) < 0.5).to(inputs.device)
    inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
    height, width = inputs.shape[2:]
    rows, columns = int(LARGEST_SHIFT * height), int(LARGEST_SHIFT * width)
    top, left = int(rng.integers(2 * rows + 1)), int(rng.integers(2 * columns + 1))
    padded = nn.functional.pad(inputs, (columns, columns, rows, rows), mode="replicate")
    return padded[:, :, top : top + height, left : left + width]
