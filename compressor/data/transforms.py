"""TODO docstring."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transform:
    """How an image becomes the network's input: the short side is resized to `resize_size` pixels, the middle
    `input_size` x `input_size` pixels are cut out, scaled to [0, 1], and normalized by `mean` and `std` per
    channel. `interpolation` is "bilinear" or "bicubic"."""

    input_size: int = 224
    resize_size: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
