"""infer.py: what it prints is what the network says of the library's own pixels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from compressor.data.folders import load_folder
from compressor.data.transforms import Transform
from exporters.feeding import SCRIPT, Normalization, class_names_of, feeding_metadata, transform_of
from exporters.onnx import export_onnx
from exporters.ort_format import converted_to_ort

COLOUR = Transform(24, 28, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
GREY = Transform(24, 24, (0.45,), (0.25,), "bicubic")
WIDE = Transform(16, 16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), input_width=32)
NAMES = ["cat", "dog \N{EM DASH} large", "fox"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, grey, transparent, turned, deep and narrow pictures."""
    root = tmp_path_factory.mktemp("pictures") / "all"
    (root / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60), Image.Resampling.BICUBIC)
    noise.save(root / "plain.png")
    noise.resize((900, 600)).save(root / "large.jpg")
    noise.convert("L").save(root / "grey.png")
    noise.convert("RGBA").save(root / "below" / "clear.png")
    noise.convert("P").save(root / "palette.gif")
    noise.resize((600, 8)).save(root / "strip.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(root / "turned.jpg", exif=exif)
    Image.fromarray(np.asarray(noise.convert("L")).astype(np.uint16) * 257).save(root / "deep.tif")
    return root


def make_network(channels: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, outputs)
    )


def probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1) if logits.shape[1] > 1 else torch.cat([1 - logits.sigmoid(), logits.sigmoid()], 1)


def infer(model: Path, *paths: Path, top: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, paths), "--model", str(model), "--top", str(top)]
    pipes = {"capture_output": True, "text": True, "errors": "surrogateescape"}
    return subprocess.run(command, **pipes, check=False, timeout=60)


@pytest.mark.parametrize(
    ("transform", "outputs", "in_graph", "batch", "ort"),
    [
        (COLOUR, 3, False, None, False),
        (COLOUR, 3, True, 3, True),
        (GREY, 1, False, None, False),
        (WIDE, 4, True, 2, False),
    ],
)
def test_the_script_says_what_the_network_says(
    transform: Transform, outputs: int, in_graph: bool, batch: int | None, ort: bool, folder: Path, tmp_path: Path
) -> None:
    network = make_network(transform.channels, outputs)
    images = load_folder(folder, transform, 100, 0)
    model = tmp_path / "model.onnx"
    metadata = feeding_metadata(transform, NAMES, in_graph)
    normalization = Normalization(transform.mean, transform.std) if in_graph else None
    export_onnx(network, images.batch([0]), model, metadata, 11, batch, normalization)
    if ort:
        with converted_to_ort(model) as (converted, _):
            model = converted.rename(tmp_path / "model.ort")
    done = infer(model, folder)
    assert (done.returncode, done.stderr) == (0, "")
    with torch.no_grad():
        expected = probabilities(network(images.batch(slice(None))))
    found = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert images.files is not None
    assert set(found) == {str(folder / file) for file in images.files}
    for file, row in zip(images.files, expected, strict=True):
        name, probability = found[str(folder / file)].split("\t")
        assert float(probability) == pytest.approx(float(row.max()), abs=1e-3)
        best = int(row.argmax())
        assert name == (NAMES[best] if outputs == 3 else str(best))


def test_what_cannot_be_run_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    export_onnx(make_network(3, 3), torch.zeros(2, 3, 24, 24), tmp_path / "mute.onnx", {}, 11)
    assert infer(tmp_path / "mute.onnx", folder).stderr.startswith("error: ")
    assert "does not say how to feed it" in infer(tmp_path / "mute.onnx", folder).stderr
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    os.mkfifo(tmp_path / "pipe.png")
    strange = tmp_path / os.fsdecode(b"\xff.png")
    shutil.copy(folder / "plain.png", strange)
    refused = [tmp_path / f"{name}.png" for name in ("broken", "script", "pipe")]
    metadata = feeding_metadata(COLOUR, None)
    export_onnx(make_network(3, 3), torch.zeros(2, 3, 24, 24), tmp_path / "model.onnx", metadata, 11)
    done = infer(tmp_path / "model.onnx", *refused, strange, top=2)
    assert done.returncode == 1
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [*map(str, refused)]
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(strange)] * 2
    assert infer(tmp_path / "model.onnx", tmp_path / "none").stderr == f"error: there is no {tmp_path / 'none'}\n"


@pytest.mark.parametrize("transform", [COLOUR, GREY, WIDE])
def test_metadata_give_the_transform_back(transform: Transform) -> None:
    metadata = feeding_metadata(transform, NAMES)
    assert transform_of(metadata) == transform
    assert class_names_of(metadata) == NAMES
    assert transform_of({**metadata, "mean": "?"}) is None
    assert class_names_of({}) is None
