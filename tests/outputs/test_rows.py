"""Squared distances of rows are L: averaged over positions, over the outputs' energies, by weight."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.structured.outputs import OutputLosses, give_rows, run_whole
from compressor.network.hooks import batches
from compressor.outputs import rows
from compressor.outputs.rows import gives_scores, sample_values, view_of, whole
from compressor.outputs.structure import find_outputs
from tests.outputs.networks import as_dict, structured

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    torch.manual_seed(1)
    return from_batches([torch.randn(12, 3, 8, 8)], 12)


def with_view(network: nn.Module, images: ImageSet, **weights: float) -> nn.Module:
    outputs = find_outputs(network, images.batch([0]))
    return give_rows(network, outputs, images, CPU, weights, seed=0)


def other_network() -> nn.Module:
    network = structured(as_dict)
    with torch.no_grad():
        network.body[2].weight.mul_(1.3)
    return network


def expected(original: nn.Module, other: nn.Module, images: ImageSet, weights: dict[str, float]) -> Tensor:
    """L of each image, written out."""
    with torch.no_grad():
        ours, theirs = original(images.batch(slice(None))), other(images.batch(slice(None)))
    total = torch.zeros(len(images), dtype=torch.float64)
    for name, positions in (("scores", 1), ("maps", 16)):
        energy = ours[name].double().square().flatten(1).sum(1).mean() / positions
        distance = (ours[name] - theirs[name]).double().square().flatten(1).sum(1) / positions
        total += weights.get(name, 1.0) * distance / energy
    return total


@pytest.mark.parametrize("weights", [{}, {"scores": 2.0, "maps": 0.25}])
def test_distances_of_rows_are_the_loss(images: ImageSet, weights: dict[str, float]) -> None:
    original, other = structured(as_dict), other_network()
    viewed = with_view(copy.deepcopy(original), images, **weights)
    norm = FunctionNorm(viewed, images, CPU)
    candidate = copy.deepcopy(viewed)  # as the search makes them
    candidate.load_state_dict(other.state_dict())
    found = norm.losses(candidate, torch.arange(len(images)).numpy()).values
    torch.testing.assert_close(torch.from_numpy(found), expected(original, other, images, weights), rtol=1e-5, atol=0)
    assert norm.output_energy == pytest.approx(sum(weights.values()) or 2.0, rel=1e-5)
    assert norm.labels is None
    assert not norm.decides


def test_what_each_output_lost_is_counted_at_all_positions(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_VALUES", 32)
    monkeypatch.setattr(rows, "MIN_VALUES", 16)
    original, other = structured(as_dict), other_network()
    viewed = with_view(copy.deepcopy(original), images)
    assert FunctionNorm(viewed, images, CPU).targets.shape[1] == 4 + 16
    view = view_of(viewed)
    assert view is not None
    losses = OutputLosses(view)
    for (_, targets), (_, outputs) in zip(run_whole(original, images, CPU), run_whole(other, images, CPU), strict=True):
        losses.add(targets, outputs)
    torch.testing.assert_close(losses.squares(), expected(original, other, images, {}), rtol=1e-5, atol=0)
    scores, maps = losses.records()
    assert scores.relative is not None
    assert maps.relative is not None
    assert scores.relative + maps.relative == pytest.approx(float(losses.squares().mean()), rel=1e-5)


def test_one_output_that_counts_is_not_divided(images: ImageSet) -> None:
    original = structured(as_dict)
    norm = FunctionNorm(with_view(copy.deepcopy(original), images, maps=0.0), images, CPU)
    torch.testing.assert_close(norm.targets, original(images.batch(slice(None)))["scores"])
    assert norm.decides  # a matrix of scores, whatever lies beside it
    weighted = with_view(copy.deepcopy(original), images, maps=0.0, scores=4.0)
    torch.testing.assert_close(FunctionNorm(weighted, images, CPU).targets, norm.targets)


def test_a_matrix_by_itself_stays_as_it_is(images: ImageSet) -> None:
    network = structured(lambda scores, maps: scores)
    assert with_view(network, images) is network
    assert view_of(network) is None
    assert whole(network) is network
    assert not network._forward_hooks
    assert gives_scores(network)


def test_the_whole_network_shares_all_but_the_rows(images: ImageSet) -> None:
    viewed = with_view(structured(as_dict), images)
    plain = whole(pickle.loads(pickle.dumps(with_view(structured_plainly(), images))))
    assert list(whole(viewed)(images.batch([0]))) == ["scores", "maps"]
    assert isinstance(viewed(images.batch([0])), Tensor)
    assert whole(viewed).body is viewed.body
    assert isinstance(plain(images.batch([0])), dict)
    assert next(batches(images, CPU)).shape == (12, 3, 8, 8)


def structured_plainly() -> nn.Module:
    return structured(as_dict)


def test_every_value_is_as_likely_as_any_other() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(23)
    for _ in range(4000):
        found = sample_values(23, 5, generator)
        assert found is not None
        counts += torch.bincount(found, minlength=23)
    torch.testing.assert_close(counts / 4000, torch.full((23,), 5 / 23), rtol=0.15, atol=0)
    assert sample_values(5, 5, generator) is None


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"aux": 1.0}, "--output-weights aux=1: the network returns scores and maps"),
        ({"scores": 0.0, "maps": 0.0}, "leave nothing to compare"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(images: ImageSet, weights: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        with_view(structured(as_dict), images, **weights)


def test_an_output_of_zeros_does_not_count(images: ImageSet) -> None:
    network = structured(lambda scores, maps: {"scores": scores, "zeros": torch.zeros_like(maps)})
    view = view_of(with_view(network, images))
    assert view is not None
    assert view.weights == {"scores": 1.0}
