"""A segmentation network, a network for clips and a detector at half their operations, beside uniform plans.

    python -m benchmarks.studies.network.structures [--photographs FOLDER]

The networks are small ones of torchvision's kinds (LR-ASPP, R3D with a quarter of the width, SSDLite), trained here in
some minutes on scenes of shapes and on digits that move. Each is compressed by `bocompress-export --target-macs` with
half of its multiply-accumulates, and by `bocompress apply` of a plan that gives every layer the same share of its
break-even rank, the largest that takes no more. Mean IoU, top-1 and average precision are on images outside the search;
training saw other ones.
"""

import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from benchmarks.datasets import structured_networks
from benchmarks.datasets.scenes import CLIP_SIDE, FRAMES, SIDE, write_clips, write_scenes
from benchmarks.studies.study import APPLY_PROGRAM, EXPORT_PROGRAM, write_results
from compressor.data.boxes.coco import load_with_boxes
from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.masks import load_with_masks
from compressor.data.transforms import Transform
from compressor.factorization.records import FactorKind
from compressor.network.detection.raw import RawDetector, is_detector
from compressor.network.layers import compressible, find_layers
from compressor.network.macs import count_macs
from compressor.network.surgery import build_candidate
from compressor.pipeline.plan import make_plan, write_plan
from compressor.pipeline.stages.factorize import weight_factors
from compressor.report.records import Report
from compressor.schema import Pair

SHARE = 0.5  # of the multiply-accumulates
OPTIONS = ("--method", "spatial")  # no channels, so that every layer has a rank to be uniform in
STEPS = 12  # of bisection
SUCCESS = (0, 3)  # a destroyed network has its report, too


@dataclass(frozen=True)
class Subject:
    """A network and what it is trained on.

    Attributes:
        name: of the function in `structured_networks` that makes it.
        metric: what is lost, as the table names it.
        transform: how its images are made.
        options: of the command, for these.
        loss: of training.
        epochs: of training.
    """

    name: str
    metric: str
    transform: Transform
    options: tuple[str, ...]
    loss: structured_networks.Loss
    epochs: int

    @property
    def arch(self) -> str:
        """For --arch."""
        return f"benchmarks.datasets.structured_networks:{self.name}"

    def load(self, folder: Path) -> tuple[ImageSet, list[Any]]:
        """All images of a folder, and the targets of training."""
        if self.metric == "mean IoU":
            images = load_with_masks(folder, self.transform, 10_000, 0, structured_networks.CLASSES)
            assert images.masks is not None
            return images, list(images.masks)
        if self.metric == "mean AP":
            images = load_with_boxes(folder, self.transform, 10_000, 0, structured_networks.CLASSES)
            assert images.boxes is not None
            return images, list(images.boxes)
        images = load_folder(folder, self.transform, 10_000, 0)
        assert images.labels is not None
        return images, list(images.labels)


SCENE, CLIP = Transform(SIDE, SIDE), Transform(CLIP_SIDE, CLIP_SIDE, frames=FRAMES)
HALF = (0.5, 0.5, 0.5)
SIZE = ("--input-size", str(SIDE))
CLIPS = ("--input-size", str(CLIP_SIDE), "--num-frames", str(FRAMES))
SUBJECTS = (
    Subject("tiny_lraspp", "mean IoU", SCENE, SIZE, structured_networks.pixel_loss, 20),
    Subject("quarter_r3d", "top-1", CLIP, CLIPS, structured_networks.class_loss, 6),
    Subject("tiny_ssdlite", "mean AP", SCENE, SIZE, structured_networks.box_loss, 40),
)


def trained(subject: Subject, folder: Path, epochs: int) -> nn.Module:
    """The network, trained on the images of a folder."""
    images, targets = subject.load(folder)
    torch.manual_seed(0)
    network = getattr(structured_networks, subject.name)()
    inputs = images.batch(slice(None))
    if is_detector(network):  # which normalizes by itself in training
        raw = RawDetector(copy.deepcopy(network))
        structured_networks.train(raw.detector, inputs, targets, subject.loss, epochs)
        network.load_state_dict(raw.state_dict())
        return network.eval()
    return structured_networks.train(network, inputs, targets, subject.loss, epochs)


def write_uniform(network: nn.Module, example: torch.Tensor, most: int, arch: str, path: Path) -> float:
    """The plan of the largest share of every break-even rank that takes at most so many MACs; returns the share."""
    layers = compressible(find_layers(network, example, method="spatial"))
    factors = {layer.name: weight_factors(layer) for layer in layers}

    def ranks(share: float) -> list[int]:
        return [max(1, round(share * layer.break_even_rank)) for layer in layers]

    def macs(share: float) -> int:
        chosen = {layer.name: rank for layer, rank in zip(layers, ranks(share), strict=True) if rank < layer.dense_rank}
        return count_macs(build_candidate(network, factors, chosen), example)[0]

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(middle) <= most else (low, middle)
    kinds: dict[str, FactorKind] = {layer.name: "activation" for layer in layers}
    write_plan(path, make_plan(layers, ranks(low), kinds, arch, None, 0.0, why="the same share for all"))
    return low


def run(program: str, *words: object) -> Report:
    """Run one command and return its report; the last of `words` is its --out."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, *map(str, words)], check=False)
    if done.returncode not in SUCCESS:
        raise SystemExit(done.returncode)
    return Report.model_validate_json((Path(str(words[-1])) / "report.json").read_text(encoding="utf-8"))


def figures(report: Report, metric: str) -> dict[str, Any]:
    """What a run's report says of size and loss."""
    pairs: dict[str, Pair[float] | None] = {
        "mean IoU": None if report.segmentation is None else report.segmentation.mean_iou,
        "top-1": report.top1,
        "mean AP": None if report.detection is None else report.detection.average_precision,
    }
    pair = pairs[metric]
    assert pair is not None, report.images.label_note
    return {
        "before": pair.original,
        "after": pair.compressed,
        "macs": report.macs.compressed / report.macs.original,
        "params": report.params.compressed / report.params.original,
        "moved": report.fidelity.relative,
        "export_check": report.export_check.max_rel_error,
        "test_images": report.images.test_images,
        "seconds": round(report.seconds, 1),
    }


def compare(subject: Subject, train: Path, data: Path, place: Path, epochs: int) -> dict[str, Any]:
    """The row of one network."""
    network, checkpoint = trained(subject, train, epochs), place / f"{subject.name}.pt"
    torch.save(network.state_dict(), checkpoint)
    example = torch.zeros(1, *subject.transform.shape)
    raw = RawDetector(network).eval() if is_detector(network) else network
    macs, _ = count_macs(raw, example)
    share = write_uniform(raw, example, int(SHARE * macs), subject.arch, place / f"{subject.name}.json")
    words = (checkpoint, "--arch", subject.arch, "--data", data, *subject.options)
    searched = run(EXPORT_PROGRAM, *words, *OPTIONS, "--target-macs", int(SHARE * macs), "--out", place / subject.name)
    plan = place / f"{subject.name}.json"
    applied = run(APPLY_PROGRAM, "apply", checkpoint, plan, *words[1:], "--out", place / f"{subject.name}-uniform")
    return {
        "network": subject.name,
        "metric": subject.metric,
        "params": count_of_parameters(network),
        "macs": macs,
        "share": share,
        "searched": figures(searched, subject.metric),
        "uniform": figures(applied, subject.metric),
    }


def count_of_parameters(network: nn.Module) -> int:
    """All of them."""
    return sum(value.numel() for value in network.parameters())


@click.command()
@click.option("--photographs", type=click.Path(path_type=Path), help="A folder to cut shapes from. Left out: digits.")
@click.option("--train-images", default=1200, show_default=True)
@click.option("--images", default=900, show_default=True, help="That the commands get.")
@click.option("--only", help="One network.")
@click.option("--name", default="structures", show_default=True, help="Name of the results file.")
def main(photographs: Path | None, train_images: int, images: int, only: str | None, name: str) -> None:
    """Run the study and write benchmarks/results/NAME.json after each network."""
    began, rows = time.perf_counter(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        writers: dict[bool, Callable[[Path, int, int], None]] = {
            False: lambda path, count, seed: write_scenes(path, count, photographs, seed),
            True: write_clips,
        }
        for is_clip, write in writers.items():
            for seed, (part, count) in enumerate((("train", train_images), ("data", images))):
                write(place / f"{part}-{is_clip}", count, seed)
        for subject in SUBJECTS:
            if only in (None, subject.name):
                is_clip = subject.transform.frames is not None
                parts = place / f"train-{is_clip}", place / f"data-{is_clip}"
                rows.append(compare(subject, *parts, place, subject.epochs))
                about = {"shapes_of": "photographs" if photographs else "digits", "trained_on": train_images}
                click.echo(write_results(name, about, rows, began))


if __name__ == "__main__":
    main()
