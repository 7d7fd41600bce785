"""Resizing and cropping, to the pixel as by torchvision's presets, without making more pixels than are kept."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.data.transforms import Transform

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pictures of more than eight times the size are first averaged over blocks, down to this many times the size.
REDUCING_GAP = 4.0
MAX_ASPECT = 4.0  # of longer strips only the middle is resized: a strip of one pixel would become gigabytes


def fit_image(image: Image.Image, transform: Transform) -> NDArray[Any]:
    """The image with its short side resized and its middle cut out.

    The pixels are those of torchvision's presets, except that pictures of more than eight times the size (a root mean
    square of 0.5 of 255 levels, at most 0.8) and strips (two levels at most) differ in what is not seen.

    Returns:
        Of the image's own type, and of shape (height, width) or (height, width, channels).
    """
    resized, (left, top) = resized_size(image.size, transform)
    filtering = FILTERS[transform.interpolation]
    corners = left, top, left + transform.width, top + transform.height
    if max(resized) <= MAX_ASPECT * min(resized):
        return np.asarray(image.resize(resized, filtering, reducing_gap=REDUCING_GAP).crop(corners))
    scales = image.width / resized[0], image.height / resized[1]
    right, bottom = min(corners[2] * scales[0], image.width), min(corners[3] * scales[1], image.height)
    box = left * scales[0], top * scales[1], right, bottom
    return np.asarray(image.resize((transform.width, transform.height), filtering, box))


def resized_size(size: tuple[int, int], transform: Transform) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of an image of this size after resizing, and the left upper corner of the cut."""
    width, height = size
    if transform.width == transform.height:
        short = max(transform.resize_size, transform.input_size)
        # torchvision truncates the long side and rounds the corner.
        long = int(short * max(width, height) / min(width, height))
        resized = (short, long) if width <= height else (long, short)
    else:  # just large enough for the cut
        scale = max(transform.width / width, transform.height / height)
        resized = max(transform.width, round(scale * width)), max(transform.height, round(scale * height))
    return resized, (round((resized[0] - transform.width) / 2), round((resized[1] - transform.height) / 2))
