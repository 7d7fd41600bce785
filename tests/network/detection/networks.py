"""Detectors of torchvision's classes, small enough to run in no time."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

SIDE, CHANNELS = 64, 32


class Levels(nn.Module):
    """Features of two levels, at an eighth and a sixteenth of the image's sides."""

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 5, stride=4, padding=2), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(self.stem(images))
        return OrderedDict([("0", first), ("1", self.second(first))])


class ListedLevels(Levels):
    """The same, with the channels of each level, as SSD wants them."""

    out_channels = [CHANNELS] * 2


def make_detector(kind: str, seed: int = 0) -> nn.Module:
    """A detector of 4 classes for images of 64 pixels, with scores that are not all alike."""
    torch.manual_seed(seed)
    sizes = {"min_size": SIDE, "max_size": SIDE}
    few = AnchorGenerator(((8, 16), (24, 32)), ((1.0,),) * 2)
    if kind == "retinanet":
        detector: nn.Module = RetinaNet(Levels(), 4, anchor_generator=few, score_thresh=0.3, **sizes)
    elif kind == "fcos":
        detector = FCOS(
            Levels(), 4, anchor_generator=AnchorGenerator(((8,), (16,)), ((1.0,),) * 2), score_thresh=0.3, **sizes
        )
    elif kind == "ssd":
        detector = SSD(ListedLevels(), DefaultBoxGenerator([[2], [2, 3]]), (SIDE, SIDE), 4, score_thresh=0.2)
    else:
        pooling = [MultiScaleRoIAlign(["0", "1"], size, 2) for size in (5, 8)]
        detector = MaskRCNN(
            Levels(), rpn_anchor_generator=few, box_roi_pool=pooling[0], mask_roi_pool=pooling[1],
            box_head=TwoMLPHead(25 * CHANNELS, 48), box_predictor=FastRCNNPredictor(48, 4),
            mask_head=MaskRCNNHeads(CHANNELS, (CHANNELS,), 1), mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, 4),
            rpn_post_nms_top_n_test=40, box_detections_per_img=12, box_score_thresh=0.2, **sizes,
        )  # fmt: skip
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
                parameter *= 0.2 if "bbox" in name or "regression" in name else 1.0
            elif name.endswith("cls_logits.bias"):
                parameter.zero_()
    return detector.eval()


def tiny_maskrcnn() -> nn.Module:
    """A detector of two stages, for `--arch`."""
    return make_detector("maskrcnn")
