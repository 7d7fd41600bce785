"""A finished run, and what its files compute by other means than the program's."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from safetensors.torch import load_file
from torch import nn

from compressor.pipeline.plan import Plan
from compressor.report.records import Report

FILES = {
    "compressed.safetensors",
    "measure.py",
    "model.onnx",
    "original.onnx",
    "plan.json",
    "report.html",
    "report.json",
}
SEED = 3
# A delta and an epsilon so small that only the number of evaluations ends the search.
LONG = ("--max-evaluations", 30, "--samples", 6, "--candidates", 2, "--delta", 1e-6, "--epsilon", 1e-9)


class Run(NamedTuple):
    """A finished run: what it printed, what it wrote."""

    stdout: str
    stderr: str
    folder: Path
    report: Report
    plan: Plan


def tiny_arguments(checkpoint: Path, images: Path, out: Path) -> list[object]:
    """What compresses the small network."""
    return [checkpoint, "--trust-pickle", "--data", images, "--input-size", 32, *LONG, "--out", out]


def infer(path: Path, inputs: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def rebuild(folder: Path, model: nn.Module, plan: Plan) -> nn.Module:
    """The compressed network from compressed.safetensors and the plan's layer names alone."""
    weights = load_file(folder / "compressed.safetensors")
    for layer in plan.layers:
        if layer.rank is None:
            continue
        original = model.get_submodule(layer.name)
        first, second = weights[f"{layer.name}.0.weight"], weights[f"{layer.name}.1.weight"]
        if isinstance(original, nn.Linear):
            parts = [nn.Linear(first.shape[1], layer.rank, bias=False), nn.Linear(layer.rank, second.shape[0])]
        else:
            (rows, columns), (down, right) = original.kernel_size, original.stride
            top, left = original.padding
            parts = [
                nn.Conv2d(first.shape[1], layer.rank, (rows, 1), (down, 1), (top, 0), bias=False),
                nn.Conv2d(layer.rank, second.shape[0], (1, columns), (1, right), (0, left), bias=False),
            ]
        model.set_submodule(layer.name, nn.Sequential(*parts))
    model.load_state_dict(weights, strict=True)
    return model.eval()
