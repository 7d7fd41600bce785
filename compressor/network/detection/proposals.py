"""Boxes that the original's first stage proposes in an image, on which every network's second stage is compared.

A compressed first stage proposes other boxes, and outputs on other boxes have no distance. The original's are the same
for every network, and are what the second stage sees when it is used.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.network.detection.raw import RawDetector, spread_boxes

MAX_KNOWN = 20_000  # images whose boxes are held: 320 MB of 1,000 boxes each

Array = NDArray[np.float32]


class Proposals:
    """Proposals by image, found once for each.

    Copies of a network share them, whatever becomes of its layers: they are of the network as it is now.

    Args:
        network: with two stages, in eval mode; its first stage is copied.
    """

    def __init__(self, network: RawDetector) -> None:
        self._backbone, self._rpn = copy.deepcopy((network.backbone, network.rpn))
        for part in (self._backbone, self._rpn):
            part.eval().requires_grad_(False)
        self._known: OrderedDict[bytes, Array] = OrderedDict()

    def __deepcopy__(self, _known: dict[int, object]) -> "Proposals":
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Other processes find them anew."""
        return self.__dict__ | {"_known": OrderedDict()}

    def __call__(self, images: Tensor) -> Tensor:
        """Corners (N, count, 4) of boxes in images (N, 3, H, W), best first, in pixels.

        Where fewer are proposed than the second stage takes at most, they are repeated.
        """
        keys = [blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images.detach().cpu()]
        new = [number for number, key in enumerate(keys) if key not in self._known]
        found = dict(zip((keys[number] for number in new), self._propose(images[new]), strict=True)) if new else {}
        boxes = [found[key] if key in found else self._known[key] for key in keys]
        self._known.update(found)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return torch.from_numpy(np.stack(boxes)).to(images.device)

    def _propose(self, images: Tensor) -> Sequence[Array]:
        from torchvision.models.detection.image_list import ImageList

        size = int(images.shape[2]), int(images.shape[3])
        for part in (self._backbone, self._rpn):
            part.to(images.device)
        with torch.no_grad():
            boxes, _ = self._rpn(ImageList(images, [size] * len(images)), self._backbone(images))
        count = self._rpn._post_nms_top_n["testing"]
        return [
            np.resize(each.cpu().numpy(), (count, 4)) if len(each) else spread_boxes(count, *size) for each in boxes
        ]


def with_proposals(network: nn.Module) -> nn.Module:
    """The network; a detector's with two stages works on its own proposals from now on, and so do its copies."""
    if isinstance(network, RawDetector) and network.has_proposals:
        network.proposals = Proposals(network)
    return network


def without_proposals(network: nn.Module) -> nn.Module:
    """The network, with the same modules and tensors, on boxes that are the same in every image, as files have them."""
    if not isinstance(network, RawDetector) or network.proposals is None:
        return network
    plain = copy.copy(network)
    plain.proposals = None
    return plain
