"""Optical flow of two networks: how far its ends are apart, in pixels."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.fidelity.records import FlowRecord

NEAR = 1.0  # pixels


@dataclass
class FlowEvaluation:
    """The flows of the original and of a compressed network, added up pair by pair."""

    lengths: list[Tensor] = field(default_factory=list)
    distances: list[Tensor] = field(default_factory=list)
    near: list[Tensor] = field(default_factory=list)

    def add(self, original: Tensor, compressed: Tensor) -> None:
        """Add the flows (n, 2, H, W) of both networks for the same pairs."""
        distances = torch.linalg.vector_norm(compressed - original, dim=1).flatten(1).cpu()
        self.lengths.append(torch.linalg.vector_norm(original, dim=1).flatten(1).cpu().mean(1))
        self.distances.append(distances.mean(1))
        self.near.append((distances <= NEAR).double().mean(1))

    def record(self) -> FlowRecord:
        """Averages over the pairs so far."""
        lengths, distances, near = (torch.cat(each) for each in (self.lengths, self.distances, self.near))
        return FlowRecord(
            images=len(lengths), length=float(lengths.mean()), moved=float(distances.mean()), near=float(near.mean())
        )
