"""The whole job for networks of signals, of clips, and of maps that transposed convolutions make large again."""

import pytest
import torch
from torch import Tensor, nn

from compressor import CompressedModel, compress, load_compressed
from compressor.network.macs import count_macs
from compressor.pipeline.settings import Settings, Target
from compressor.recovery.settings import TuneSettings
from compressor.search.settings import SearchSettings
from tests.unmeasured import without_latency


class Signals(nn.Module):
    """Classes of signals (N, 4, 32)."""

    shape = (4, 32)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 16, 5, padding=2), nn.Conv1d(16, 16, 3, stride=2, groups=2)
        self.last = nn.Linear(16, 5)

    def forward(self, signals: Tensor) -> Tensor:
        return self.last(self.second(self.first(signals).relu()).relu().mean(-1))


class Clips(nn.Module):
    """Classes of clips (N, 3, 6, 10, 10)."""

    shape = (3, 6, 10, 10)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 12, (1, 3, 3), padding=(0, 1, 1)),
            nn.BatchNorm3d(12),
            nn.ReLU(),
            nn.Conv3d(12, 16, 3, padding=1, stride=(1, 2, 2)),
            nn.ReLU(),
            nn.Conv3d(16, 12, (3, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(12, 16, 1),
        )
        self.last = nn.Linear(16, 5)

    def forward(self, clips: Tensor) -> Tensor:
        return self.last(self.body(clips).relu().mean((2, 3, 4)))


class Maps(nn.Module):
    """Maps of images (N, 3, 12, 12), made small and large again."""

    shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 8, 1, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


HARD = [pytest.param(kind, marks=pytest.mark.hard) for kind in (Signals, Maps)]


@pytest.fixture(scope="module", params=[Clips, *HARD], ids=lambda kind: kind.__name__)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    torch.manual_seed(0)
    inputs = torch.randn(60, *request.param.shape)
    settings = Settings(
        search=SearchSettings(max_evaluations=6, samples=8, seed=1),
        target=Target("ratio", 0.35),
        method="auto",
        prune_fraction=0.05,
        tune=TuneSettings(epochs=1),
    )
    with without_latency():
        return compress(request.param().eval(), [inputs], tmp_path_factory.mktemp("kinds") / "out", settings)


def test_its_layers_get_ranks(done: CompressedModel) -> None:
    report = done.report
    compressed = [layer for layer in report.layers if layer.skipped is None]
    assert len(compressed) >= 3
    assert any(layer.rank is not None for layer in compressed if layer.kind == "conv")
    assert report.ratio <= 0.36
    assert report.export_check.max_rel_error < 1e-4
    assert report.fidelity.relative < 1


def test_its_costs_are_counted(done: CompressedModel) -> None:
    example = torch.zeros(1, *done.report.images.input_shape)
    assert done.report.macs.compressed == count_macs(done.model, example)[0]
    assert done.report.params.compressed == sum(value.numel() for value in done.model.parameters())


def test_it_is_loaded_from_the_run(done: CompressedModel) -> None:
    loaded = load_compressed({"Signals": Signals, "Clips": Clips, "Maps": Maps}[done.report.arch](), done.folder)
    inputs = torch.randn(2, *done.report.images.input_shape)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(inputs), done.model(inputs))
