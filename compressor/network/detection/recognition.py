"""Which detector a checkpoint is: by names that only its family has, then by all names and shapes.

Class scores of anchors lie in one axis with the anchors, so that the number of classes is a quotient of shapes.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from compressor.network.architectures import CLASSES, Fingerprint, list_task, shapes_of
from compressor.network.checkpoints.matching import Match, lies_beside, tensor_difference
from compressor.network.detection.building import build_detector

# A part of tensors' names that no network of another family has, and how names of its architectures begin; the first
# that is there decides.
FAMILIES = {
    "roi_heads.mask_predictor.": "maskrcnn",
    "roi_heads.keypoint_predictor.": "keypointrcnn",
    "roi_heads.box_predictor.": "fasterrcnn",
    "head.regression_head.bbox_ctrness.": "fcos",
    "head.regression_head.bbox_reg.": "retinanet",
    "head.classification_head.module_list.": "ssd",
}
# Networks of the same tensors, which differ in the size of images and in thresholds; the first is taken.
TWINS = {"fasterrcnn_mobilenet_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn"}
SCORES, BOXES = "head.classification_head.", "head.regression_head."


def detector_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yields the prefixes under which a detector lies, without the last dot, each with its family."""
    found: dict[str, str] = {}
    for part, family in FAMILIES.items():
        for name in tensors:
            before, part_of_it, _ = f".{name}".partition(f".{part}")
            if part_of_it:
                found.setdefault(before.removeprefix("."), family)
    yield from found.items()


def match_detector(shapes: Fingerprint, family: str, only: str | None = None) -> list[Match] | str:
    """The architectures of a family that the tensors are, or in words how the nearest differs.

    Args:
        shapes: of a detector's tensors, by name.
        family: by which its architectures' names begin.
        only: the one architecture to try; None for all of the family.
    """
    names = [arch for arch in list_task("detection") if arch.startswith(family) and arch not in TWINS.values()]
    names = names if only is None else [only]
    options = detector_options(shapes)
    if options is None:
        return "the shapes of its heads give no number of classes"
    reasons: dict[str, str] = {}
    matches = []
    for arch in names:
        expected = shapes_of(build_detector(arch, **options)[0].state_dict())
        inside = {
            name: shape for name, shape in shapes.items() if name in expected or not lies_beside(name, shapes, expected)
        }
        difference = tensor_difference(inside, expected)
        if difference is None:
            left = tuple(name for name in shapes if name not in expected)
            matches.append(Match(arch, {CLASSES: options["num_classes"]}, len(expected), left=left))
        else:
            reasons[arch] = difference
    return matches or "; ".join(f"{arch}: {reason}" for arch, reason in reasons.items())


def detector_options(shapes: Fingerprint) -> dict[str, int] | None:
    """The number of classes, and of keypoints where there are some, by the heads' shapes; None where they have none."""
    if scores := shapes.get("roi_heads.box_predictor.cls_score.weight"):
        keypoints = shapes.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")
        return {"num_classes": scores[0]} | ({"num_keypoints": keypoints[1]} if keypoints else {})
    if scores := shapes.get(f"{SCORES}cls_logits.weight"):
        boxes = shapes.get(f"{BOXES}bbox_reg.weight", (4,))
        return {"num_classes": scores[0] // max(1, boxes[0] // 4)}
    first = [name for name in shapes if name.startswith(f"{SCORES}module_list.0.") and name.endswith(".weight")]
    if not first:
        return None
    scores, boxes = shapes[first[-1]], shapes.get(first[-1].replace(SCORES, BOXES), (4,))
    return {"num_classes": scores[0] // max(1, boxes[0] // 4)}
