"""What the factors alone are worth: the same ranks without search or fine-tuning, only the factors differ.

    python -m benchmarks.studies.network.factors MODEL DATA --input-size 64
        --layers 'layer*.conv*' --name factors-resnet18
    python -m benchmarks.studies.network.factors fc3 --name factors-fc3-fashion

Function norm and top-1 are on test images. Methods of other shapes get the rank at which they hold as many parameters.
Weight-space factors are what AIMET and the paper use. Calibration images come from the same source as the test images,
or from other photographs (--other), or are synthetic.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from benchmarks.datasets.fashion import load_fashion, trained_fc3
from benchmarks.studies.loading import load_squares
from benchmarks.studies.study import earlier_rows, write_results
from compressor.cost.latency import measure_latency
from compressor.cost.size import count_params
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.synthetic import synthetic_images
from compressor.data.transforms import Transform
from compressor.factorization.records import FactorChoice
from compressor.factorization.registry import competing_methods
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.attention import open_attention
from compressor.network.layers import FoundLayer, compressible, find_layers, with_method
from compressor.network.surgery import build_candidate, detach_from_original
from compressor.pipeline.stages.factorize import Decomposed, Decomposer
from compressor.recovery.reconstruction import Reconstruction
from exporters.onnx import export_onnx

CPU = torch.device("cpu")
NUM_CALIBRATION, NUM_CHECK, NUM_TEST = 400, 100, 2000
FRACTIONS = (0.5, 0.3, 0.2)
CHAINS: tuple[str, ...] = ("weight", "refit", "activation", "auto", "auto+cp")
MIDDLE = 0.3  # the fraction at which methods and calibration images are compared


@dataclass
class Study:
    """One network with its images; `rows` fills as runs end."""

    model: nn.Module
    layers: Sequence[FoundLayer]
    test_images: ImageSet
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._norm = FunctionNorm(self.model, self.test_images, CPU)
        self._every = torch.arange(len(self.test_images))
        self._original_top1 = self._top1(self._norm.targets)
        self._example = self.test_images.batch([0])
        self._folder = tempfile.TemporaryDirectory()
        self._original_path = self._export(self.model, "original.onnx")

    def _export(self, model: nn.Module, name: str) -> Path:
        path = Path(self._folder.name) / name
        export_onnx(model, self._example, path, {})
        return path

    def run(self, fractions: Iterable[float], chain: str, images: "Calibration", method: str = "") -> None:
        """Rows for one chain (factors, "+cp": with CP among the methods) at some fractions of the break-even ranks."""
        began = time.perf_counter()
        check = FunctionNorm(self.model, images.check, CPU)
        layers = [with_method(layer, method) if _applies(layer, method) else layer for layer in self.layers]
        result: FactorChoice = chain.removesuffix("+cp")  # type: ignore[assignment]
        decomposer = Decomposer(self.model, images.fit, check, CPU, result, competitors=competing_methods(chain))
        parts = decomposer.run(layers)
        seconds = time.perf_counter() - began
        about = {"chain": chain, "method": method or "svd, spatial", "images": images.name, "fit_on": len(images.fit)}
        for fraction in fractions:
            ranks = self._ranks(parts, fraction)
            factors = {part.layer.name: part.factors for part in parts}
            network = detach_from_original(build_candidate(self.model, factors, ranks))
            row = about | {"fraction": fraction, "recalibrated": False, "seconds": round(seconds, 1)}
            self._add(network, row)
            if result in ("refit", "activation") and not method:
                continue
            chosen = [part.layer for part in parts]
            record = Reconstruction(self.model, network, chosen, images.fit, check, CPU).run()
            kept = sum(step.kept for step in record.steps)
            row |= {"recalibrated": True, "steps": len(record.steps), "kept": kept, "seconds": round(record.seconds, 1)}
            row["methods"] = dict(Counter(f"{part.layer.method}, {part.kind}" for part in parts))
            self._add(network, row | self._latency(network))

    def _latency(self, network: nn.Module) -> dict[str, float]:
        """Time over the original's in ONNX Runtime on one thread, one image at a time."""
        record = measure_latency(self._original_path, self._export(network, "compressed.onnx"), self._example)
        return {"latency_ratio": record.ratio, "latency_low": record.ratio_low, "latency_high": record.ratio_high}

    def _ranks(self, parts: Sequence[Decomposed], fraction: float) -> dict[str, int]:
        """Ranks at which layers have as many parameters as two-factor methods at `fraction` of the break-even rank."""
        ranks = {}
        for part, layer in zip(parts, self.layers, strict=True):
            allowed = layer.params_by_rank()[max(1, int(fraction * layer.break_even_rank)) - 1]
            fitting = sum(count <= allowed for count in part.layer.params_by_rank()[:-1])
            ranks[part.layer.name] = max(1, fitting)
        return ranks

    def _add(self, network: nn.Module, row: dict[str, Any]) -> None:
        outputs = self._norm.outputs(network, self._every)
        squares = self._norm.compare(outputs, self._every)
        measured = {
            "params": count_params(network),
            "function_norm": float(squares.mean()),
            "stderr": float(squares.std(ddof=1) / len(squares) ** 0.5),
            "relative": float(squares.mean() / self._norm.output_energy),
            "top1": self._top1(outputs),
            "top1_original": self._original_top1,
        }
        self.rows.append(row | measured)
        click.echo({**row, **{k: measured[k] for k in ("params", "function_norm", "top1")}}, err=True)

    def _top1(self, outputs: torch.Tensor) -> float:
        assert self.test_images.labels is not None
        return float((outputs.argmax(1) == self.test_images.labels).double().mean())


@dataclass(frozen=True)
class Calibration:
    """Images to fit on, and check images of the same kind, which decide over steps."""

    name: str
    fit: ImageSet
    check: ImageSet

    def fewer(self, count: int) -> "Calibration":
        """The same with the first `count` images to fit on."""
        return Calibration(self.name, self.fit.subset(range(count)), self.check)


def _applies(layer: FoundLayer, method: str) -> bool:
    return method == "interpolative" or (method != "" and layer.method == "spatial")


def calibration_of(name: str, images: ImageSet) -> Calibration:
    """The images split in two."""
    check, fit = images.split(min(NUM_CHECK, len(images) // 5), seed=0)
    return Calibration(name, fit.subset(range(min(NUM_CALIBRATION, len(fit)))), check)


def load(model: str, data: Path | None, input_size: int | None) -> tuple[str, nn.Module, ImageSet, Transform | None]:
    """Name, network and images of a checkpoint with its folder, or of FC3 on Fashion-MNIST where `model` is "fc3"."""
    wanted = NUM_CALIBRATION + NUM_CHECK + NUM_TEST
    if model == "fc3":
        inputs, labels = load_fashion(train=False)
        images = ImageSet(inputs[:wanted], "Fashion-MNIST's test images", labels=labels[:wanted])
        return "FC3 (784-1000-1000-10) on Fashion-MNIST", trained_fc3(), images, None
    if data is None or input_size is None:
        raise click.UsageError('MODEL needs DATA and --input-size (only "fc3" brings its own)')
    loaded, images, transform = load_squares(Path(model), data, input_size, wanted)
    return loaded.arch, loaded.model, images, transform


def other_calibration(
    name: str, own: Calibration, other: Path | None, transform: Transform | None
) -> Calibration | None:
    """Calibration images by the name of their set: a number of one's own, synthetic ones, or other photographs."""
    total = NUM_CALIBRATION + NUM_CHECK
    if name.isdigit():
        return own.fewer(int(name))
    if transform is None:
        return None
    if name == "synthetic":
        return calibration_of("synthetic", synthetic_images(total, transform, seed=0))
    return None if other is None else calibration_of("other photographs", load_folder(other, transform, total, seed=0))


@click.command()
@click.argument("model_path")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--input-size", type=int)
@click.option("--layers", "patterns", default="*", show_default=True, help="Name patterns, separated by commas.")
@click.option("--other", type=click.Path(path_type=Path), help="Folder of other photographs to calibrate on.")
@click.option("--methods", default="tucker,cp,interpolative", show_default=True, help="At 0.3 of the break-even ranks.")
@click.option("--fractions", default=",".join(map(str, FRACTIONS)), show_default=True)
@click.option("--chains", default=",".join(CHAINS), show_default=True, help="Kinds of factors to run.")
@click.option(
    "--images",
    "image_sets",
    default="25,100,other,synthetic",
    show_default=True,
    help="Calibration images, at 0.3 of the break-even ranks: fewer of the task's, other photographs, synthetic ones.",
)
@click.option("--add", is_flag=True, help="Keep the rows that the results file holds already.")
@click.option("--name", default="factors", show_default=True, help="Name of the results file.")
def main(
    model_path: str,
    data: Path | None,
    input_size: int | None,
    patterns: str,
    other: Path | None,
    methods: str,
    fractions: str,
    chains: str,
    image_sets: str,
    add: bool,
    name: str,
) -> None:
    """Run the study and write benchmarks/results/NAME.json, anew after every part."""
    began = time.perf_counter()
    network, loaded, images, transform = load(model_path, data, input_size)
    mine, test_images = images.split(NUM_CALIBRATION + NUM_CHECK, seed=0)
    model = open_attention(loaded.eval().requires_grad_(False), mine.batch([0]))
    layers = compressible(find_layers(model, mine.batch([0]), include=patterns.split(",")))
    study = Study(model, layers, test_images)
    about = {"network": network, "evaluated_on": len(test_images), "layers": len(layers), "patterns": patterns}

    def save() -> None:
        write_results(name, about, study.rows, began)

    own = calibration_of("of the task", mine)
    rows, began = earlier_rows(name, add, began)
    study.rows += rows
    for chain in CHAINS:
        if chain in chains.split(","):
            study.run(map(float, fractions.split(",")), chain, own)
            save()
    for method in filter(None, methods.split(",")):
        study.run([MIDDLE], "activation", own, method)
        save()
    for images_name in filter(None, image_sets.split(",")):
        calibration = other_calibration(images_name, own, other, transform)
        if calibration is None:
            continue
        study.run([MIDDLE], "auto", calibration)
        if not images_name.isdigit():  # images of another kind may mislead the choice
            study.run([MIDDLE], "weight", calibration)
        save()


if __name__ == "__main__":
    main()
