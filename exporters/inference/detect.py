#!/usr/bin/env python3
"""Detect objects with an ONNX file of a detector: python detect.py PATH... [--model FILE] [--masks FOLDER].

PATH is an image, or a folder, which is searched through. Each line printed is a file, a class, its score and the
corners of its box in pixels of the file (left, top, right, bottom), separated by tabs; where the detector finds
keypoints, x and y of each follow. --masks FOLDER writes the masks of one that finds these as PNG images: every pixel
has the number of the line, among those of its file, that it belongs to, and 0 where it belongs to none. infer.py has
to lie beside the file. Needs onnxruntime, numpy and Pillow.

detector.onnx (Faster, Mask and Keypoint R-CNN) gives detections. Of a one-stage detector model.onnx computes scores and
box coordinates for every anchor; what is chosen of them is done here, as torchvision's detectors do it:

1. scores: sigmoid for RetinaNet, its root of the product with centerness for FCOS, softmax for SSD;
2. the best of each level, or of each class for SSD, above a threshold;
3. boxes: the anchor (anchors.npy, corners in pixels of the input), moved and stretched by the coordinates;
4. of boxes of one class that overlap, the best, and of all these the best.

Thresholds and sizes are in the metadata property `detector` of the file, as JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_STRETCH = np.log(1000 / 16)  # of a box beside its anchor, as in torchvision
MASKED = 0.5  # a mask's value from which a pixel belongs to an object


def load_infer(folder: Path) -> Any:
    """infer.py beside this file, which reads images as the file takes them."""
    spec = importlib.util.spec_from_file_location("infer", folder / "infer.py")
    if spec is None or spec.loader is None:
        raise ValueError(f"there is no infer.py in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["infer"] = module
    spec.loader.exec_module(module)
    return module


class Detector:
    """What is chosen of a file's raw outputs.

    Args:
        about: the metadata property `detector`, read.
        anchors: corners (A, 4) in pixels of the input.
    """

    def __init__(self, about: dict[str, Any], anchors: Any) -> None:
        self.about, self.anchors = about, anchors.astype(np.float64)
        self.ends = np.cumsum(about["anchors_per_level"])

    def choose(self, outputs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Corners (n, 4), scores (n,) and classes (n,), best first, of one image's outputs by name."""
        picked = list(self._of_classes(outputs) if self.about["kind"] == "ssd" else self._of_levels(outputs))
        boxes, scores, labels = (np.concatenate(parts) for parts in zip(*picked, strict=True))
        kept = suppress(boxes, scores, labels, self.about["nms_thresh"])[: self.about["detections_per_img"]]
        return boxes[kept], scores[kept], labels[kept]

    def _of_levels(self, outputs: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
        scores = sigmoid(outputs["cls_logits"].astype(np.float64))
        if self.about["kind"] == "fcos":
            scores = np.sqrt(scores * sigmoid(outputs["bbox_ctrness"].astype(np.float64)))
        for start, end in zip([0, *self.ends[:-1]], self.ends, strict=True):
            flat = scores[start:end].ravel()
            best = self._best(flat)
            anchors = start + best // scores.shape[1]
            yield self._decode(outputs["bbox_regression"][anchors], anchors), flat[best], best % scores.shape[1]

    def _of_classes(self, outputs: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
        logits = outputs["cls_logits"].astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
        for label in range(1, scores.shape[1]):  # 0 is the background
            best = self._best(scores[:, label])
            boxes = self._decode(outputs["bbox_regression"][best], best)
            yield boxes, scores[best, label], np.full(len(best), label)

    def _best(self, scores: Any) -> Any:
        above = np.flatnonzero(scores > self.about["score_thresh"])
        return above[np.argsort(-scores[above], kind="stable")[: self.about["topk_candidates"]]]

    def _decode(self, coordinates: Any, index: Any) -> Any:
        """Corners (n, 4), within the image, by coordinates (n, 4) of the anchors at `index`."""
        anchors, moves = self.anchors[index], coordinates.astype(np.float64)
        sizes = anchors[:, 2:] - anchors[:, :2]
        middles = anchors[:, :2] + 0.5 * sizes
        if self.about["kind"] == "fcos":  # distances of the sides from the middle, in sizes of the anchor
            corners = np.concatenate([middles - moves[:, :2] * sizes, middles + moves[:, 2:] * sizes], axis=1)
        else:
            moves = moves / np.array(self.about["box_weights"])
            middles = middles + moves[:, :2] * sizes
            sizes = sizes * np.exp(np.minimum(moves[:, 2:], MAX_STRETCH))
            corners = np.concatenate([middles - 0.5 * sizes, middles + 0.5 * sizes], axis=1)
        height, width = self.about["input_size"]
        return corners.clip(0, [width, height, width, height])


def sigmoid(values: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    return np.where(values >= 0, 1, np.exp(np.minimum(values, 0))) / (1 + np.exp(-np.abs(values)))


def suppress(boxes: Any, scores: Any, labels: Any, threshold: float) -> Any:
    """Indices, best first, of boxes that no better one of their class overlaps by more than the IoU `threshold`."""
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        low, high = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = (high - low).clip(0).prod(axis=1)
        overlap = shared / (areas[first] + areas[rest] - shared).clip(1e-12)
        order = rest[(overlap <= threshold) | (labels[rest] != labels[first])]
    return np.array(kept, dtype=np.int64)


def find(model: Any, path: Path) -> Any:
    """What gives detections, best first, of an input (1, 3, height, width): arrays by name, a row for each.

    Args:
        model: the file, opened by infer.py.
        path: of the file.
    """
    about, names = json.loads(model.about.get("detector", "{}")), [each.name for each in model.session.get_outputs()]
    if "kind" not in about:
        raise ValueError(f"{path} does not say how boxes are chosen by its outputs: give detector.onnx, if it is there")
    if about["kind"] == "whole":
        return lambda inputs: dict(zip(names, model.session.run(names, {model.input.name: inputs}), strict=True))
    detector = Detector(about, np.load(path.with_name("anchors.npy")))

    def choose(inputs: Any) -> dict[str, Any]:
        batch = np.repeat(inputs, model.batch or 1, axis=0)
        found = model.session.run(names, {model.input.name: batch})
        chosen = detector.choose({name: value[0] for name, value in zip(names, found, strict=True)})
        return dict(zip(("boxes", "scores", "labels"), chosen, strict=True))

    return choose


class Place:
    """Where the input lies in a picture of this size."""

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        resized, corner = model.resized_size(size)
        self.size, self.scale = size, np.array([size[0] / resized[0], size[1] / resized[1]])
        self.corner = np.array(corner)

    def points(self, points: Any) -> Any:
        """Points (..., 2) of the input, x and y, in pixels of the picture."""
        return (points + self.corner) * self.scale

    def paint(self, picture: Any, mask: Any, box: Any, number: int) -> None:
        """Set the pixels of a picture (height, width) inside a box whose mask (rows, columns) is above a half."""
        from PIL import Image

        left, top = np.clip(np.floor(box[:2]), 0, None).astype(int)
        right, bottom = np.minimum(np.ceil(box[2:]), self.size).astype(int)
        if right > left and bottom > top:
            fitted = Image.fromarray(mask.astype(np.float32)).resize(
                (right - left, bottom - top), Image.Resampling.BILINEAR
            )
            inside = picture[top:bottom, left:right]
            inside[(np.asarray(fitted) > MASKED) & (inside == 0)] = number


def describe(model: Any, place: Place, found: dict[str, Any], index: int) -> str:
    """Class, score, corners and keypoints of a detection, separated by tabs."""
    label = int(found["labels"][index])
    points = [found["boxes"][index].reshape(2, 2)]
    points += [found["keypoints"][index][:, :2]] if "keypoints" in found else []
    numbers = [f"{value:.1f}" for value in place.points(np.concatenate(points)).ravel()]
    name = model.names[label] if label < len(model.names) else str(label)
    return "\t".join([name, f"{found['scores'][index]:.4f}", *numbers])


def write_mask(target: Path, picture: Any) -> None:
    """Write numbers (height, width) as a PNG image.

    Raises:
        ValueError: there is such a file already.
    """
    from PIL import Image

    if target.exists():
        raise ValueError(f"{target} is there already: give another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(target)


def detect(path: Path, paths: list[Path], threshold: float, masks: Path | None) -> int:
    """Print the detections in the images; returns how many files could not be read.

    Args:
        path: the ONNX file.
        paths: images and folders.
        threshold: smallest score.
        masks: folder for masks; None for none.
    """
    infer = load_infer(path.resolve().parent)
    from PIL import ImageOps

    model = infer.Model(path)
    choose = find(model, path)
    failed, files = 0, list(infer.list_files(paths))
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths))}")
    for file in files:
        try:
            inputs = model.read(file)[None]
            with infer.open_image(file) as image:
                place = Place(model, ImageOps.exif_transpose(image).size)
        except Exception as error:
            failed += 1
            print(f"{file}: not an image that can be read ({error})", file=sys.stderr)
            continue
        found = choose(inputs)
        if masks is not None and "masks" not in found:
            raise ValueError(f"{path} gives no masks")
        picture = np.zeros(place.size[::-1], np.uint8)
        shown = np.flatnonzero(found["scores"] >= threshold).tolist()
        for number, index in enumerate(shown, 1):
            print(f"{file}\t{describe(model, place, found, index)}")
            if masks is not None:
                box = place.points(found["boxes"][index].reshape(2, 2)).ravel()
                place.paint(picture, found["masks"][index][0], box, number)
        if masks is not None:
            write_mask(masks / f"{file.stem}.png", picture)
    return failed


def main() -> None:
    """The command line."""
    folder = Path(__file__).parent
    usual = next((file for file in (folder / "detector.onnx", folder / "model.onnx") if file.exists()), None)
    parser = argparse.ArgumentParser(description="Detect objects with an ONNX file of a detector.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image, or a folder of images")
    parser.add_argument("--model", type=Path, default=usual or folder / "model.onnx")
    parser.add_argument("--threshold", type=float, default=0.5, help="smallest score that is printed")
    parser.add_argument("--masks", type=Path, help="folder for the masks, where the file gives some")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files as they are, UTF-8 or not
    try:
        failed = detect(options.model, options.paths, options.threshold, options.masks)
    except Exception as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
