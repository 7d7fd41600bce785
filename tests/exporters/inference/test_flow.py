"""Optical flow in a file: verified, fed with frames that follow one another, and written as Middlebury has it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from compressor.data.folders import load_folder
from compressor.data.synthetic import draw_image
from compressor.data.transforms import Transform
from exporters.feeding import SCRIPT, feeding_metadata, transform_of
from exporters.onnx import export_onnx
from exporters.verify import verify_onnx
from tests.network.raft import two_updates

TRANSFORM = Transform(128, 128, (0.5,) * 3, (0.5,) * 3, frames=2, adjacent=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of three frames each, whose files have the same names."""
    folder = tmp_path_factory.mktemp("clips")
    scene = draw_image(180, np.random.default_rng(0))
    for name, (right, down) in {"street": (3, 0), "yard": (0, -4)}.items():
        (folder / name).mkdir()
        for number in range(3):
            left, top = 10 + right * number, 10 + down * number
            Image.fromarray(scene[top : top + 136, left : left + 150]).save(folder / name / f"{number + 9}.png")
    return folder


def test_a_file_gives_the_networks_flow(clips: Path, tmp_path: Path) -> None:
    network, images = two_updates(), load_folder(clips, TRANSFORM, 10, 0)
    model, metadata = tmp_path / "model.onnx", feeding_metadata(TRANSFORM, None)
    export_onnx(network, images.batch([0, 1]), model, metadata)
    check = verify_onnx(model, network, images.batch(slice(None)))
    assert check.batch_sizes == [1, 4]
    assert check.max_rel_error < 1e-4
    about = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    assert transform_of(about) == TRANSFORM
    command = [sys.executable, SCRIPT, clips, "--model", model, "--flow", tmp_path / "flow"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [Path(line[0]).relative_to(clips).as_posix() for line in lines] == [
        "street/9.png",
        "street/10.png",
        "yard/9.png",
        "yard/10.png",
    ]
    assert images.files is not None
    with torch.inference_mode():
        flows = dict(zip(images.files, network(images.batch(slice(None)))["flow"], strict=True))
    for path, right, down in lines:
        name = Path(path).relative_to(clips)
        flow = flows[name.as_posix()]
        torch.testing.assert_close(torch.tensor([float(right), float(down)]), flow.mean((1, 2)), atol=0.006, rtol=0)
        content = (tmp_path / "flow" / name.with_suffix(".flo")).read_bytes()
        assert np.frombuffer(content[:4], "<f4")[0] == np.float32(202021.25)
        assert np.frombuffer(content[4:12], "<i4").tolist() == [128, 128]
        written = torch.from_numpy(np.frombuffer(content[12:], "<f4").reshape(128, 128, 2).copy()).movedim(2, 0)
        torch.testing.assert_close(written, flow, atol=2e-3, rtol=1e-3)
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 1
    assert "9.flo is there already: give another folder" in again.stderr
