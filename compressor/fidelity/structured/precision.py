"""COCO's mean average precision of detections in images that count by weights, so that its error can be told.

pycocotools (Lin et al. 2014) matches detections with boxes, which is done once for each image; precision and recall are
then sums over images. With weights they are those of a bootstrap sample, or of all images but one.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NEEDS = "mean average precision needs pycocotools: pip install pycocotools"
RECALLS = np.linspace(0, 1, 101)  # at which precision is averaged
AT_HALF = 0  # among the IoU thresholds 0.5, 0.55 to 0.95

Detections = dict[str, Tensor]
Array = NDArray[np.float64]


def can_be_measured() -> bool:
    """Whether pycocotools is there."""
    return find_spec("pycocotools") is not None


@dataclass(frozen=True)
class _Class:
    """Detections of a class in all images, best first, and its boxes.

    Attributes:
        image: (D,), of each detection.
        right: (T, D), whether it finds a box at each IoU threshold.
        wrong: (T, D), whether it finds none; neither where it finds one that does not count.
        boxes: (N,), boxes of each image that count.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    boxes: NDArray[np.int64]

    def precisions(self, weights: Array) -> Array:
        """Average precision (T,) at each threshold, with weights (N,) of the images; no numbers without boxes."""
        boxes, thresholds = float(weights @ self.boxes), len(self.right)
        if boxes <= 0:
            return np.full(thresholds, np.nan)
        each = weights[self.image]
        right, wrong = (np.cumsum(found * each, axis=1) for found in (self.right, self.wrong))
        precision = right / np.maximum(right + wrong, np.spacing(1))
        # At every recall the best precision at that recall or beyond it, and none where it is not reached.
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((thresholds, 1))], axis=1)
        places = [np.searchsorted(row, RECALLS) for row in right / boxes]
        return np.array([row[place].mean() for row, place in zip(best, places, strict=True)])


class MatchedDetections:
    """Detections in images whose boxes are known.

    Args:
        boxes: of each image rows as of `ImageSet.boxes`.
        found: detections in the same images.

    Raises:
        ImportError: pycocotools is missing.
    """

    def __init__(self, boxes: Sequence[Tensor], found: Sequence[Detections]) -> None:
        self.num_images = len(boxes)
        self._classes = list(_match(boxes, found))

    @cached_property
    def _whole(self) -> Array:
        """Precisions (classes, T) with all images."""
        every = np.ones(self.num_images)
        return np.array([one.precisions(every) for one in self._classes])

    @property
    def average_precision(self) -> float:
        """Over classes and IoU thresholds of 0.5 to 0.95."""
        return _mean(self._whole)

    @property
    def average_precision_50(self) -> float:
        """Over classes, at an IoU of 0.5."""
        return _mean(self._whole[:, AT_HALF])

    def with_weights(self, weights: Array) -> float:
        """Average precision where images count by weights (N,)."""
        return _mean(np.array([one.precisions(weights) for one in self._classes]))

    def influences(self) -> Array:
        """By how much every image (N,) moves average precision: a jackknife's, whose mean is zero.

        Their standard deviation, divided by the root of N, is the standard error.
        """
        without = np.empty(self.num_images)
        shown = [np.isin(np.arange(self.num_images), one.image) | (one.boxes > 0) for one in self._classes]
        for image in range(self.num_images):
            weights, precisions = np.ones(self.num_images), self._whole.copy()
            weights[image] = 0
            for number, one in enumerate(self._classes):
                if shown[number][image]:
                    precisions[number] = one.precisions(weights)
            without[image] = _mean(precisions)
        return (self.num_images - 1) * (without.mean() - without)


def changes(before: MatchedDetections, after: MatchedDetections) -> Array:
    """A number for each image (N,), whose mean is the change of average precision and whose scatter gives its error."""
    change = after.average_precision - before.average_precision
    return np.asarray(change + after.influences() - before.influences())


def bootstrap_changes(
    before: MatchedDetections, after: MatchedDetections, rng: np.random.Generator, samples: int
) -> Array:
    """Changes of average precision (samples,) on images drawn with replacement, the same for both (Efron 1979)."""
    count = before.num_images
    draws = rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(float)
    return np.array([after.with_weights(each) - before.with_weights(each) for each in draws])


def _mean(precisions: Array) -> float:
    """Over all that is known; 0 where nothing is, in a sample without a box."""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else 0.0


def _match(boxes: Sequence[Tensor], found: Sequence[Detections]) -> Iterator[_Class]:
    """Yields what pycocotools matches, class by class of those that the boxes have."""
    evaluation = _evaluate(boxes, found)
    count = len(evaluation.params.imgIds)
    for start in range(0, len(evaluation.evalImgs), count):
        yield _gather(evaluation.evalImgs[start : start + count], len(evaluation.params.iouThrs))


def _gather(results: Sequence[dict[str, Any] | None], thresholds: int) -> _Class:
    """One class's results of all images, None where neither a box nor a detection is there."""
    scores, images = [np.empty(0)], [np.empty(0, np.int64)]
    matched, ignored = [np.empty((thresholds, 0), bool)], [np.empty((thresholds, 0), bool)]
    boxes = np.zeros(len(results), np.int64)
    for number, each in enumerate(results):
        if each is not None:
            scores.append(np.array(each["dtScores"], float))
            images.append(np.full(len(each["dtScores"]), number))
            matched.append(each["dtMatches"] > 0)
            ignored.append(each["dtIgnore"].astype(bool))
            boxes[number] = int((np.array(each["gtIgnore"]) == 0).sum())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    is_matched, counts = (np.concatenate(parts, axis=1)[:, order] for parts in (matched, [~each for each in ignored]))
    return _Class(np.concatenate(images)[order], is_matched & counts, ~is_matched & counts, boxes)


def _evaluate(boxes: Sequence[Tensor], found: Sequence[Detections]) -> Any:
    """pycocotools' evaluation, matched but not summed up."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = [[image, *box] for image, each in enumerate(boxes) for box in each.tolist()]
    guesses = np.concatenate([_rows(image, each) for image, each in enumerate(found)])
    with redirect_stdout(io.StringIO()):  # it prints what it does
        truth = _as_coco(COCO(), rows, len(boxes))
        detections = truth.loadRes(guesses) if len(guesses) else _as_coco(COCO(), [], len(boxes))
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # boxes of all sizes, not small ones by themselves
        evaluation.evaluate()
    return evaluation


def _as_coco(empty: Any, rows: Sequence[Sequence[float]], num_images: int) -> Any:
    empty.dataset = {
        "images": [{"id": image} for image in range(num_images)],
        "categories": [{"id": label} for label in sorted({int(row[5]) for row in rows})],
        "annotations": [_annotation(number, row) for number, row in enumerate(rows, 1)],
    }
    empty.createIndex()
    return empty


def _annotation(number: int, row: Sequence[float]) -> dict[str, object]:
    """A box as COCO has it, of a row of its image and what `ImageSet.boxes` holds."""
    image, left, top, right, bottom, label, ignored = row
    width, height = right - left, bottom - top
    return {
        "id": number,
        "image_id": int(image),
        "bbox": [left, top, width, height],
        "area": width * height,
        "category_id": int(label),
        "iscrowd": int(ignored),
    }


def _rows(image: int, found: Detections) -> Array:
    """Detections as pycocotools takes them: image, x, y, width, height, score, label."""
    boxes = found["boxes"].double().numpy()
    columns = [np.full(len(boxes), image), *boxes[:, :2].T, *(boxes[:, 2:] - boxes[:, :2]).T]
    return np.stack([*columns, found["scores"].double().numpy(), found["labels"].double().numpy()], axis=1)
