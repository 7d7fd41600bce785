"""The risk as fidelity: its losses and their statistics against direct computation, searches by it, bad labels."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from torch import nn

from compressor import compress
from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.labels import fitting_labels
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.fidelity.noise import NoiseModel
from compressor.fidelity.records import Fidelity
from compressor.fidelity.risk import Risk, compare_risks, loss_of_guessing
from compressor.pipeline.plan import Plan
from compressor.pipeline.settings import Settings
from compressor.report.records import Report
from compressor.search.evaluation.journal import Journal
from compressor.search.objective import default_gamma
from compressor.search.optimizer import Search, SearchSettings
from compressor.search.problem import SearchProblem
from compressor.search.surrogate.cokriging import NormModel
from tests.search.test_optimizer import Problem
from tests.unmeasured import without_measuring

CPU = torch.device("cpu")
KINDS: tuple[Fidelity, ...] = ("risk", "error")
Invoke = Callable[..., Result]


def spoil(network: nn.Module, deviation: float, seed: int = 0) -> nn.Module:
    """A copy with noise on its first layer's weights."""
    generator = torch.Generator().manual_seed(seed)
    spoilt = nn.Sequential(*(nn.Linear(part.in_features, part.out_features) if i % 2 == 0 else nn.ReLU()
                             for i, part in enumerate(network.children()))).eval()  # fmt: skip
    spoilt.load_state_dict(network.state_dict())
    spoilt.requires_grad_(False)
    with torch.no_grad():
        first = spoilt[0].weight
        first += deviation * torch.randn(first.shape, generator=generator)
    return spoilt


@pytest.fixture(scope="module")
def images() -> ImageSet:
    digits = load_digits()
    inputs = torch.from_numpy(digits.images).float().flatten(1) / 16
    return ImageSet(inputs, "digits", labels=torch.from_numpy(digits.target))


@pytest.fixture(scope="module")
def network(images: ImageSet) -> nn.Module:
    """64-64-10, trained on the first 900 digits until it knows nine of ten of the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.data[:900]), images.labels[:900]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def outside(images: ImageSet) -> ImageSet:
    return images.subset(range(900, len(images)))


def make_risk(network: nn.Module, images: ImageSet, kind: Fidelity) -> Risk:
    return Risk(FunctionNorm(network, images, CPU), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_above_the_originals(network: nn.Module, outside: ImageSet, kind: Fidelity) -> None:
    other, indices = spoil(network, 0.3), np.array([5, 800, 77, 6, 300])
    losses = make_risk(network, outside, kind).losses(other, indices)
    labels = outside.labels[indices].numpy()
    losses_by_model = []
    for model in (other, network):
        outputs = model(outside.data[indices]).double()
        if kind == "error":
            losses_by_model.append((outputs.argmax(1).numpy() != labels).astype(float))
        else:
            shares = outputs.softmax(1).numpy()
            losses_by_model.append(
                [log_loss([y], row[None], labels=range(10)) for y, row in zip(labels, shares, strict=True)]
            )
    np.testing.assert_allclose(losses.values, np.subtract(*losses_by_model), rtol=1e-6, atol=1e-7)
    squares = (other(outside.data[indices]) - network(outside.data[indices])).square().sum(1).numpy()
    np.testing.assert_allclose(losses.squares, squares, rtol=1e-4)
    assert losses.function_norm == pytest.approx(squares.mean(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_and_its_variance_are_unbiased(network: nn.Module, outside: ImageSet, kind: Fidelity) -> None:
    risk, other = make_risk(network, outside, kind), spoil(network, 0.3)
    every = risk.losses(other, np.arange(len(outside)))
    rng = np.random.default_rng(0)
    evaluations = [Losses(index, every.values[index]) for index in rng.integers(len(outside), size=(4000, 50))]
    means = np.array([evaluation.mean for evaluation in evaluations])
    assert means.mean() == pytest.approx(every.mean, abs=4 * means.std() / np.sqrt(len(means)))
    assert np.mean([evaluation.variance for evaluation in evaluations]) == pytest.approx(means.var(), rel=0.1)
    labels = outside.labels.numpy()
    wrong = [float((model(outside.data).argmax(1).numpy() != labels).mean()) for model in (other, network)]
    if kind == "error":
        assert every.mean == pytest.approx(wrong[0] - wrong[1])
    else:
        pair = compare_risks(network(outside.data), other(outside.data), outside.labels)
        assert every.mean == pytest.approx(pair.compressed - pair.original)


@pytest.mark.parametrize("kind", KINDS)
def test_most_of_a_risks_variance_cancels(network: nn.Module, outside: ImageSet, kind: Fidelity) -> None:
    risk, every = make_risk(network, outside, kind), np.arange(len(outside))
    excess = risk.losses(spoil(network, 0.1), every)
    assert excess.values.std() < 0.7 * (excess.values + risk._original_losses).std()


@pytest.mark.parametrize(("kind", "factor"), [("risk", 1.7), ("error", 2.5)])
def test_the_noise_follows_the_function_norm(
    network: nn.Module, outside: ImageSet, kind: Fidelity, factor: float
) -> None:
    """Over a hundredfold range of norms one number gives the noise of all plans, within a factor."""
    risk, every = make_risk(network, outside, kind), np.arange(len(outside))
    evaluations = [
        risk.losses(spoil(network, deviation, seed), every) for seed, deviation in enumerate([0.05, 0.1, 0.2, 0.5])
    ]
    norms = np.array([evaluation.function_norm for evaluation in evaluations])
    assert norms.max() > 50 * norms.min()
    noise = NoiseModel(len(outside), risk.noise_spec)
    for evaluation in evaluations:
        noise.add(evaluation)
    claimed, found = noise.variance(norms), np.array([evaluation.values.var(ddof=1) for evaluation in evaluations])
    assert (np.abs(np.log(claimed / found)) < np.log(factor)).all()
    np.testing.assert_allclose(np.diag(noise.covariance(norms)), claimed / len(outside))


def test_losses_of_plans_far_apart_are_less_correlated() -> None:
    noise_spec = NoiseSpecification(0.3, 0.5, 0.5)
    noise, rng = NoiseModel(50, noise_spec), np.random.default_rng(0)
    common = rng.standard_normal(50)
    norms = np.array([1.0, 1.0, 4.0])
    for norm in norms:
        noise.add(Losses(np.arange(50), common * np.sqrt(norm), np.full(50, norm)))
    matrix = noise.covariance(norms)
    deviations = np.sqrt(np.diag(matrix))
    correlations = matrix / np.outer(deviations, deviations)
    assert correlations[0, 1] == pytest.approx(noise.correlation) == pytest.approx(1.0)
    assert correlations[0, 2] == pytest.approx(0.5)


def test_the_noise_specification_has_floor_and_scale(network: nn.Module, outside: ImageSet) -> None:
    norm = FunctionNorm(network, outside, CPU)
    noise_spec = Risk(norm, "error").noise_spec
    wrong = float((network(outside.data).argmax(1) != outside.labels).double().mean())
    assert noise_spec.floor == pytest.approx(max(wrong, 0.05 * 0.9))
    assert noise_spec.per_norm == pytest.approx(0.9 / norm.output_energy)
    assert (loss_of_guessing("risk", 10), loss_of_guessing("error", 10)) == pytest.approx((np.log(10), 0.9))
    assert default_gamma(Risk(norm, "risk").uninformative_loss) == pytest.approx(4 / np.log(10))


# Searches


class NoisyProblem(Problem):
    """The synthetic problem with a risk for its loss: half its norm, with noise as large."""

    noise_spec = NoiseSpecification(0.5, 0.5, 0.5, 0.5)

    def evaluate(self, ranks: np.ndarray, indices: np.ndarray) -> Losses:
        squares = super().evaluate(ranks, indices)
        rng = np.random.default_rng([7, *indices[:1].tolist(), int(ranks.sum())])
        noise = np.sqrt(0.2 * squares.values) * rng.standard_normal(len(indices))
        return Losses(indices, 0.5 * squares.values + noise, squares.values)


@pytest.mark.parametrize("seed", range(2))
def test_a_search_through_noise_finds_the_optimum_and_its_own_error(seed: int) -> None:
    problem = NoisyProblem()
    settings = SearchSettings(max_evaluations=60, seed=seed)
    given = SearchProblem(problem.space, problem.objective, problem.evaluate, 400, problem.noise_spec)
    ranks, record = Search(given, settings, Journal()).run()
    values = problem.objective.value(
        0.5 * problem.norm(ranks[None]) * problem.factors.mean(), problem.space.ratio(ranks[None])
    )
    random = problem.space.sample(3000, np.random.default_rng(1))
    best = problem.objective.value(
        0.5 * problem.norm(random) * problem.factors.mean(), problem.space.ratio(random)
    ).max()
    assert values[0] > best - 0.1 * abs(best)
    assert record.objective == pytest.approx(values[0], abs=4 * record.objective_sd)
    assert 0.6 < record.calibration.z_rms < 1.5


def test_the_norm_model_follows_the_norms_it_saw() -> None:
    problem = Problem()
    model, rng = NormModel(problem.space, 400), np.random.default_rng(0)
    ranks = problem.space.sample(60, rng)
    for plan in ranks:
        images = rng.choice(400, 50, replace=False)
        losses = problem.evaluate(plan, images)
        model.add(Losses(images, rng.standard_normal(50), losses.values))
    norms = problem.norm(ranks)
    expected = model.predict(ranks, norms, 0.5, problem.objective)
    fresh = problem.space.sample(40, rng)
    errors = np.log(expected(fresh) / (0.5 * problem.norm(fresh)))
    assert np.median(np.abs(errors)) < 0.15
    assert expected(fresh.reshape(8, 5, -1)).shape == (8, 5)


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Without export and latency, which other tests have."""
    with without_measuring(pages=True):
        yield


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("kind", ["risk", pytest.param("error", marks=pytest.mark.slow)])
def test_a_search_by_risk_from_the_command_line(
    invoke: Invoke, fitted_checkpoint: Path, digit_images: Path, tmp_path: Path, kind: Fidelity
) -> None:
    out = tmp_path / "out"
    arguments = [fitted_checkpoint, "--trust-pickle", "--data", digit_images, "--input-size", 32, "--out", out]
    arguments += ["--fidelity", kind, "--samples", 10, "--max-evaluations", 8, "--factors", "weight"]
    result = invoke("bocompress-export", *arguments)
    assert result.exit_code in (0, 3), result.output  # so few evaluations may end with a network that is lost
    assert "cross-entropy" in result.output
    report = Report.model_validate_json((out / "report.json").read_text())
    plan = Plan.model_validate_json((out / "plan.json").read_text())
    assert report.searched == plan.fidelity == kind
    assert report.gamma == pytest.approx(4 / loss_of_guessing(kind, 10))
    assert report.risk is not None
    assert report.risk.original > 0
    assert "above the original" in (out / "report.html").read_text()
    rows = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()[1:]]
    assert all(len(row["squares"]) == len(row["losses"]) for row in rows if "losses" in row)
    (out / "search.jsonl").write_text("".join((out / "search.jsonl").read_text().splitlines(keepends=True)[:-2]))
    again = invoke("bocompress-export", *arguments, "--resume")
    assert again.exit_code == result.exit_code, again.output
    assert [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()[1:]] == rows
    other = invoke("bocompress-export", *arguments, "--resume", "--fidelity", "norm")
    assert other.exit_code == 2
    assert "was written with other fidelity" in other.output


# Labels that do not fit


def test_images_without_labels_are_refused_before_anything_is_written(
    invoke: Invoke, tiny_checkpoint: Path, digit_images: Path, tmp_path: Path
) -> None:
    flat, few = tmp_path / "flat", tmp_path / "few"
    for folder in (flat, few / "a", few / "b"):
        folder.mkdir(parents=True)
        for number, file in enumerate(sorted(digit_images.rglob("*.png"))[:8]):
            (folder / f"{number}.png").write_bytes(file.read_bytes())
    sentences = {
        ("--data", flat): "give --data a folder with one subfolder for each class",
        ("--data", few): "the folder has 2 classes and the network 10 outputs",
    }
    for data, sentence in sentences.items():
        arguments = [tiny_checkpoint, "--trust-pickle", *data, "--input-size", 32, "--out", tmp_path / "out"]
        result = invoke("bocompress-export", *arguments, "--fidelity", "error")
        assert result.exit_code == 2
        (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
        assert "--fidelity error needs" in line
        assert sentence in line
        assert not (tmp_path / "out").exists()


def test_synthetic_images_have_no_labels(network: nn.Module, tmp_path: Path) -> None:
    synthetic = ImageSet(torch.rand(20, 64), "20 procedurally drawn images", synthetic=True)
    with pytest.raises(InputError, match="--fidelity risk needs labels, and synthetic images have none"):
        compress(network, synthetic, tmp_path / "out", Settings(fidelity="risk"))


@pytest.mark.parametrize("labels", [torch.arange(20), torch.arange(20) - 5])
def test_labels_from_python_must_be_numbers_of_outputs(
    network: nn.Module, tmp_path: Path, labels: torch.Tensor
) -> None:
    images = from_batches([(torch.rand(20, 64), labels)], 20)
    with pytest.raises(InputError, match=r"labels run from .* and the network has 10 outputs"):
        compress(network, images, tmp_path / "out", Settings(fidelity="risk"))
    assert fitting_labels(images, 10) is None
