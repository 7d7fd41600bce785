"""Scenes of shapes on backgrounds, with masks and boxes, and clips of digits that move: small data, none downloaded.

Shapes are cut from photographs and pasted on others, or where no folder of photographs is given from scikit-learn's
handwritten digits, enlarged and tinted. A clip's digit is scikit-learn's, too.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE, MAX_SHAPES = 64, 3
SHAPES = ("ellipse", "rectangle", "triangle")
CLIP_SIDE, FRAMES, DIGIT_SIDE = 32, 8, 18
Pixels = NDArray[np.uint8]


def textures(photographs: Path | None, count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Pictures in colours to cut from and to paste on."""
    if photographs is not None:
        files = sorted(photographs.rglob("*.jpg")) + sorted(photographs.rglob("*.png"))
        chosen = rng.choice(len(files), min(count, len(files)), replace=False)
        return [Image.open(files[index]).convert("RGB") for index in chosen]
    from sklearn.datasets import load_digits

    digits = load_digits().images / 16
    tints = rng.uniform(0, 255, (count, 2, 3))
    chosen = digits[rng.integers(0, len(digits), count)][..., None]
    mixed = tints[:, :1, None] * chosen + tints[:, 1:, None] * (1 - chosen)
    return [Image.fromarray(picture.astype(np.uint8)) for picture in mixed]


def draw_scene(
    pictures: Sequence[Image.Image], rng: np.random.Generator
) -> tuple[Image.Image, Pixels, list[list[int]]]:
    """A scene: the image, the class of every pixel, and rows of class, left, top, width and height of what is seen."""
    background, *others = (pictures[index] for index in rng.integers(0, len(pictures), 1 + MAX_SHAPES))
    scene = background.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    numbers = np.zeros((SIDE, SIDE), np.int64)
    for number, other in enumerate(others[: rng.integers(1, MAX_SHAPES + 1)], 1):
        width, height = rng.integers(16, 33, 2)
        left, top = rng.integers(0, SIDE - width + 1), rng.integers(0, SIDE - height + 1)
        kind = int(rng.integers(1, len(SHAPES) + 1))
        outline = Image.new("L", (SIDE, SIDE))
        corners = int(left), int(top), int(left + width - 1), int(top + height - 1)
        _draw(ImageDraw.Draw(outline), SHAPES[kind - 1], corners)
        texture = other.resize((SIDE, SIDE), Image.Resampling.BICUBIC).rotate(90 * int(rng.integers(4)))
        scene.paste(texture, mask=outline)
        numbers[np.asarray(outline) > 0] = 10 * number + kind
    rows = [_box(numbers, int(number)) for number in np.unique(numbers[numbers > 0])]
    return scene, (numbers % 10).astype(np.uint8), rows


def _draw(draw: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    if shape == "ellipse":
        draw.ellipse(box, fill=255)
    elif shape == "rectangle":
        draw.rectangle(box, fill=255)
    else:
        draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=255)


def _box(numbers: NDArray[np.int64], number: int) -> list[int]:
    rows, columns = np.nonzero(numbers == number)
    left, top = int(columns.min()), int(rows.min())
    return [number % 10, left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]


def write_scenes(folder: Path, count: int, photographs: Path | None, seed: int) -> None:
    """Scenes as images/ and masks/ of equal names, with boxes in annotations/instances.json as COCO has them."""
    rng = np.random.default_rng(seed)
    pictures = textures(photographs, 4 * count, rng)
    for name in ("images", "masks", "annotations"):
        (folder / name).mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(count):
        scene, mask, rows = draw_scene(pictures, rng)
        name = f"{number:04}.png"
        scene.save(folder / "images" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        annotations += [
            {"id": len(annotations) + i, "image_id": number, "category_id": row[0], "bbox": row[1:]}
            for i, row in enumerate(rows)
        ]
    categories = [{"id": label, "name": name} for label, name in enumerate(SHAPES, 1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations" / "instances.json").write_text(json.dumps(content), encoding="utf-8")


def write_clips(folder: Path, count: int, seed: int) -> None:
    """Clips as folders of frames within one of each digit: it moves over noise along a straight line."""
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(seed)
    for number in range(count):
        index = int(rng.integers(len(digits.images)))
        clip = folder / str(digits.target[index]) / f"clip{number:04}"
        clip.mkdir(parents=True)
        digit = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).resize((DIGIT_SIDE, DIGIT_SIDE))
        first, last = rng.uniform(0, CLIP_SIDE - DIGIT_SIDE, (2, 2))
        path = np.linspace(first, last, FRAMES).astype(int).tolist()
        for frame, (left, top) in enumerate(path):
            picture = Image.fromarray(rng.integers(0, 120, (CLIP_SIDE, CLIP_SIDE), dtype=np.uint8))
            picture.paste(digit, (left, top))
            picture.convert("RGB").save(clip / f"{frame}.png")
