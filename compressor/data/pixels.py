"""An image file as pixels, whatever it holds: 8 bits, 10 to 16 in 16, integers in 32, or floats."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from compressor.data.clips.frames import choose_frames, frames_from, list_frames
from compressor.data.resizing import REDUCING_GAP, fit_image, resized_size
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.failures import explain_shortage
from compressor.files import open_regular
from compressor.text import first_line

Bytes = NDArray[np.uint8]
DECODING_THREADS = 4
# Only these are opened, whatever a file's name says: to show PostScript, for one, Pillow runs another program.
KNOWN_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
FULL_SCALES = {
    "integers": tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16)),
    "floats": (1.0, 255.0, 1000.0, 4095.0, 10000.0, 65535.0),
}
SLACK = 0.05  # of a full scale, that interpolation and noise go beyond it, or below zero
BRIGHT_SHARE = 0.999  # of a file's pixels are no brighter than its peak; a few hot ones say nothing of the scale
MIN_FILLED = 0.28  # of a full scale reach up to the peak, or it is not the file's; of 12 bits, 10 bits are 0.25
SEPARATE_UNITS = 100.0  # floats up to 1 beside others up to this have a scale of their own
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: width and height change places
MAX_BLACK = 8  # of 255 levels, up to which an image shows nothing


class UnreadableError(Exception):
    """An image file cannot be used; the message says why."""


@dataclass(frozen=True)
class Deep:
    """One channel with more than 8 bits, resized and cropped, in the file's own scale.

    Attributes:
        values: float32 of shape (height, width).
        peak: the value that all but a thousandth of the pixels reach at most, before resizing.
        kind: "integers" or "floats".
        scale: the value of white, where the format says it; else None.
    """

    values: NDArray[np.float32]
    peak: float
    kind: str
    scale: float | None = None


def require_channels(transform: Transform) -> None:
    """Check that images can be decoded to the network's channels.

    Raises:
        InputError: they are not 1, 3 or 4.
    """
    if transform.channels not in MODES:
        raise InputError(
            f"image files have 1, 3 or 4 channels, and the network takes {transform.channels}: "
            "call compressor.compress from Python, with batches of its own inputs"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image, not decoded yet, after the camera's orientation is applied."""
    return image.size[::-1] if image.getexif().get(ORIENTATION, 1) in TURNED else image.size


def open_image(file: BinaryIO) -> Image.Image:
    """An image of one of the formats that are known, not decoded yet; raises what Pillow raises."""
    Image.init()
    return Image.open(file, formats=[name for name in KNOWN_FORMATS if name in Image.OPEN])


def read_image(file: Path, transform: Transform) -> Bytes | Deep:
    """An image file, resized and cropped: uint8 of shape (height, width, channels), or one deep channel.

    Where the network takes clips, the file is a folder, whose frames (frames, height, width, channels) are read; where
    it takes adjacent ones, the file is the first of them.

    Raises:
        UnreadableError: it cannot be decoded, or its values are not those of an image.
    """
    if transform.frames:
        count = transform.frames
        chosen = frames_from(file, count) if transform.adjacent else choose_frames(list_frames(file), count)
        return _read_frames(chosen, replace(transform, frames=None))
    try:
        with open_regular(file) as opened, open_image(opened) as image:
            if image.format == "JPEG":
                image.draft(None, _drafted_size(image, transform))
            return _decode(image, transform)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("not an image that can be decoded") from error
    except Exception as error:  # decoders raise any error on broken files
        if shortage := explain_shortage(error):
            raise shortage from error
        raise UnreadableError(first_line(error)) from error


def _read_frames(chosen: Sequence[Path], transform: Transform) -> Bytes:
    """Frames of a clip; those chosen more than once are read once."""
    frames: dict[Path, Bytes] = {}
    for file in dict.fromkeys(chosen):
        frame = read_image(file, transform)
        if isinstance(frame, Deep):
            raise UnreadableError(f"{file.name} has more than 8 bits, which frames of clips may not have")
        frames[file] = frame
    return np.stack([frames[file] for file in chosen])


def read_images(files: Sequence[Path], transform: Transform) -> list[Bytes | Deep | UnreadableError]:
    """The files as by `read_image`, decoded side by side; the error in place of what cannot be read."""

    def read(file: Path) -> Bytes | Deep | UnreadableError:
        try:
            return read_image(file, transform)
        except UnreadableError as error:
            return error

    with ThreadPoolExecutor(DECODING_THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they repair
        return list(pool.map(read, files))


def _drafted_size(image: Image.Image, transform: Transform) -> tuple[int, int]:
    """A JPEG file is decoded at half its size, a quarter or an eighth, if that leaves as many times what is needed.

    Where there is enough to leave out, photographs change by a root mean square of 1.2 of 255 levels, at most 2.1.
    """
    resized, _ = resized_size(image.size, transform)
    return round(REDUCING_GAP * resized[0]), round(REDUCING_GAP * resized[1])


def _decode(image: Image.Image, transform: Transform) -> Bytes | Deep:
    white = (
        65535.0 if image.format == "PPM" and image.mode == "I" else None
    )  # Pillow scales what the file says is white
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _read_deep(image, transform, white)
    if "transparency" in image.info and image.mode != "RGBA":
        image = image.convert("RGBA")
    mode = MODES[transform.channels]
    if image.mode != "L":  # grey becomes colours after resizing
        image = image.convert(mode)
    pixels = fit_image(image, transform)
    if pixels.ndim == 2 and mode != "L":
        pixels = np.asarray(Image.fromarray(pixels).convert(mode))
    return pixels.reshape(transform.height, transform.width, transform.channels)


def _read_deep(image: Image.Image, transform: Transform, white: float | None) -> Deep:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UnreadableError("it has values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < -SLACK * max(high, 0.0):
        raise UnreadableError(f"it has values below zero ({low:g})")
    kind = "floats" if image.mode.startswith("F") else "integers"
    fitted = fit_image(Image.fromarray(values.astype(np.float32)), transform)
    peak = float(np.quantile(values, BRIGHT_SHARE, method="lower"))
    return Deep(fitted.astype(np.float32), peak if peak > 0 else high, kind, white)


def to_bytes(images: Sequence[Bytes | Deep], channels: int, whites: Mapping[str, float] | None = None) -> list[Bytes]:
    """All images as uint8 of shape (height, width, channels), deep ones scaled by what white is in their folder.

    Args:
        images: of a folder.
        channels: of the network.
        whites: what white is, by kind; None for what these images say.
    """
    whites = {**find_whites(images), **(whites or {})}
    return [_scaled(image, whites, channels) if isinstance(image, Deep) else image for image in images]


def stack_images(images: list[Bytes]) -> Tensor:
    """One tensor, uint8 of shape (N, channels, height, width), of images of shape (height, width, channels).

    Clips (frames, height, width, channels) become (N, channels, frames, height, width). Each is taken off the list once
    it is copied, so that no more than one copy of all is held.
    """
    *sides, channels = images[0].shape
    stacked = np.empty((len(images), channels, *sides), dtype=np.uint8)
    for index in reversed(range(len(images))):
        stacked[index] = np.moveaxis(images.pop(), -1, 0)
    return torch.from_numpy(stacked)


def find_whites(images: Sequence[Bytes | Deep]) -> dict[str, float]:
    """What white is in deep images of each kind, where their format does not say it.

    A file alone does not say whether 16 bits hold 10, 12 or 16, so the highest peak of all files of a kind decides: the
    next of `FULL_SCALES` is white, or the peak itself where it lies far below that or above them all.
    """
    peaks = find_peaks(images)
    return {kind: _full_scale(kind, peak) for kind, peak in peaks.items()}


def find_peaks(images: Sequence[Bytes | Deep]) -> dict[str, float]:
    """The highest peak of deep images of each kind, where their format does not say what white is."""
    peaks: dict[str, float] = {}
    for image in images:
        if isinstance(image, Deep) and image.scale is None:
            peaks[image.kind] = max(image.peak, peaks.get(image.kind, 0.0))
    return peaks


def _full_scale(kind: str, peak: float) -> float:
    scale = next((scale for scale in FULL_SCALES[kind] if peak <= (1 + SLACK) * scale), peak)
    return scale if peak >= MIN_FILLED * scale or peak <= 0 else peak


def _scaled(image: Deep, whites: Mapping[str, float], channels: int) -> Bytes:
    white = image.scale or whites[image.kind]
    if image.kind == "floats" and image.peak <= 1 + SLACK and white > SEPARATE_UNITS:
        white = 1.0
    grey = np.rint(np.clip(image.values / white, 0, 1) * 255).astype(np.uint8)
    pixels = np.repeat(grey[:, :, None], channels, axis=2)
    if channels == 4:
        pixels[:, :, 3] = 255
    return pixels


def is_constant(image: Bytes) -> bool:
    """Whether an image, uint8 of shape (height, width, channels), has one colour throughout."""
    colours = image.reshape(-1, image.shape[-1])
    return bool((colours == colours[:1]).all())


def is_black(image: Bytes) -> bool:
    """Whether an image of several colours, uint8 of shape (height, width, channels), comes out nearly black."""
    colours = image[..., :3]
    return not is_constant(image) and bool(np.quantile(colours, BRIGHT_SHARE, method="lower") <= MAX_BLACK)
