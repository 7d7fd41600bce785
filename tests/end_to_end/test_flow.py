"""Optical flow from the command line: a RAFT on folders of frames at half its size, verified."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.synthetic import draw_image
from compressor.report.records import Report
from tests.network.raft import tiny_raft
from tests.unmeasured import without_latency

pytestmark = pytest.mark.hard


def test_it_is_compressed(tmp_path: Path, invoke) -> None:
    scene = draw_image(180, np.random.default_rng(0))
    for number in range(4):
        (tmp_path / "clips" / str(number)).mkdir(parents=True)
        for frame in range(5):
            left, top = 20 + frame * (number - 1), 20 + frame * (2 - number)
            cut = Image.fromarray(scene[top : top + 130, left : left + 130])
            cut.save(tmp_path / "clips" / str(number) / f"{frame}.png")
    torch.save(tiny_raft().state_dict(), tmp_path / "model.pt")
    options = ("--arch", "tests.network.raft:two_updates", "--input-size", 128, "--samples", 4)
    search = ("--target-ratio", 0.5, "--max-evaluations", 4)
    with without_latency():
        done = invoke(
            "bocompress-export",
            tmp_path / "model.pt",
            "--data",
            tmp_path / "clips",
            *options,
            *search,
            "--out",
            tmp_path / "out",
        )
    assert done.exit_code in (0, 3), done.output
    assert "with a flow, input of 2 frames of 128 px" in done.output
    assert "16 of 16 pairs of frames" in done.output
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert [output.name for output in report.fidelity.outputs] == ["flow"]
    assert report.ratio < 0.51
    assert report.export_check.max_rel_error < 1e-4
    assert report.fidelity.function_norm > 0
    assert report.flow is not None
    assert 0 < report.flow.moved < report.flow.length + report.flow.moved
    assert "flow within 1 px at " in done.output
