"""How an image becomes a network's input."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transform:
    """Resizing, cropping and normalization of images.

    Attributes:
        input_size: side in pixels of the middle square that is cut out, or the height where `input_width` is given.
        resize_size: short side in pixels after resizing, before the cut.
        mean: per channel, subtracted from pixels scaled to [0, 1].
        std: per channel, by which they are then divided.
        interpolation: of resizing, "bilinear" or "bicubic".
        input_width: width in pixels of the cut where it is not a square.
        frames: how many frames of a clip make an input; None where images do.
        adjacent: whether these follow one another, so that a clip gives many inputs; else they are spread over it.
    """

    input_size: int = 224
    resize_size: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    input_width: int | None = None
    frames: int | None = None
    adjacent: bool = False

    @property
    def channels(self) -> int:
        """Channels of an input: 1 for grey images, 3 for colours, 4 with opacity."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an input: (channels, height, width), or (channels, frames, height, width)."""
        return (self.channels, *([self.frames] if self.frames else []), self.height, self.width)

    @property
    def described(self) -> str:
        """'224 px', or '16 frames of 112 px'."""
        clip = f"{self.frames} frames of " if self.frames else ""
        return f"{clip}{self.input_size} px"

    @property
    def height(self) -> int:
        """Height of an input in pixels."""
        return self.input_size

    @property
    def width(self) -> int:
        """Width of an input in pixels."""
        return self.input_width or self.input_size
