"""Small networks with factors and losses, for tests of linear models and of the steps that they lead to."""

import numpy as np
import torch
from torch import Tensor, nn

from compressor.arrays import Ranks
from compressor.data.images import ImageSet
from compressor.factorization.records import MethodChoice
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.fidelity.losses import Losses
from compressor.network.layers import compressible, factorized_ranks, find_layers
from compressor.network.surgery import build_candidate
from compressor.pipeline.stages.factorize import weight_factors
from compressor.search.space import RankSpace

NUM_IMAGES = 40


class Net:
    """A small network, its layers with the weights' own factors, and losses of plans on random images."""

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...] = (3, 8, 8),
        method: MethodChoice = "auto",
        num_images: int = NUM_IMAGES,
    ) -> None:
        torch.manual_seed(1)
        self.network = network.eval().requires_grad_(False)
        images = ImageSet(torch.randn(num_images, *shape), "synthetic")
        self.norm = FunctionNorm(self.network, images, torch.device("cpu"))
        self.layers = compressible(find_layers(self.network, images.batch([0]), method))
        self.factors = {layer.name: weight_factors(layer) for layer in self.layers}
        self.space = RankSpace([layer.name for layer in self.layers], [layer.params_by_rank() for layer in self.layers])
        self.linearize = Linearizer(self.norm, self.network, self.layers, self.factors)

    def candidate(self, ranks: Ranks) -> nn.Module:
        return build_candidate(self.network, self.factors, factorized_ranks(self.layers, ranks))

    def residuals(self, ranks: Ranks, indices: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(indices)
        return (self.norm.outputs(self.candidate(ranks), chosen) - self.norm.targets[chosen]).double().numpy()

    def evaluate(self, ranks: Ranks, indices: np.ndarray) -> Losses:
        return self.norm.losses(self.candidate(ranks), indices)


def linear_net(outputs: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2), nn.Flatten(), nn.Linear(144, outputs)
    )


def curved_net(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(inplace),
        nn.Flatten(), nn.Linear(144, 6),
    )  # fmt: skip


def compressible_net() -> nn.Sequential:
    """Layers that few components nearly make up, as training leaves them."""
    network = curved_net()
    for module in network:
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().permute(0, 3, 1, 2)  # outputs and columns by inputs and rows
            module.weight.data = decayed(weight.flatten(2).flatten(0, 1)).reshape(weight.shape).permute(0, 2, 3, 1)
        elif isinstance(module, nn.Linear):
            module.weight.data = decayed(module.weight.detach())
    return network


def decayed(matrix: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ torch.diag(values * 0.7 ** torch.arange(len(values))) @ right * 2.0


class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.layer(inputs))


class Blocked(nn.Module):
    """Passes no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 10)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)
