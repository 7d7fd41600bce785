"""Losses of a real network and their statistics: unbiased, with the right variances and covariances."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.factorization.registry import METHODS
from compressor.fidelity.function_norm import BATCH_SIZE, FunctionNorm
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.fidelity.noise import ImageSampler, NoiseModel
from compressor.network.layers import compressible, find_layers
from compressor.network.surgery import build_candidate

Array = NDArray[np.float64]
CPU = torch.device("cpu")
NUM_IMAGES = 150


class Candidates:
    """A torchvision network on handwritten digits, and two compressed versions of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.original = torchvision.models.squeezenet1_1(num_classes=10).eval()
        digits = torch.from_numpy(load_digits().images[:NUM_IMAGES]).float() / 16
        self.inputs = nn.functional.interpolate(digits[:, None].repeat(1, 3, 1, 1), size=32)
        self.images = from_batches([self.inputs], NUM_IMAGES)
        self.norm = FunctionNorm(self.original, self.images, CPU)
        layers = compressible(find_layers(self.original, self.inputs))
        factors = {layer.name: METHODS[layer.method].factorize(layer.module) for layer in layers}
        self.strong, self.mild = (
            build_candidate(
                self.original, factors, {layer.name: max(1, layer.break_even_rank // part) for layer in layers}
            )
            for part in (4, 2)
        )
        every = np.arange(NUM_IMAGES)
        self.losses = {"strong": self.norm.losses(self.strong, every), "mild": self.norm.losses(self.mild, every)}


@pytest.fixture(scope="module")
def candidates() -> Candidates:
    return Candidates()


# Losses of one network


def test_losses_are_squared_distances_of_the_outputs(candidates: Candidates) -> None:
    indices = np.array([3, 149, 70, 71, 5])
    losses = candidates.norm.losses(candidates.strong, indices)
    with torch.inference_mode():
        chosen = candidates.inputs[indices]
        differences = (candidates.strong(chosen) - candidates.original(chosen)).double().numpy()
    np.testing.assert_allclose(losses.values, (differences**2).sum(1), rtol=1e-4)
    assert losses.indices.tolist() == indices.tolist()
    assert losses.mean == pytest.approx((differences**2).sum(1).mean(), rel=1e-4)
    assert losses.variance == pytest.approx((differences**2).sum(1).var(ddof=1) / 5, rel=1e-3)


def test_an_image_has_the_same_loss_in_every_batch(candidates: Candidates) -> None:
    assert NUM_IMAGES > 2 * BATCH_SIZE
    every = candidates.losses["strong"].values
    for indices in (np.array([140]), np.arange(60, 131), np.arange(NUM_IMAGES)[::-1].copy()):
        np.testing.assert_allclose(candidates.norm.losses(candidates.strong, indices).values, every[indices], rtol=1e-4)


def test_the_original_has_no_loss_and_more_compression_has_more(candidates: Candidates) -> None:
    assert candidates.norm.losses(candidates.original, np.arange(20)).values.max() < 1e-9
    assert candidates.losses["strong"].mean > candidates.losses["mild"].mean > 0


def test_output_energy_is_the_loss_of_a_network_with_no_output(candidates: Candidates) -> None:
    silent = nn.Sequential(candidates.original, nn.Threshold(float("inf"), 0.0))
    assert candidates.norm.losses(silent, np.arange(NUM_IMAGES)).mean == pytest.approx(candidates.norm.output_energy)


def test_outputs_of_any_shape_are_summed_over(candidates: Candidates) -> None:
    """A network without its head: the loss is over all positions of all channels."""
    norm = FunctionNorm(candidates.original.features, candidates.images, CPU)
    losses = norm.losses(candidates.strong.features, np.arange(4))
    with torch.inference_mode():
        chosen = candidates.inputs[:4]
        squares = (candidates.strong.features(chosen) - candidates.original.features(chosen)).double().square()
    assert squares.dim() == 4
    np.testing.assert_allclose(losses.values, squares.sum((1, 2, 3)).numpy(), rtol=1e-4)


class Fixed(nn.Module):
    """Gives `answer(images)`."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_candidate_that_overflows_has_a_huge_finite_loss(candidates: Candidates, value: float) -> None:
    network = Fixed(lambda x: torch.full((len(x), 10), value))
    losses = candidates.norm.losses(network, np.arange(6))
    assert np.isfinite(losses.values).all()
    assert losses.mean > 1e9


def test_nothing_is_worse_than_nan(candidates: Candidates) -> None:
    lost, far = (
        candidates.norm.losses(Fixed(lambda x, v=value: torch.full((len(x), 10), v)), np.arange(6)).mean
        for value in (float("nan"), 1e9)
    )
    assert lost >= far


def test_one_image_is_not_enough(candidates: Candidates) -> None:
    with pytest.raises(InputError, match="at least two images"):
        FunctionNorm(candidates.original, candidates.images.subset([0]), CPU)


def test_outputs_must_be_one_finite_tensor() -> None:
    images = ImageSet(torch.rand(4, 3, 8, 8), "test")
    with pytest.raises(InputError, match="not finite"):
        FunctionNorm(Fixed(lambda x: x / 0), images, CPU)
    with pytest.raises(InputError, match="must return one tensor, it returns tuple"):
        FunctionNorm(Fixed(lambda x: (x, x)), images, CPU)


def test_one_number_per_image_is_an_output_too() -> None:
    images = ImageSet(torch.rand(4, 3, 8, 8), "test")
    norm = FunctionNorm(Fixed(lambda x: x.mean((1, 2, 3))), images, CPU)
    assert norm.losses(Fixed(lambda x: x.mean((1, 2, 3)) + 2), np.arange(4)).mean == pytest.approx(4.0)


# The estimate, by simulation: images are drawn from the fixture's, which are the population


def test_the_estimate_and_its_variance_are_unbiased(candidates: Candidates) -> None:
    population = candidates.losses["strong"].values
    rng = np.random.default_rng(0)
    evaluations = [Losses(np.arange(20), rng.choice(population, 20)) for _ in range(6000)]
    means = np.array([evaluation.mean for evaluation in evaluations])
    variances = np.array([evaluation.variance for evaluation in evaluations])
    assert means.mean() == pytest.approx(population.mean(), abs=4 * means.std() / np.sqrt(len(means)))
    assert variances.mean() == pytest.approx(population.var() / 20, abs=4 * variances.std() / np.sqrt(len(means)))
    assert variances.mean() == pytest.approx(means.var(), rel=0.1)


def noise_covariance(evaluations: list[Losses], num_images: int, correlation_decay: float = 0.0) -> Array:
    model = NoiseModel(num_images, NoiseSpecification(correlation_decay=correlation_decay))
    for losses in evaluations:
        model.add(losses)
    return model.covariance(np.array([losses.mean for losses in evaluations]))


POOL = 400


def draw_evaluations(
    rng: np.random.Generator, norms: Array, parts: list[NDArray[np.int64]], common: float = 0.25, own: float = 0.05
) -> list[Losses]:
    """Plans whose losses are their norm times a factor of the image and one of plan and image, of these variances."""
    images = rng.gamma(1 / common, common, POOL)
    return [
        Losses(part, norm * images[part] * rng.gamma(1 / own, own, len(part)))
        for norm, part in zip(norms, parts, strict=True)
    ]


def test_the_covariance_is_right_whatever_images_are_shared() -> None:
    """Two plans on the same images, one on half of them and new ones, one on others."""
    norms = np.array([1.0, 8.0, 0.1, 2.0])
    parts = [np.arange(0, 40), np.arange(0, 40), np.arange(20, 60), np.arange(60, 160)]
    rng = np.random.default_rng(1)
    means, claimed = [], np.zeros((4, 4))
    for _ in range(3000):
        evaluations = draw_evaluations(rng, norms, parts)
        means.append([evaluation.mean for evaluation in evaluations])
        claimed += noise_covariance(evaluations, POOL) / 3000
    found = np.cov(np.transpose(means))
    scale = np.sqrt(np.outer(np.diag(found), np.diag(found)))
    np.testing.assert_allclose(claimed / scale, found / scale, atol=0.12)
    assert claimed[0, 1] > 0.7 * scale[0, 1]
    assert not claimed[3, :3].any()


def test_losses_of_plans_of_other_norms_are_less_correlated() -> None:
    """Losses of plans on one image are correlated as a power of the smaller over the larger norm."""
    norms, power, rng = np.array([1.0, 4.0, 4.4]), 0.3, np.random.default_rng(5)
    shares = (norms[:-1] / norms[1:]) ** power
    evaluations, factors = [], rng.normal(size=POOL)
    for norm, share in zip(norms, [0.0, *shares], strict=True):
        factors = share * factors + np.sqrt(1 - share**2) * rng.normal(size=POOL)
        evaluations.append(Losses(np.arange(POOL), norm * (1 + 0.2 * factors)))
    claimed = noise_covariance(evaluations, POOL, power)
    correlations = claimed / np.sqrt(np.outer(np.diag(claimed), np.diag(claimed)))
    np.testing.assert_allclose(correlations, np.corrcoef([evaluation.values for evaluation in evaluations]), atol=0.08)
    assert correlations[0, 1] < correlations[1, 2]


def test_differences_of_many_plans_on_few_images_are_not_free_of_noise() -> None:
    """The sample covariance of 100 plans on 20 images has rank 19: it claims 80 differences free of noise."""
    rng = np.random.default_rng(2)
    evaluations = draw_evaluations(rng, np.ones(100), [np.arange(20)] * 100)
    least = np.linalg.eigvalsh(noise_covariance(evaluations, POOL)).min()
    assert least == pytest.approx((0.25 + 0.05 + 0.0125 - 0.25) / 20, rel=0.5)


def test_evaluations_low_by_chance_do_not_count_more() -> None:
    """Of evaluations that differ by chance alone, one with small losses of small spread has the same relative noise."""
    rng = np.random.default_rng(3)
    evaluations = draw_evaluations(rng, np.ones(8), [np.arange(50 * k, 50 * k + 50) for k in range(8)])
    relative = (
        np.diag(noise_covariance(evaluations, POOL)) / np.array([evaluation.mean for evaluation in evaluations]) ** 2
    )
    np.testing.assert_allclose(
        relative, np.mean([evaluation.variance / evaluation.mean**2 for evaluation in evaluations])
    )


def test_a_plan_without_loss_has_no_noise_and_leaves_that_of_others() -> None:
    rng = np.random.default_rng(4)
    evaluations = draw_evaluations(rng, np.ones(2), [np.arange(20), np.arange(20)])
    dense = Losses(np.arange(20), np.zeros(20))
    matrix = noise_covariance([dense, *evaluations], POOL)
    assert not matrix[0].any()
    np.testing.assert_array_equal(matrix[1:, 1:], noise_covariance(evaluations, POOL))
    assert not noise_covariance([dense], POOL).any()


@st.composite
def evaluations(draw: st.DrawFn) -> list[Losses]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(2, 12), min_size=1, max_size=6))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    return [Losses(rng.choice(12, size, replace=False), scale * rng.lognormal(size=size)) for size in sizes]


@settings(max_examples=100, deadline=None)
@given(evaluations())
def test_the_noise_matrix_is_a_covariance(all_losses: list[Losses]) -> None:
    matrix = noise_covariance(all_losses, 12)
    np.testing.assert_allclose(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() >= -1e-12 * np.trace(matrix)
    for i, first in enumerate(all_losses):
        for j, second in enumerate(all_losses):
            if not set(first.indices.tolist()) & set(second.indices.tolist()):
                assert matrix[i, j] == 0


@given(st.permutations(range(8)), st.integers(0, 100))
def test_the_order_of_the_images_does_not_matter(order: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).random((2, 8))
    straight = [Losses(np.arange(8), row) for row in values]
    shuffled = [straight[0], Losses(np.array(order), values[1][order])]
    np.testing.assert_allclose(noise_covariance(straight, 9), noise_covariance(shuffled, 9))


# Which images


@given(st.integers(2, 60), st.integers(2, 80), st.integers(0, 5), st.integers(0, 4))
def test_no_image_twice_within_an_epoch(num_images: int, samples: int, seed: int, epoch: int) -> None:
    sampler = ImageSampler(num_images, samples, seed)
    size = min(samples, num_images)
    draws = [sampler.draw(epoch * (num_images // size) + part) for part in range(num_images // size)]
    together = np.concatenate(draws)
    assert all(len(draw) == size for draw in draws)
    assert len(set(together.tolist())) == len(together)
    assert set(together.tolist()) <= set(range(num_images))
    assert num_images - len(together) < size


@given(st.integers(0, 200), st.integers(0, 1000))
def test_a_draw_depends_on_its_number_and_the_seed_only(number: int, seed: int) -> None:
    used = ImageSampler(40, 10, seed)
    for earlier in (5, 0, number + 1):
        used.draw(earlier)
    assert used.draw(number).tolist() == ImageSampler(40, 10, seed).draw(number).tolist()


def test_epochs_and_seeds_differ() -> None:
    sampler = ImageSampler(30, 30, 0)
    epochs = [sampler.draw(number).tolist() for number in range(5)]
    assert all(first != second for first, second in pairwise(epochs))
    assert ImageSampler(30, 30, 1).draw(0).tolist() != epochs[0]


def test_every_image_is_drawn_as_often_as_any_other() -> None:
    """Also where the images are no multiple of the sample: 3 of 30 images sit out each epoch."""
    sampler = ImageSampler(30, 9, 3)
    counts = np.bincount(np.concatenate([sampler.draw(number) for number in range(3000)]), minlength=30)
    assert counts.min() > 0.9 * counts.mean()
    assert counts.max() < 1.1 * counts.mean()


def test_another_evaluation_takes_images_that_were_not_seen() -> None:
    sampler = ImageSampler(30, 10, seed=3)
    first = sampler.draw(0)
    second = sampler.draw_unseen(1, first)
    assert len(second) == 10
    assert not set(first) & set(second)
    assert len(sampler.draw_unseen(2, np.concatenate([first, second]))) == 10
    assert len(sampler.draw_unseen(3, np.arange(25))) == 5
    assert len(sampler.draw_unseen(4, np.arange(29))) == 0
    np.testing.assert_array_equal(second, ImageSampler(30, 10, seed=3).draw_unseen(1, first))
