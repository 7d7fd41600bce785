"""The whole job for networks that return tensors in a structure, and for one whose scores only lie in one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor import CompressedModel, compress, load_compressed
from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.pipeline.settings import Settings, Target
from compressor.report.console import print_report
from compressor.report.page import render_report
from compressor.search.settings import SearchSettings
from tests.outputs.networks import as_dict, structured

SEARCH = SearchSettings(max_evaluations=6, samples=8, certificate="pointwise", seed=1)

pytestmark = pytest.mark.usefixtures("unmeasured")


class Packed(nn.Module):
    """A classifier that returns its scores in a dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(images)}


class Segmenter(nn.Module):
    """Maps of classes as large as the images, and another output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.out, self.aux = nn.Conv2d(12, 3, 1), nn.Conv2d(12, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        return {"out": self.out(features), "aux": self.aux(features)}


@pytest.mark.slow
def test_a_matrix_in_a_structure_is_searched_as_by_itself(network: nn.Module, images: ImageSet, tmp_path: Path) -> None:
    settings = Settings(search=SEARCH, target=Target("ratio", 0.5))
    alone = compress(network, images, tmp_path / "a", settings)
    packed = compress(Packed(network), images, tmp_path / "b", settings)
    assert [layer.rank for layer in alone.plan.layers] == [layer.rank for layer in packed.plan.layers]
    norms = [run.report.fidelity.function_norm for run in (alone, packed)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert alone.report.top1 == packed.report.top1
    assert alone.report.fidelity.outputs == []
    assert [output.name for output in packed.report.fidelity.outputs] == ["logits"]
    assert isinstance(packed.model(images.batch([0])), dict)


@pytest.fixture(scope="module")
def segmented(unmeasured: None, tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    torch.manual_seed(0)
    network = Segmenter().eval()
    inputs = nn.functional.interpolate(torch.randn(60, 3, 3, 3), size=12, mode="bilinear")
    with torch.no_grad():
        masks = network(inputs)["out"].argmax(1)
    settings = Settings(search=SEARCH, target=Target("drop", 60.0), output_weights=(("aux", 0.5),))
    return compress(network, [(inputs, masks)], tmp_path_factory.mktemp("segmented") / "out", settings)


def test_segmentation_has_mean_iou_and_its_drop(segmented: CompressedModel, capsys: pytest.CaptureFixture[str]) -> None:
    report = segmented.report
    assert report.segmentation is not None
    assert report.segmentation.mean_iou is not None
    assert report.segmentation.mean_iou.original == 1
    assert report.target is not None
    assert (report.target.labelled, report.target.of) == (True, "mean IoU")
    assert {output.name: output.weight for output in report.fidelity.outputs} == {"out": 1.0, "aux": 0.5}
    assert report.fidelity.top1_agreement is None
    assert report.images.labelled
    print_report(report, segmented.folder)
    shown, page = capsys.readouterr().out, render_report(report)
    for text in (shown, page):
        assert "ean IoU" in text
        assert "utput aux" in text
        assert "op-1" not in text.replace("top-1 decisions", "")
    assert "of the pixels keep their class" in page


def test_a_network_of_several_outputs_is_loaded_from_the_run(segmented: CompressedModel) -> None:
    loaded, inputs = load_compressed(Segmenter(), segmented.folder), torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        found, expected = loaded(inputs), segmented.model(inputs)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_labels_of_images_are_not_those_of_maps(tmp_path: Path) -> None:
    inputs = torch.randn(30, 3, 8, 8)
    settings = Settings(search=SEARCH)
    done = compress(structured(as_dict), from_batches([(inputs, torch.zeros(30).long())], 30), tmp_path / "a", settings)
    assert done.report.top1 is None
    assert "does not give one score for each class" in done.report.images.label_note
    with pytest.raises(InputError, match="fidelity risk needs labels"):
        compress(
            structured(as_dict),
            from_batches([(inputs, torch.zeros(30).long())], 30),
            tmp_path / "b",
            Settings(search=SEARCH, fidelity="risk"),
        )
    assert not (tmp_path / "b").exists()
