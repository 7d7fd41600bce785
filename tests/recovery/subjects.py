"""Networks to reconstruct, each with its images and its factors."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import compressible, factorized_ranks, find_layers
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.stages.factorize import Decomposer
from compressor.recovery.reconstruction import Reconstruction
from compressor.recovery.records import ReconstructionRecord

CPU = torch.device("cpu")


class Tokens(nn.Module):
    """(N, C, H, W) as a sequence (N, H * W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Recurrent(nn.Module):
    """Layers that are called four times, each time on what they gave before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(24, 12, 3, padding=1)
        self.step, self.last = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 2, 3, padding=1)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """A matrix (N, 2 * 8 * 8)."""
        context = self.first(x).relu()
        state = torch.zeros_like(context)
        for _ in range(4):
            state = state + self.step(self.again(torch.cat([context, state], dim=1)).relu()).tanh()
        return self.last(state).flatten(1)


def small_network() -> nn.Module:
    """Batch norm with statistics that fit, groups, a 1 x 1, linear layers on sequences and on vectors."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(inplace=True),
        Tokens(),
        nn.Linear(16, 12),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(12 * 16, 10),
    )
    for norm in (network[1], network[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    network.train()
    for seed in range(20):
        network(synthetic(32, seed).batch(slice(None)))
    return network.eval().requires_grad_(False)


def synthetic(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator) + 0.5
    return from_batches([nn.functional.interpolate(coarse, size=8, mode="bilinear")], count)


class Subject:
    """A network at low ranks, before its reconstruction."""

    def __init__(self, original: nn.Module, images: ImageSet, check: ImageSet, **options: Any) -> None:
        choice, share = options.pop("choice", "weight"), options.pop("share", 0.3)
        self.original, self.calibration = original, images
        self.check = FunctionNorm(original, check, CPU)
        found = compressible(find_layers(original, images.batch([0]), **options))
        decomposer = Decomposer(model=original, calibration=images, evaluator=self.check, device=CPU, choice=choice)
        parts = decomposer.run(found)
        ranks = [max(1, int(share * part.layer.break_even_rank)) for part in parts]
        self.ranks = factorized_ranks([part.layer for part in parts], ranks)
        self.layers = [part.layer for part in parts if part.layer.name in self.ranks]
        factors = {part.layer.name: part.factors for part in parts}
        self.network = detach_from_original(build_candidate(original, factors, self.ranks))

    def loss(self, network: nn.Module) -> float:
        return self.check.losses(network, np.arange(len(self.check.images))).mean

    def run(self, network: nn.Module | None = None) -> tuple[ReconstructionRecord, nn.Module]:
        job = Reconstruction(
            original=self.original,
            network=copy.deepcopy(self.network) if network is None else network,
            layers=self.layers,
            calibration=self.calibration,
            check=self.check,
            device=CPU,
        )
        return job.run(), job.network


def subject_with(**options: Any) -> Subject:
    return Subject(small_network(), synthetic(96, 100), synthetic(40, 101), **options)
