"""Candidates compete at equal cost, by what they do to the network; a choice made is kept."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.factorization.registry import METHODS, applicable_methods, competing_methods
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import SingleLayerLosses
from compressor.network.calibration import moments as calibrate
from compressor.network.layers import FoundLayer, compressible, find_layers, with_method
from compressor.pipeline.stages import factorize as decompose
from compressor.pipeline.stages.factorize import MARGIN, TRIAL_SHARES, Decomposed, Decomposer

CPU = torch.device("cpu")
EVERY_FACTOR = {"spatial, refit", "spatial, weight", "spatial, activation"}
EVERY_METHOD = EVERY_FACTOR | {"tucker, activation", "cp, activation", "interpolative, activation"}


def synthetic(count: int, seed: int) -> ImageSet:
    """Images whose neighbouring pixels are alike and whose channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 4, 4, 4, generator=generator) * torch.tensor([3.0, 1.0, 0.3, 0.1])[:, None, None]
    return from_batches([nn.functional.interpolate(coarse, size=10, mode="bilinear") + 1], count)


class Subject:
    """A small network with layers of every kind, its images and its function norm."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(4, 12, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 12, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 16, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        ).eval()
        self.model.requires_grad_(False)
        self.calibration, search = synthetic(30, 0), synthetic(20, 1)
        self.evaluator = FunctionNorm(self.model, search, CPU)
        self.layers = compressible(find_layers(self.model, search.batch([0])))

    def run(
        self, choice: str = "auto", layers: list[FoundLayer] | None = None, **options: Any
    ) -> dict[str, Decomposed]:
        given = {"calibration": self.calibration, "evaluator": self.evaluator} | options
        decomposer = Decomposer(model=self.model, device=CPU, choice=choice, **given)  # type: ignore[arg-type]
        layers = self.layers if layers is None else layers
        found = decomposer.run(layers)
        assert [part.layer.name for part in found] == [layer.name for layer in layers]
        return {part.layer.name: part for part in found}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


def kinds(found: Mapping[str, Decomposed]) -> list[str]:
    return [part.kind for part in found.values()]


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_auto_takes_what_changes_the_outputs_least(subject: Subject) -> None:
    found = subject.run()
    for part in found.values():
        means = {name: np.log(losses).mean() for name, losses in part.trials.items()}
        assert means[f"{part.layer.method}, {part.kind}"] == min(means.values())
        assert len({*means.values()}) > 1
        method = part.layer.method
        assert set(part.trials) == {f"{method}, refit", f"{method}, weight", f"{method}, activation"}
    assert any(part.kind != "weight" for part in found.values())


def largest_rank(layer: FoundLayer, share: float) -> int:
    counts = layer.params_by_rank()[:-1]
    return max((rank for rank, count in enumerate(counts, 1) if count <= share * layer.params), default=1)


def first_order_loss(subject: Subject, name: str, substitute: nn.Module) -> float:
    """By forward differentiation of what lies behind the layer: mean squared length of its outputs' first change."""
    images, place = subject.evaluator.images.batch(slice(0, decompose.TRIAL_IMAGES)), int(name)
    before = subject.model[:place](images)
    outputs = subject.model[place](before.clone())
    _, moved = torch.func.jvp(
        lambda value: subject.model[place + 1 :](value.clone()), (outputs,), (substitute(before) - outputs,)
    )
    return float(moved.square().sum(1).mean())


def test_trials_are_what_each_candidate_does_alone_at_the_shares_to_first_order(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompose, "TRIAL_DIRECTIONS", 10)  # as many as there are outputs
    found = subject.run()
    for choice in ("weight", "refit", "activation"):
        for name, alone in subject.run(choice).items():
            ranks = [largest_rank(alone.layer, share) for share in TRIAL_SHARES]
            losses = [first_order_loss(subject, name, alone.factors.build(rank)) for rank in ranks]
            trial = found[name].trials[f"{alone.layer.method}, {choice}"]
            assert trial == pytest.approx(losses, rel=1e-2)  # gradients are rounded to 16 bits


class Losses:
    """Stands in for the measurement: a loss per candidate and share."""

    def __init__(self, losses: Mapping[str, list[float]]) -> None:
        self._losses = losses

    def __call__(self, _decomposer: Decomposer, candidate: Decomposed, share: float) -> float:
        return self._losses[f"{candidate.layer.method}, {candidate.kind}"][TRIAL_SHARES.index(share)]


@pytest.mark.parametrize(
    ("tucker", "winner"),
    [
        ([1.0, 0.5, 0.2], "tucker"),
        ([1.0, 0.5, 0.4], "spatial"),  # not by the margin at the last share
        ([2.0, 0.1, 0.1], "spatial"),  # not at the first
    ],
)
def test_another_method_must_win_by_the_margin_at_every_share(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tucker: list[float], winner: str
) -> None:
    own = [2.0, 1.0, 0.5]
    losses = {
        "spatial, weight": [9.0, 9.0, 9.0],
        "spatial, refit": own,
        "spatial, activation": [3.0, 3.0, 3.0],
        "tucker, activation": tucker,
        "cp, activation": [9.0, 0.0, 0.0],
        "interpolative, activation": [9.0, 0.0, 0.0],
    }
    monkeypatch.setattr(Decomposer, "_loss", lambda *args: Losses(losses)(*args))
    spatial = [layer for layer in subject.layers if layer.method == "spatial" and layer.num_groups == 1]
    for part in subject.run(layers=spatial, competitors=competing_methods("auto+cp")).values():
        assert part.layer.method == winner
        won = sum(MARGIN * mine < other for mine, other in zip(tucker, own, strict=True))
        assert len(part.trials["tucker, activation"]) <= won


def test_trials_keep_within_the_shares_of_parameters(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []

    def note(_alone: SingleLayerLosses, name: str, substitute: nn.Module) -> float:
        sizes = [value.numel() for key, value in substitute.named_parameters() if key.endswith("weight")]
        tried.append((name, sum(sizes)))
        return 1.0 / len(tried) ** 2  # every competitor stays in the race

    monkeypatch.setattr(SingleLayerLosses, "__call__", note)
    subject.run(competitors=competing_methods("auto+cp"))
    assert len(tried) >= 4 * 3 * len(TRIAL_SHARES)
    for name, size in tried:
        weight = subject.model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        at_rank_one = [METHODS[method].num_params(weight.shape, 1, 1) for method in applicable_methods(weight.shape, 1)]
        assert size <= max(max(TRIAL_SHARES) * weight.numel(), *at_rank_one)


@pytest.mark.parametrize("choice", ["weight", "refit", "activation"])
def test_a_choice_is_taken_without_trials(subject: Subject, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decomposer, "_loss", lambda *_: pytest.fail("a trial"))
    found = subject.run(choice)
    assert kinds(found) == [choice] * 4
    assert all(part.trials == {} for part in found.values())


def test_weight_needs_no_images(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with_images = subject.run("weight")
    monkeypatch.setattr(decompose, "collect_moments", lambda *_: pytest.fail("images were looked at"))
    nothing = subject.calibration.subset([])
    for found in (subject.run("weight"), subject.run("weight", calibration=nothing), subject.run(calibration=nothing)):
        assert kinds(found) == ["weight"] * 4
        for name, part in found.items():
            assert same(part.factors.build(1), with_images[name].factors.build(1))


def test_factors_chosen_before_are_kept_and_the_others_measured(subject: Subject) -> None:
    found = subject.run("refit", kinds={"0": "activation", "2": "weight"})
    assert kinds(found) == ["activation", "weight", "refit", "refit"]
    found = subject.run(kinds={"0": "activation", "2": "weight", "4": "refit"})
    assert kinds(found)[:3] == ["activation", "weight", "refit"]
    assert [bool(part.trials) for part in found.values()] == [False, False, False, True]


def test_what_is_kept_is_the_same_whatever_the_others_are(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan applied again gives the factors of the run that chose it, on random places, too."""
    monkeypatch.setattr(calibrate, "MAX_ROWS", 64)
    everything = subject.run("activation")
    some = subject.run(kinds={"0": "weight", "2": "weight", "4": "activation", "8": "activation"})
    for name in ("4", "8"):
        assert same(some[name].factors.build(3), everything[name].factors.build(3))


def test_methods_compete_for_convolutions_without_groups_alone(subject: Subject) -> None:
    found = subject.run(competitors=competing_methods("auto+cp"))
    assert set(found["0"].trials) == EVERY_METHOD
    assert set(found["2"].trials) == EVERY_FACTOR
    for name in ("4", "8"):
        assert set(found[name].trials) == {f"svd, {kind}" for kind in ("refit", "weight", "activation")}
    best = found["0"]
    assert best.layer.break_even_rank == with_method(subject.layers[0], best.layer.method or "svd").break_even_rank


def test_every_method_can_win(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for winner in sorted(EVERY_METHOD):
        monkeypatch.setattr(
            Decomposer, "_loss", lambda _, part, _share, winner=winner: float(decompose._describe(part) != winner)
        )
        best = subject.run(layers=subject.layers[:1], competitors=competing_methods("auto+cp"))["0"]
        assert (f"{best.layer.method}, {best.kind}", best.trials[winner]) == (winner, [0.0] * len(TRIAL_SHARES))
        assert best.factors.max_rank >= best.layer.dense_rank - 1
        best.factors.build(best.layer.dense_rank - 1)


def test_without_images_methods_compete_with_the_weights_factors(subject: Subject) -> None:
    found = subject.run(competitors=competing_methods("auto+cp"), calibration=subject.calibration.subset([]))
    assert set(found["0"].trials) == {f"{method}, weight" for method in competing_methods("auto+cp")}
    assert found["2"].trials == {}


@pytest.mark.parametrize("method", ["tucker", "cp", "interpolative"])
def test_a_method_asked_for_has_no_competitors(subject: Subject, method: Any) -> None:
    layers = compressible(find_layers(subject.model, subject.calibration.batch([0]), method=method))
    found = subject.run(layers=layers, competitors=competing_methods("auto+cp"))
    assert (found["0"].layer.method, found["0"].kind, found["0"].trials) == (method, "activation", {})
    assert found["2"].layer.method == "spatial"


def test_too_wide_layers_get_the_weights_factors(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MAX_INPUTS", 40)
    found = subject.run("activation")
    assert kinds(found) == ["activation", "weight", "activation", "weight"]


def test_factors_reach_the_last_rank_that_makes_a_layer_smaller(subject: Subject) -> None:
    for choice in ("weight", "refit", "activation"):
        for part in subject.run(choice).values():
            part.factors.build(part.layer.dense_rank - 1)


def test_the_network_stays_as_it_was(subject: Subject) -> None:
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    subject.run(competitors=competing_methods("auto+cp"))
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert not any(module._forward_hooks for module in subject.model.modules())


@pytest.mark.parametrize("choice", ["auto", "refit", "activation"])
@pytest.mark.parametrize("method", ["svd", "interpolative"])
def test_inputs_whose_squares_overflow_leave_the_weights_own_factors(choice: str, method: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)).eval().requires_grad_(False)
    for layer, scale in zip(model, (1e20, 1e-20), strict=True):
        layer.weight.data.mul_(scale)
        layer.bias.data.zero_()
    images = from_batches([torch.randn(20, 12)], 20)
    layers = [with_method(layer, method) for layer in compressible(find_layers(model, images.batch([0])))]
    decomposer = Decomposer(model, images, FunctionNorm(model, images, CPU), CPU, choice)  # type: ignore[arg-type]
    found = {part.layer.name: part for part in decomposer.run(layers)}
    assert found["0"].kind != "weight"
    assert found["1"].kind == "weight"
    assert torch.isfinite(found["1"].factors.build(2)[0].weight if method == "svd" else torch.ones(1)).all()
