"""Labelled images written as class folders."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_class_folders(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write grey images as PNG files, in one subfolder for each label.

    Args:
        folder: where the subfolders come.
        images: grey levels (n, height, width).
        labels: the class of each (n,), which names its subfolder.
    """
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        subfolder = folder / str(label)
        subfolder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(subfolder / f"{index:04d}.png")
