"""A network as the paper compresses it: its layers, the weights' own factors, images to search on and to test on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.datasets.fashion import FC3, load_test_images, trained_fc3
from benchmarks.studies.search.baselines.problem import Problem
from compressor.arrays import Ranks
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.factorization.base import Factors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import Linearizer
from compressor.fidelity.losses import Losses
from compressor.fidelity.records import Fidelity
from compressor.fidelity.risk import losses_of, make_measure
from compressor.network.attention import open_attention
from compressor.network.checkpoint import load_model
from compressor.network.layers import PAPER_LAYERS, FoundLayer, compressible, factorized_ranks, find_layers
from compressor.network.surgery import Candidates, build_candidate
from compressor.pipeline.prepare import usable_device
from compressor.pipeline.stages.factorize import energies_of, weight_factors
from compressor.search.objective import Objective
from compressor.search.records import Form
from compressor.search.space import RankSpace

POOL_IMAGES = 500
TOP = 5
# E||f*||^2 of MobileNetV2's published weights on photographs: what the paper's gammas are taken to be made for.
OUTPUT_ENERGY_OF_1000_CLASSES = 9171.0
CLASSES_OF_IMAGENET = 1000
MIDDLE_GAMMA, MIDDLE_GAMMA_OF_FC3 = 0.0001, 0.01  # of Tables 6 and 3


@dataclass(frozen=True)
class Subject:
    """A network decomposed once, with the images of the search (`pool`) and test images."""

    name: str
    arch: str
    model: nn.Module
    layers: list[FoundLayer]
    factors: dict[str, Factors]
    pool: ImageSet
    test_images: ImageSet
    device: torch.device

    @cached_property
    def norm(self) -> FunctionNorm:
        """The function norm on the pool."""
        return FunctionNorm(self.model, self.pool, self.device)

    @cached_property
    def test_norm(self) -> FunctionNorm:
        """The function norm on the test images."""
        return FunctionNorm(self.model, self.test_images, self.device)

    @cached_property
    def original(self) -> dict[str, float]:
        """Accuracies of the network as it is."""
        return self.accuracy(self.test_norm.targets)

    @property
    def num_classes(self) -> int:
        """Outputs of the network."""
        return int(self.norm.targets.shape[1])

    @property
    def middle_gamma(self) -> float:
        """Where a study has one gamma alone."""
        return MIDDLE_GAMMA_OF_FC3 if self.name == FC3 else MIDDLE_GAMMA

    @property
    def weights(self) -> int:
        """Parameters of the layers that are compressed."""
        return sum(layer.params for layer in self.layers)

    def network(self, ranks: Ranks) -> nn.Module:
        """The network of a plan (d,)."""
        return build_candidate(self.model, self.factors, factorized_ranks(self.layers, ranks))

    def problem(self, fidelity: Fidelity, gamma: float, samples: int = 50, form: Form = "ratio") -> Problem:
        """The problem that the searches are given."""
        measure = make_measure(self.norm, fidelity)
        candidates = Candidates(self.model, self.factors)

        def losses(ranks: Ranks, indices: NDArray[np.int64]) -> Losses:
            return measure.losses(candidates.build(factorized_ranks(self.layers, ranks)), indices)

        return Problem(
            [layer.name for layer in self.layers],
            [layer.params_by_rank() for layer in self.layers],
            Objective(gamma, form),
            losses,
            len(self.pool),
            [energies_of(layer, self.factors[layer.name]) for layer in self.layers],
            samples,
            Linearizer(self.norm, self.model, self.layers, self.factors) if fidelity == "norm" else None,
            measure.noise_spec,
        )

    def gamma(self, of_paper: float, fidelity: Fidelity) -> float:
        """The gamma that weighs as one of the paper's does.

        Function norms are scaled by the output energy, since squared distances grow with it; of a thousand classes the
        paper's gammas are taken as they are, and so are those of FC3 and of errors.
        """
        if fidelity != "norm" or self.name == FC3 or self.num_classes == CLASSES_OF_IMAGENET:
            return of_paper
        return of_paper * OUTPUT_ENERGY_OF_1000_CLASSES / self.norm.output_energy

    def space(self) -> RankSpace:
        """The lattice of plans on the paper's scale."""
        return RankSpace(
            [layer.name for layer in self.layers], [layer.params_by_rank() for layer in self.layers], "linear"
        )

    def evaluate(self, ranks: Ranks) -> dict[str, Any]:
        """What a plan (d,) is on the test images: the paper's columns, and function norm and cross-entropy."""
        outputs = self.test_norm.outputs(self.network(ranks), torch.arange(len(self.test_images)))
        ratio = float(self.space().ratio(ranks[None])[0])
        norm = self.test_norm.of_outputs(outputs)
        return {"ratio": ratio, "weights": round(ratio * self.weights), "function_norm": norm, **self.accuracy(outputs)}

    def accuracy(self, outputs: Tensor) -> dict[str, float]:
        """Top-1 and top-5 accuracy and cross-entropy of outputs (n, classes) on the test images."""
        labels = self.test_images.labels
        if labels is None or self.test_norm.labels is None:
            raise InputError(f"{self.name}: accuracies need a folder with a subfolder per class of the network")
        labels = labels.to(outputs.device)
        hits = outputs.topk(min(TOP, outputs.shape[1])).indices == labels[:, None]
        return {
            "top1": float(hits[:, 0].double().mean()),
            "top5": float(hits.any(1).double().mean()),
            "risk": float(losses_of(outputs, labels, "risk").mean()),
        }

    def about(self) -> dict[str, Any]:
        """What holds for all rows of a table."""
        return {
            "network": self.name,
            "arch": self.arch,
            "layers": {layer.name: layer.params for layer in self.layers},
            "weights": self.weights,
            "classes": self.num_classes,
            "pool": len(self.pool),
            "evaluated_on": len(self.test_images),
            "output_energy": self.norm.output_energy,
            "original": self.original,
            "device": str(self.device),
        }


def load_subject(
    model: str,
    data: Path | None,
    input_size: int | None,
    patterns: str,
    num_test: int,
    device: str,
) -> Subject:
    """A checkpoint with a folder of images, or FC3 on Fashion-MNIST where `model` is "fc3".

    Args:
        model: path of the checkpoint, or "fc3".
        data: folder with a subfolder per class.
        input_size: side of the input in pixels; None for the transform of the published weights.
        patterns: name patterns of layers, separated by commas; "paper" is the paper's set, or all layers where the
            paper names none.
        num_test: test images, at most.
        device: where networks run.

    Raises:
        InputError: no such file or device, or a checkpoint without `data`.
    """
    where = usable_device(device)
    if model == FC3:
        images = load_test_images()
        name, arch, network = FC3, FC3, trained_fc3()
    elif data is None:
        raise InputError(f'{model} needs DATA, a folder with a subfolder per class (only "{FC3}" brings its own)')
    else:
        loaded = load_model(Path(model))
        transform = loaded.transform
        if input_size is not None:
            transform = Transform(input_size, input_size, transform.mean, transform.std)
        limit = num_test + POOL_IMAGES
        images = load_folder(
            data, transform, limit, seed=0, class_names=loaded.class_names, num_classes=loaded.num_classes
        )
        name, arch, network = Path(model).stem, loaded.arch, loaded.model
    pool, test_images = images.split(min(POOL_IMAGES, len(images) // 2), seed=0)
    test_images = test_images.subset(range(min(num_test, len(test_images))))
    example = pool.batch([0]).to(where)
    opened = open_attention(network.eval().requires_grad_(False).to(where), example)
    layers = compressible(find_layers(opened, example, "spatial", paper_patterns(patterns, arch).split(","), arch=arch))
    factors = {layer.name: weight_factors(layer) for layer in layers}
    return Subject(name, arch, opened, layers, factors, pool, test_images, where)


def paper_patterns(patterns: str, arch: str) -> str:
    """The patterns, with all layers for "paper" where the paper names no set."""
    named = any(arch.startswith(family) for family in PAPER_LAYERS)
    return "*" if patterns == "paper" and not named else patterns


def block_ratios(subject: Subject, ranks: Ranks) -> dict[str, float]:
    """R of each layer by itself, as Fig. 5 has it."""
    tables = [layer.params_by_rank() for layer in subject.layers]
    return {
        layer.name: float(np.asarray(table)[rank - 1] / layer.params)
        for layer, table, rank in zip(subject.layers, tables, ranks.tolist(), strict=True)
    }
