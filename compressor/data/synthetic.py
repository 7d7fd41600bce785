"""Synthetic images with the statistics of photographs, by the dead leaves model."""

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from compressor.data.images import Array, ImageSet, OnStep
from compressor.data.pixels import MODES, require_channels
from compressor.data.resizing import fit_image
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.streams import Stream, generator

# Colours of a landscape, a street and a room (sRGB, 0 to 1), mostly muted as in photographs.
PALETTE = np.array(
    [
        *[(0.53, 0.66, 0.80), (0.75, 0.82, 0.88), (0.86, 0.86, 0.84)],  # sky, haze, cloud
        *[(0.24, 0.34, 0.16), (0.38, 0.46, 0.22), (0.13, 0.19, 0.11), (0.55, 0.56, 0.33)],  # leaves, grass
        *[
            (0.42, 0.31, 0.21),
            (0.61, 0.49, 0.35),
            (0.76, 0.66, 0.50),
            (0.25, 0.19, 0.14),
        ],  # earth, sand
        *[
            (0.50, 0.49, 0.47),
            (0.33, 0.33, 0.34),
            (0.66, 0.64, 0.61),
            (0.12, 0.12, 0.13),
        ],  # stone, road
        *[(0.20, 0.31, 0.40), (0.35, 0.47, 0.50)],  # water
        *[(0.82, 0.64, 0.53), (0.55, 0.38, 0.29), (0.90, 0.86, 0.78)],  # skin, fur, plaster
        *[(0.68, 0.20, 0.15), (0.85, 0.62, 0.16), (0.18, 0.29, 0.58), (0.78, 0.42, 0.52)],  # paint, flowers
    ],
    dtype=np.float32,
)
MIN_SIDE = 64
SCENE = 1.4  # side of what a clip's camera passes over, in sides of a frame
# Radii of the shapes as shares of the image's side; density r^-3 makes the statistics the same at every scale.
MIN_RADIUS, MAX_RADIUS = 0.012, 0.6
NUM_SHAPES = 160
NUM_LARGE_SHAPES = 6


def synthetic_images(count: int, transform: Transform, seed: int, on_step: OnStep | None = None) -> ImageSet:
    """Synthetic images, for users without images of their own.

    Shapes of all sizes occlude one another (the dead leaves model), shaded and textured with noise whose amplitude
    falls as 1/f, in natural colours. Image i depends on `seed` and i only. In clips the camera passes over one.

    Args:
        count: number of images.
        transform: gives size and normalization; images are drawn at MIN_SIDE pixels at least.
        seed: of all random choices.
        on_step: called after each image.

    Raises:
        InputError: `count` is less than one, or the network takes other than 1, 3 or 4 channels.
    """
    if count < 1:
        raise InputError(f"{count} synthetic images were asked for: at least one is needed")
    require_channels(transform)
    size = max(transform.height, transform.width)
    pixels = np.empty((count, *transform.shape), dtype=np.uint8)
    for index in range(count):
        rng = generator(seed, Stream.SYNTHETIC_IMAGES, index)
        frames = _draw_clip(size, transform.frames, rng) if transform.frames else [draw_image(max(MIN_SIDE, size), rng)]
        whole = [Image.fromarray(frame).convert(MODES[transform.channels]) for frame in frames]
        fitted = np.stack([fit_image(frame, replace(transform, resize_size=size)) for frame in whole])
        channels_first = fitted.reshape(len(frames), *transform.shape[-2:], transform.channels).transpose(3, 0, 1, 2)
        pixels[index] = channels_first.reshape(transform.shape)
        if on_step:
            on_step(index + 1, count)
    return ImageSet(
        held=torch.from_numpy(pixels),
        source=f"{count} synthetic {'clips' if transform.frames else 'images'}",
        mean=transform.mean,
        std=transform.std,
        synthetic=True,
    )


def _draw_clip(size: int, count: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Frames (side, side, 3) of a camera that moves over an image along a straight line at constant speed."""
    side = max(MIN_SIDE, size)
    scene = draw_image(int(SCENE * side), rng)
    first, last = rng.uniform(0, len(scene) - side, (2, 2))
    corners = np.linspace(first, last, count).astype(int).tolist()
    return [np.ascontiguousarray(scene[top : top + side, left : left + side]) for top, left in corners]


def draw_image(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image, uint8 of shape (size, size, 3)."""
    texture = colored_noise(3 * size // 2, rng)
    palette = PALETTE[rng.choice(len(PALETTE), size=rng.integers(3, 8), replace=False)]
    grey = palette.mean(axis=1, keepdims=True)
    palette = grey + (palette - grey) * np.float32(rng.uniform(0.3, 1.0))
    canvas = surface((slice(0, size), slice(0, size)), size, palette, texture, rng)
    radii = draw_radii(rng) * size
    for radius in radii:
        draw_shape(canvas, radius, palette, texture, rng)
    return expose(canvas, texture, rng)


def draw_radii(rng: np.random.Generator) -> Array:
    """Radii (NUM_SHAPES,) with density r^-3 as shares of the side, first a few large ones to cover the background."""
    uniform = rng.random(NUM_SHAPES)
    low, high = MIN_RADIUS**-2, MAX_RADIUS**-2
    radii = (low + uniform * (high - low)) ** -0.5
    radii[:NUM_LARGE_SHAPES] = rng.uniform(0.15, MAX_RADIUS, NUM_LARGE_SHAPES)
    return radii.astype(np.float32)


def draw_shape(canvas: Array, radius: float, palette: Array, texture: Array, rng: np.random.Generator) -> None:
    """Draw one shape with a slightly blurred edge, in place.

    Args:
        canvas: colours (size, size, 3).
        radius: about its size, in pixels.
        palette: colours (n, 3).
        texture: noise (h, w, 3) of deviation 1, from which its surface is cut.
        rng: draws place, form and surface.
    """
    size = len(canvas)
    centre = rng.uniform(-0.1 * size, 1.1 * size, 2).tolist()
    stretch = math.exp(rng.normal(0, 0.35))
    reach = 1.6 * radius * max(stretch, 1 / stretch) + 2
    # Plain numbers: for most shapes, which are small, numpy's overhead would dominate.
    low = [max(0, int(middle - reach)) for middle in centre]
    high = [min(size, int(middle + reach) + 1) for middle in centre]
    if low[0] >= high[0] or low[1] >= high[1]:
        return
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    distance = distance_outside(window, centre, radius, stretch, rng)
    if rng.random() < 0.5:  # a rough outline
        distance += cut(texture, distance.shape, rng)[..., 1] * np.float32(rng.uniform(0.02, 0.08) * radius)
    blur = 0.4 + rng.exponential(0.15) * (1 + 0.02 * radius)
    opacity = np.minimum(np.maximum(0.5 - distance / np.float32(2 * blur), 0), 1)[..., None]
    paint = surface(window, size, palette, texture, rng)
    paint -= canvas[window]
    paint *= opacity
    canvas[window] += paint


def distance_outside(
    window: tuple[slice, slice], centre: list[float], radius: float, stretch: float, rng: np.random.Generator
) -> Array:
    """Signed distance in pixels, negative inside, of a window's pixels (h, w) from a convex shape.

    Args:
        window: rows and columns of the canvas.
        centre: row and column of the shape's middle, which may lie outside.
        radius: in pixels.
        stretch: how much longer than wide, as a factor on one axis and its inverse on the other.
        rng: draws the kind of shape and its angle.
    """
    angle = rng.uniform(0, math.pi)
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(centre[1])
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u, v = (x * cos + y * sin) / np.float32(stretch), (y * cos - x * sin) * np.float32(stretch)
    kind = rng.random()
    if kind < 0.5:  # ellipse
        return np.sqrt(u * u + v * v) - np.float32(radius)
    if kind < 0.75:  # rectangle
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(radius * 0.85)
    sides = int(rng.integers(3, 8))
    turns = ((np.arange(sides) + rng.uniform(-0.25, 0.25, sides)) * (2 * math.pi / sides)).tolist()
    edges = [u * np.float32(math.cos(turn)) + v * np.float32(math.sin(turn)) for turn in turns]
    return np.maximum.reduce(edges) - np.float32(radius * 0.75)


def surface(window: tuple[slice, slice], size: int, palette: Array, texture: Array, rng: np.random.Generator) -> Array:
    """A patch of one material, (h, w, 3): a colour of the palette with shading and texture.

    Args:
        window: rows and columns of the canvas.
        size: of the canvas, in pixels.
        palette: colours (n, 3).
        texture: noise (h, w, 3), at least as large as the window.
        rng: draws colour, slope and texture.
    """
    height, width = (side.stop - side.start for side in window)
    colour = palette[rng.integers(len(palette))] * np.float32(math.exp(rng.normal(0, 0.25)))
    colour = colour + rng.normal(0, 0.03, 3).astype(np.float32)
    slope = (rng.normal(0, 0.35, 2) / max(height, width, size / 4)).astype(np.float32)
    y = (np.arange(height, dtype=np.float32) - height / 2)[:, None, None] * slope[0]
    x = (np.arange(width, dtype=np.float32) - width / 2)[None, :, None] * slope[1]
    patch = cut(texture, (height, width), rng) * np.float32(0.02 + rng.exponential(0.09))
    patch += 1 + x + y
    patch *= colour
    return patch


def cut(texture: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A random window of a texture, of `shape` (h, w).

    Args:
        texture: (height, width, ...).
        shape: (h, w), not larger.
        rng: draws where.
    """
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(texture.shape, shape, strict=False))
    return texture[top : top + shape[0], left : left + shape[1]]


def colored_noise(size: int, rng: np.random.Generator) -> Array:
    """Noise of unit standard deviation whose amplitude falls as 1/f, (size, size, 3), with correlated channels."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    # No mean, and no more of the longest waves, which would only tint whole shapes.
    falloff = (1 / np.maximum(frequency, 4 / size)).astype(np.float32)
    falloff[0, 0] = 0
    grey, red, blue = (np.fft.irfft2(falloff * spectrum(falloff.shape, rng), (size, size)) for _ in range(3))
    noise = np.stack([grey + 0.2 * red, grey, grey + 0.2 * blue], axis=-1).astype(np.float32)
    return noise / noise.std()


def spectrum(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.complex64]:
    """Complex white noise of the given shape."""
    parts = rng.standard_normal((2, *shape), dtype=np.float32)
    return parts[0] + np.complex64(1j) * parts[1]


def expose(canvas: Array, texture: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The canvas as a camera records it: with uneven light, a colour cast, contrast and sensor noise.

    Args:
        canvas: linear light (size, size, 3).
        texture: as of `draw_shape`.
        rng: draws light, cast, contrast and noise.
    """
    size = len(canvas)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = rng.normal(0, 0.3, 2).astype(np.float32)
    light = 1 + slope[0] * ramp[:, None, None] + slope[1] * ramp[None, :, None]
    cast = np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    lit = np.maximum(canvas * light * cast, 0)
    middle = lit.mean()
    contrast = np.float32(math.exp(rng.normal(0.05, 0.15)))
    lit = (lit - middle) * contrast + np.float32(np.clip(middle * math.exp(rng.normal(0, 0.15)), 0.25, 0.65))
    lit += np.float32(rng.uniform(0.002, 0.012)) * rng.standard_normal(lit.shape, dtype=np.float32)
    return np.rint(np.clip(lit, 0, 1) * 255).astype(np.uint8)
