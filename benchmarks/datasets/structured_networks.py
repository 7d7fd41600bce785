"""Small networks of torchvision's kinds, and their training: LR-ASPP, SSDLite and R3D with a quarter of the width."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple

from benchmarks.datasets.scenes import SHAPES, SIDE

WIDTHS = (24, 48, 96)
CLASSES = len(SHAPES) + 1  # and the background
DIGITS = 10
QUARTER = (16, 32, 64, 128)
BATCH_SIZE, MAX_LR = 32, 4e-3

Batch = tuple[Tensor, Any]
Loss = Callable[[nn.Module, Tensor, Any], Tensor]


def block(num_in: int, num_out: int, stride: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch norms."""
    return nn.Sequential(
        *(nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()),
        *(nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()),
    )


class Backbone(nn.Module):
    """Features at a quarter, an eighth and a sixteenth of the image's sides, under the names given to the last two.

    Args:
        low: name of the features at an eighth.
        high: name of those at a sixteenth.
    """

    out_channels = WIDTHS[1:]

    def __init__(self, low: str, high: str) -> None:
        super().__init__()
        self.names = low, high
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        self.first = block(WIDTHS[0], WIDTHS[0], 2)
        self.second, self.third = block(WIDTHS[0], WIDTHS[1], 2), block(WIDTHS[1], WIDTHS[2], 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        low = self.second(self.first(self.stem(images)))
        return OrderedDict(zip(self.names, (low, self.third(low)), strict=True))


def tiny_lraspp() -> nn.Module:
    """A segmentation network of 4 classes."""
    return LRASPP(Backbone("low", "high"), *WIDTHS[1:], CLASSES, inter_channels=64)


def tiny_ssdlite() -> nn.Module:
    """A detector of 3 classes and the background, for images of 64 pixels."""
    anchors = DefaultBoxGenerator([[2, 3]] * 2, scales=[0.25, 0.4, 0.6])
    head = SSDLiteHead(list(WIDTHS[1:]), anchors.num_anchors_per_location(), CLASSES, partial(nn.BatchNorm2d, eps=1e-3))
    return SSD(Backbone("0", "1"), anchors, (SIDE, SIDE), CLASSES, head=head, detections_per_img=20, score_thresh=0.05)


class QuarterR3d(nn.Module):
    """torchvision's `r3d_18` with a quarter of its channels, for digits."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv3d(3, QUARTER[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm3d(QUARTER[0]), nn.ReLU())
        pairs = enumerate(zip((QUARTER[0], *QUARTER), QUARTER, strict=False))
        self.layers = nn.Sequential(*(_stage(*pair, number) for number, pair in pairs))
        self.fc = nn.Linear(QUARTER[-1], DIGITS)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W) to logits (N, 10)."""
        return self.fc(self.layers(self.stem(clips)).mean((2, 3, 4)))


def _stage(num_in: int, num_out: int, number: int) -> nn.Sequential:
    """Two residual blocks, of which the first halves all sides after the first stage."""
    if not number:
        return nn.Sequential(*(BasicBlock(num_in, num_out, Conv3DSimple) for _ in range(2)))
    shortcut = nn.Sequential(nn.Conv3d(num_in, num_out, 1, 2, bias=False), nn.BatchNorm3d(num_out))
    return nn.Sequential(
        BasicBlock(num_in, num_out, Conv3DSimple, 2, shortcut), BasicBlock(num_out, num_out, Conv3DSimple)
    )


def quarter_r3d() -> nn.Module:
    """See `QuarterR3d`."""
    return QuarterR3d()


def train(network: nn.Module, inputs: Tensor, targets: Sequence[Any], loss: Loss, epochs: int) -> nn.Module:
    """Train by AdamW with one cycle of the learning rate; in eval mode afterwards.

    Args:
        network: changed in place.
        inputs: (N, ...).
        targets: of each, as `loss` takes a list of them.
        loss: of the network on inputs and targets.
        epochs: passes over all of them.
    """
    steps = epochs * -(-len(inputs) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=MAX_LR, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, steps)
    rng = np.random.default_rng(0)
    network.train()
    for _ in range(epochs):
        for chosen in np.array_split(rng.permutation(len(inputs)), -(-len(inputs) // BATCH_SIZE)):
            value = loss(network, inputs[chosen], [targets[index] for index in chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step()
    return network.eval()


def pixel_loss(network: nn.Module, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of the pixels' classes."""
    return F.cross_entropy(network(images)["out"], torch.stack(list(masks)).long())


def class_loss(network: nn.Module, inputs: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of labels."""
    return F.cross_entropy(network(inputs), torch.stack(list(labels)))


def box_loss(network: nn.Module, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """torchvision's loss of detectors; boxes are rows as of `ImageSet.boxes`."""
    targets = [{"boxes": each[:, :4], "labels": each[:, 4].long()} for each in boxes]
    losses: dict[str, Tensor] = network(list(images), targets)
    return torch.stack(list(losses.values())).sum()
