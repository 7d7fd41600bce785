#!/usr/bin/env python3
"""Classify images with an ONNX (or ORT) file: python infer.py PATH... [--model model.onnx] [--top 1].

PATH is an image, or a folder, which is searched through; where the file takes clips, a folder of frames, or of such
folders. Each line printed is a file, a class and its probability, separated by tabs. Where the file gives a class to
every pixel, it is the class's share of the pixels, and --masks FOLDER writes the numbers of the classes as PNG images
of the input's size. Where it gives the flow from each frame to the next, a line is the first frame and the mean flow,
in pixels of the input to the right and down, and --flow FOLDER writes .flo files as of Middlebury's benchmark. Needs
onnxruntime, numpy and Pillow. Size, resizing, mean, standard deviation and class names are read from the file's
metadata.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

ort.disable_telemetry_events()

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MODES = {"gray": "L", "RGB": "RGB", "RGBA": "RGBA"}
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp", ".avif"}
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA")
FREE_BATCH = 8
REDUCING_GAP = 4.0
MAX_ASPECT = 4.0
INTEGER_WHITES = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16))
FLOAT_WHITES = (1.0, 255.0, 1000.0, 4095.0, 10000.0, 65535.0)


class Model:
    """An ONNX file and what its metadata say of its input."""

    def __init__(self, path: Path, output: str | None = None) -> None:
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.about = self.session.get_modelmeta().custom_metadata_map
        missing = [key for key in ("input_height", "input_width", "mean", "std") if key not in self.about]
        if missing:
            raise ValueError(f"{path} does not say how to feed it: no {', '.join(missing)} in its metadata")
        self.input = self.session.get_inputs()[0]
        self.height, self.width = int(self.about["input_height"]), int(self.about["input_width"])
        self.mode = MODES[self.about["color_order"]]
        self.frames = int(self.about.get("input_frames", 0))
        self.adjacent = self.about.get("frame_choice") == "adjacent"
        self.filter = FILTERS[self.about["interpolation"]]
        self.names = json.loads(self.about.get("class_names", "[]"))
        self.batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else None
        self.asked = output

    @cached_property
    def output(self) -> str:
        """The output that is asked for; else "out", as segmentation networks have it, or the only one, or only matrix.

        Raises:
            ValueError: there is none such.
        """
        shapes = {output.name: output.shape for output in self.session.get_outputs()}
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        for names in [[self.asked]] if self.asked else [["out"], list(shapes), matrices]:
            if len(names) == 1 and names[0] in shapes:
                return names[0]
        raise ValueError(
            f"say which output has the scores by --output: {', '.join(shapes)} (detect.py is for detectors)"
        )

    def read(self, file: Path) -> Any:
        """The image or clip, float32 of shape (channels, height, width) or (channels, frames, ...), as it is taken."""
        if not self.frames:
            return self.read_image(file)
        chosen = self.choose_frames(file)
        read = {one: self.read_image(one) for one in set(chosen)}
        return np.stack([read[one] for one in chosen], axis=1)

    def choose_frames(self, file: Path) -> list[Path]:
        """The frames of a clip, spread over it; or one, and those that follow it."""
        if self.adjacent:
            found = list_frames(file.parent)
            return found[found.index(file) :][: self.frames]
        found = list_frames(file)
        return [found[(2 * part + 1) * len(found) // (2 * self.frames)] for part in range(self.frames)]

    def read_image(self, file: Path) -> Any:
        """The image as float32 of shape (channels, height, width), as the file takes it."""
        with open_image(file) as image:
            resized, _ = self.resized_size(image.size)
            if image.format == "JPEG":  # decodes large pictures at a half, a quarter or an eighth
                image.draft(None, (round(REDUCING_GAP * resized[0]), round(REDUCING_GAP * resized[1])))
            upright = ImageOps.exif_transpose(image)
            pixels = self.deep_pixels(upright) if upright.mode.startswith(("I", "F")) else self.pixels(upright)
        values = np.asarray(pixels, np.float32).reshape(self.height, self.width, -1).transpose(2, 0, 1)
        values = values / np.float32(255)
        if self.about["normalization"] != "in-graph":
            mean, std = (np.array(json.loads(self.about[key]), np.float32)[:, None, None] for key in ("mean", "std"))
            values = (values - mean) / std
        return values

    def pixels(self, image: Image.Image) -> Image.Image:
        """Eight bits, in the file's colours."""
        if "transparency" in image.info and image.mode != "RGBA":
            image = image.convert("RGBA")
        if image.mode != "L":
            image = image.convert(self.mode)
        return self.fit(image).convert(self.mode)

    def deep_pixels(self, image: Image.Image) -> Image.Image:
        """More than 8 bits: white is the next usual value above the largest one."""
        values = np.asarray(image)
        peak = float(values.max())
        whites = FLOAT_WHITES if image.mode.startswith("F") else INTEGER_WHITES
        white = next((white for white in whites if peak <= white), peak)
        values = np.asarray(self.fit(Image.fromarray(values.astype(np.float32))))
        grey = np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(grey).convert(self.mode)

    def fit(self, image: Image.Image) -> Image.Image:
        """The image with its short side resized and its middle cut out; of a strip only the middle is resized."""
        resized, (left, top) = self.resized_size(image.size)
        box = left, top, left + self.width, top + self.height
        if max(resized) <= MAX_ASPECT * min(resized):
            return image.resize(resized, self.filter, reducing_gap=REDUCING_GAP).crop(box)
        across, down = image.width / resized[0], image.height / resized[1]
        right, bottom = min(box[2] * across, image.width), min(box[3] * down, image.height)
        return image.resize((self.width, self.height), self.filter, (left * across, top * down, right, bottom))

    def resized_size(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and height after resizing, and the left upper corner of the cut."""
        width, height = size
        if self.width == self.height:
            short = max(int(self.about["resize_size"]), self.height)
            long = int(short * max(width, height) / min(width, height))
            resized = (short, long) if width <= height else (long, short)
        else:
            scale = max(self.width / width, self.height / height)
            resized = max(self.width, round(scale * width)), max(self.height, round(scale * height))
        return resized, (round((resized[0] - self.width) / 2), round((resized[1] - self.height) / 2))

    def logits(self, inputs: list[Any]) -> Any:
        """Scores (n, classes), or (n, classes, height, width) of pixels, for inputs (n, channels, height, width).

        The inputs are at most as many as the file's fixed batch.
        """
        batch = np.stack(inputs)
        if self.batch:  # filled up with copies
            batch = batch[np.arange(self.batch) % len(batch)]
        outputs = np.asarray(self.session.run([self.output], {self.input.name: batch})[0])
        if outputs.ndim not in (2, 4):
            raise ValueError(
                f"the output {self.output!r} has shape {list(outputs.shape)}: these are no scores of classes"
            )
        return outputs.astype(np.float64)[: len(inputs)]

    def probabilities(self, logits: Any) -> Any:
        """Softmax; of a single output the probabilities of both its classes, by the logistic function."""
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    @property
    def gives_flow(self) -> bool:
        """Whether outputs are the flow between frames."""
        return self.output == "flow"

    def classes(self, scores: Any) -> Any:
        """The class (n, height, width) of every pixel; a single map decides by its sign."""
        return scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(np.int64)

    def shares(self, classes: Any, count: int) -> Any:
        """The share of the pixels (n, count) that each class has."""
        return np.stack([np.bincount(each.ravel(), minlength=max(count, 2)) / each.size for each in classes])

    def name(self, index: int, count: int) -> str:
        """The class of this index, by its name where the file has as many names as there are outputs, `count`."""
        return str(self.names[index]) if len(self.names) == count else str(index)


def open_image(file: Path) -> Image.Image:
    """An image, not decoded yet, of one of the formats that Pillow decodes by itself: for PostScript it runs a program.

    Raises:
        ValueError: the file is a pipe or a device, whose end may never come.
    """
    if not file.is_file():
        raise ValueError("no regular file")
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def is_image(file: Path) -> bool:
    """Whether a file is an image by its suffix."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def natural(name: str) -> list[tuple[int, str]]:
    """A name in parts that sort numbers by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def list_frames(folder: Path) -> list[Path]:
    """The images of a clip in the order of their names, numbers by their value."""
    return sorted((one for one in folder.iterdir() if is_image(one)), key=lambda one: natural(one.name))


def list_starts(paths: Iterable[Path], count: int) -> Iterator[Path]:
    """Yields the frames that `count` - 1 others follow, in the folders given and below them."""
    for clip in list_clips(paths):
        yield from list_frames(clip)[: 1 - count]


def list_clips(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields the folders with frames among those given and below them.

    Raises:
        ValueError: there is no such folder.
    """
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"there is no folder {path}: the network takes clips, which are folders of frames")
        inside = [path, *sorted(one for one in path.rglob("*") if one.is_dir())]
        yield from (one for one in inside if any(is_image(file) for file in one.iterdir()))


def list_inputs(model: Model, paths: Iterable[Path]) -> Iterator[Path]:
    """What the model takes: images, folders of frames, or frames that others follow."""
    if model.adjacent:
        return list_starts(paths, model.frames)
    return list_clips(paths) if model.frames else list_files(paths)


def list_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields the files given, and of folders the images in them at any depth.

    Raises:
        ValueError: there is no such file.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if is_image(file))
        elif path.exists():
            yield path
        else:
            raise ValueError(f"there is no {path}")


def write_masks(folder: Path, files: Iterable[Path], classes: Any) -> None:
    """Write the classes (n, height, width) of each file's pixels as NAME.png.

    Raises:
        ValueError: PNG cannot hold so high a number, or the folder has a mask of this name already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, numbers in zip(files, classes, strict=True):
        target = folder / f"{file.stem}.png"
        if target.exists():
            raise ValueError(f"{target} is there already: give another folder")
        if numbers.max() > 255:
            raise ValueError(f"class {numbers.max()} cannot be written: masks hold numbers up to 255")
        Image.fromarray(numbers.astype(np.uint8)).save(target)


def write_flow(folder: Path, files: Iterable[Path], flows: Any) -> None:
    """Write each file's flow (n, 2, height, width) as CLIP/NAME.flo, in the format of Middlebury's benchmark.

    Raises:
        ValueError: the folder has one of this name already.
    """
    for file, flow in zip(files, flows.astype("<f4"), strict=True):
        target = folder / file.parent.name / f"{file.stem}.flo"
        if target.exists():
            raise ValueError(f"{target} is there already: give another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        size = np.array(flow.shape[:0:-1], "<i4")
        target.write_bytes(b"PIEH" + size.tobytes() + flow.transpose(1, 2, 0).tobytes())


def show_maps(model: Model, files: list[Path], maps: Any, folder: Path | None) -> Any:
    """What is printed of maps (n, channels, height, width): the share of each class; of flows nothing is left to print.

    Args:
        model: that gave them.
        files: of the inputs.
        maps: scores of classes, or flows, whose means are printed here.
        folder: where the maps themselves are written; None for none.
    """
    if model.gives_flow:
        for file, (right, down) in zip(files, maps.mean(axis=(2, 3)), strict=True):
            print(f"{file}\t{right:.2f}\t{down:.2f}")
        if folder is not None:
            write_flow(folder, files, maps)
        return []
    classes = model.classes(maps)
    if folder is not None:
        write_masks(folder, files, classes)
    return model.shares(classes, maps.shape[1])


def classify(model: Model, paths: Iterable[Path], top: int, folder: Path | None = None) -> int:
    """Print a line for each of the best classes of each file; returns how many files could not be read.

    Args:
        model: classifies the images.
        paths: of the images.
        top: how many classes of each.
        folder: for the pixels' classes, or the flows; None for none.
    """
    failed = 0
    pending: list[tuple[Path, Any]] = []
    files = iter(paths)
    while True:
        file = next(files, None)
        if file is not None:
            try:
                pending.append((file, model.read(file)))
            except Exception as error:
                failed += 1
                print(f"{file}: not an image that can be read ({error})", file=sys.stderr)
        if pending and (file is None or len(pending) == (model.batch or FREE_BATCH)):
            rows = model.logits([values for _, values in pending])
            if rows.ndim == 4:
                rows = show_maps(model, [path for path, _ in pending], rows, folder)
            else:
                rows = model.probabilities(rows)
            for number, row in enumerate(rows):
                for index in np.argsort(-row, kind="stable")[:top]:
                    print(f"{pending[number][0]}\t{model.name(index, len(row))}\t{row[index]:.4f}")
            pending = []
        if file is None:
            return failed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Classify images with an ONNX (or ORT) file.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image, or a folder of images")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model.onnx"))
    parser.add_argument("--top", type=int, default=1, help="classes to print for each image")
    parser.add_argument("--output", help="the output that has the scores, where the file gives several")
    parser.add_argument("--masks", type=Path, help="folder for the classes of pixels, where the file gives them")
    parser.add_argument("--flow", type=Path, help="folder for flows, where the file gives them")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files as they are, UTF-8 or not
    try:
        model = Model(options.model, options.output)
        files = list(list_inputs(model, options.paths))
        if not files:
            raise ValueError(f"no images in {', '.join(map(str, options.paths))}")
        folder = options.flow if model.gives_flow else options.masks
        failed = classify(model, files, max(options.top, 1), folder)
    except BrokenPipeError:  # the reader of the output has left
        os._exit(1)  # without flushing what nobody reads
    except Exception as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
