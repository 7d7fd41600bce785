"""A small network whose outputs come in any structure."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Pair = namedtuple("Pair", ["scores", "maps"])


@dataclass
class Detections:
    scores: Tensor
    maps: list[Tensor]
    note: str = "no tensor"


class Structured(nn.Module):
    """Scores (N, 4) and a map (N, 5, H / 2, W / 2), packed by a function."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1))
        self.scores = nn.Linear(12, 4)
        self.maps = nn.Conv2d(12, 5, 1)

    def forward(self, images: Tensor) -> Any:
        features = self.body(images).relu()
        return self.pack(self.scores(features.mean((2, 3))), self.maps(features))


def structured(pack: Callable[[Tensor, Tensor], Any]) -> Structured:
    torch.manual_seed(0)
    return Structured(pack).eval()


def as_dict(scores: Tensor, maps: Tensor) -> dict[str, Tensor]:
    return {"scores": scores, "maps": maps}
