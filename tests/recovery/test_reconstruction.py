"""Layer-wise reconstruction: never worse on the check images, recorded as it was, plainly better at low ranks."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.data.batches import from_batches
from compressor.fidelity.function_norm import FunctionNorm
from compressor.recovery.reconstruction import Reconstruction
from compressor.recovery.records import ReconstructionRecord
from tests.recovery.subjects import CPU, Recurrent, Subject, small_network, subject_with, synthetic

METHODS = ["spatial", "tucker", "cp", "interpolative"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_with()


def assert_recorded_as_it_was(record: ReconstructionRecord, subject: Subject, network: nn.Module) -> None:
    current, previous = record.before, None
    for step in record.steps:
        assert step.before == current or (step.before, step.after) == previous  # layers that were checked together
        assert step.kept == (step.after < step.before)
        current, previous = step.after if step.kept else current, (step.before, step.after)
    assert record.after == current <= record.before
    assert record.before == pytest.approx(subject.loss(subject.network))
    assert record.after == pytest.approx(subject.loss(network))
    assert record.calibration_images == len(subject.calibration)
    assert record.check_images == len(subject.check.images)
    assert record.seconds > 0


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def weight_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.named_parameters() if not name.endswith("bias")}


def test_low_ranks_of_the_weight_become_plainly_better(subject: Subject) -> None:
    record, network = subject.run()
    assert_recorded_as_it_was(record, subject, network)
    assert record.after < 0.4 * record.before
    fresh = FunctionNorm(subject.original, synthetic(200, 7), CPU)
    every = np.arange(200)
    assert fresh.losses(network, every).mean < 0.6 * fresh.losses(subject.network, every).mean


def test_steps_come_front_to_back_and_together_while_they_help(subject: Subject) -> None:
    record, _ = subject.run()
    together = [(name, "both factors") for name in ["0", "3", "6", "9", "12"]]
    assert [(step.layer, step.kind) for step in record.steps] == [*together, ("", "batch-norm statistics")]
    assert {(step.before, step.after) for step in record.steps[:3]} == {(record.before, record.steps[0].after)}


class FirstWorse(FunctionNorm):
    """A function norm that grows once, at the second call, and then falls."""

    calls = 0

    def compare(self, outputs: Tensor, indices: Tensor) -> Any:
        self.calls += 1
        return super().compare(outputs, indices) * 0 + (10.0 if self.calls == 2 else 1.0 / self.calls)


def test_layers_that_do_not_help_together_are_tried_one_by_one(subject: Subject) -> None:
    job = Reconstruction(
        original=subject.original,
        network=copy.deepcopy(subject.network),
        layers=subject.layers,
        calibration=subject.calibration,
        check=FirstWorse(subject.original, subject.check.images, CPU),
        device=CPU,
    )
    steps = job.run().steps
    assert [step.layer for step in steps] == ["0", "3", "6", "9", "12", ""]
    assert [step.after for step in steps] == [1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 6, 1 / 7]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("choice", ["weight", "activation"])
def test_every_method_is_refitted_and_keeps_its_shapes(method: str, choice: str) -> None:
    subject = subject_with(method=method, choice=choice)
    assert method in {layer.method for layer in subject.layers}
    original = state(subject.original)
    record, network = subject.run()
    assert_recorded_as_it_was(record, subject, network)
    assert weight_shapes(network) == weight_shapes(subject.network)
    assert record.after < (0.6 if choice == "weight" else 0.98) * record.before
    assert any(step.kept for step in record.steps)
    assert all(torch.equal(value, original[name]) for name, value in subject.original.state_dict().items())
    ours = {value.data_ptr() for value in network.state_dict().values()}
    assert ours.isdisjoint(value.data_ptr() for value in subject.original.state_dict().values() if value.numel() > 1)


def test_the_network_is_left_in_eval_mode_without_hooks_and_gradients(subject: Subject) -> None:
    _, network = subject.run()
    for module in [*network.modules(), *subject.original.modules()]:
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(norm.momentum == 0.1 for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))


def test_layers_that_are_called_several_times_are_refitted_to_all_calls() -> None:
    subject = Subject(Recurrent(), synthetic(64, 3), synthetic(32, 4), choice="activation")
    record, network = subject.run()
    assert_recorded_as_it_was(record, subject, network)
    assert record.after < 0.9 * record.before
    job = Reconstruction(subject.original, network, subject.layers, subject.calibration, subject.check, CPU)
    calls = {layer.name: job._calls[layer.name] for layer in job._in_order()}
    assert calls == {"first": 1, "again": 4, "step": 4, "last": 1}
    rows = job._outputs_of_original(job._in_order())
    assert {name: {len(of_batch) for of_batch in of_layer} for name, of_layer in rows.items()} == {
        name: {count} for name, count in calls.items()
    }


class Worse(FunctionNorm):
    """A function norm that grows with every call."""

    calls = 0

    def compare(self, outputs: Tensor, indices: Tensor) -> Any:
        self.calls += 1
        return super().compare(outputs, indices) * 0 + self.calls


def test_a_step_that_does_not_help_is_undone_to_the_last_bit(subject: Subject) -> None:
    network, before = copy.deepcopy(subject.network), state(subject.network)
    job = Reconstruction(
        original=subject.original,
        network=network,
        layers=subject.layers,
        calibration=subject.calibration,
        check=Worse(subject.original, subject.check.images, CPU),
        device=CPU,
    )
    record = job.run()
    assert (record.before, record.after) == (1.0, 1.0)
    # The second and the ninth are of layers together; one by one, each has both factors tried and then the last.
    assert [step.after for step in record.steps] == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 11.0, 12.0, 13.0, 14.0]
    assert [step.kind for step in record.steps[:4]] == ["both factors", "last factor"] * 2
    assert not any(step.kept for step in record.steps)
    assert list(state(network)) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in state(network).items())


def test_the_same_seed_gives_the_same_network(subject: Subject) -> None:
    (first, one), (second, two) = subject.run(), subject.run()
    assert first.model_copy(update={"seconds": 0.0}) == second.model_copy(update={"seconds": 0.0})
    assert all(torch.equal(value, state(two)[name]) for name, value in state(one).items())


def test_at_full_rank_there_is_next_to_nothing_to_gain() -> None:
    subject = subject_with(share=1.0)
    record, _ = subject.run()
    assert record.after <= record.before


def refitted(layer: nn.Module, inputs: Tensor, **options: Any) -> tuple[Subject, nn.Module]:
    """A network of one linear layer between nothings; factors are fitted on all inputs."""
    images = from_batches([inputs], len(inputs))
    subject = Subject(nn.Sequential(nn.Identity(), layer).eval().requires_grad_(False), images, images, **options)
    return subject, subject.run()[1]


@pytest.mark.parametrize("shape", [(60,), (12, 5), (6, 2, 5)])
def test_a_linear_layer_reaches_the_best_of_its_rank(shape: tuple[int, ...]) -> None:
    """Reduced-rank regression has a closed form: the leading directions of the fitted outputs."""
    torch.manual_seed(0)
    inputs = torch.randn(*shape, 8) * torch.tensor([3, 2, 2, 1, 1, 0.5, 0.5, 0.2]) + 1
    layer = nn.Linear(8, 7)
    subject, network = refitted(layer, inputs, share=0.7)
    assert subject.ranks == {"1": 2}
    outputs = layer(inputs).detach().flatten(0, -2).double()
    values = torch.linalg.svdvals(outputs - outputs.mean(0))
    found = (network(inputs) - layer(inputs)).detach().double().square().sum()
    assert float(found) == pytest.approx(float(values[2:].square().sum()), rel=0.03)
    # The mean is right to the last digit, whatever the rank.
    torch.testing.assert_close(network(inputs).flatten(0, -2).mean(0), outputs.float().mean(0), rtol=1e-4, atol=1e-4)


def test_outputs_that_the_network_does_not_use_are_given_up() -> None:
    """One feature is kept: that of the small output, because the large one is multiplied by nothing."""
    torch.manual_seed(0)
    layer, reader = nn.Linear(6, 6, bias=False), nn.Linear(6, 2, bias=False)
    layer.weight.data = torch.diag(torch.tensor([5.0, 4.0, 3.0, 1.0, 1.0, 1.0]))
    reader.weight.data = torch.eye(6)[[3, 4]] + 1e-3 * torch.randn(2, 6)
    network = nn.Sequential(layer, reader).eval().requires_grad_(False)
    inputs = torch.randn(200, 6)
    images = from_batches([inputs], 200)
    subject = Subject(network, images, images, share=0.7, include=["0"])
    record, found = subject.run()
    assert subject.ranks == {"0": 2}
    assert record.after < 0.05 * record.before
    assert_recorded_as_it_was(record, subject, found)


def test_a_network_that_is_one_layer_is_replaced() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 12).eval().requires_grad_(False)
    inputs = torch.randn(100, 12) @ torch.randn(12, 12)
    subject = Subject(layer, from_batches([inputs], 100), from_batches([inputs[:50]], 50))
    assert list(subject.ranks) == [""]
    record, network = subject.run()
    assert any(step.kept for step in record.steps)
    assert_recorded_as_it_was(record, subject, network)


class Crossed(nn.Module):
    """Defined last to first."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def test_front_to_back_is_the_order_of_use() -> None:
    torch.manual_seed(0)
    images = from_batches([torch.randn(60, 12)], 60)
    subject = Subject(Crossed().eval().requires_grad_(False), images, images)
    record, _ = subject.run()
    assert [step.layer for step in record.steps] == ["first", "last"]


def test_each_layer_is_fitted_to_the_inputs_it_receives() -> None:
    """The second of two linear layers can make up for what the first did, as long as its features are there."""
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)).eval().requires_grad_(False)
    images = from_batches([torch.randn(80, 10)], 80)
    subject = Subject(original, images, images, include=["1"], share=0.9)
    network = copy.deepcopy(subject.network)
    network[0].weight.mul_(2)
    network[0].bias.add_(1)
    record, found = subject.run(network)
    assert record.after < 0.05 * record.before
    inputs = images.batch(slice(None))
    error = (found(inputs) - original(inputs)).square().sum(1).mean()
    assert float(error) == pytest.approx(record.after, rel=1e-4)


# Degenerate layers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", ["zero weight", "dead", "constant images"])
def test_layers_that_do_nothing_end_nothing(method: str, fault: str) -> None:
    network = small_network()
    images, check = synthetic(20, 0), synthetic(10, 1)
    if fault == "zero weight":
        network[3].weight.data.zero_()
    if fault == "dead":
        network[1].weight.data.zero_()
        network[1].bias.data.fill_(-1)
    if fault == "constant images":
        images, check = (from_batches([torch.ones(count, 3, 8, 8)], count) for count in (20, 10))
    subject = Subject(network, images, check, choice="activation", method=method)
    record, found = subject.run()
    assert_recorded_as_it_was(record, subject, found)
    assert all(bool(value.isfinite().all()) for value in found.state_dict().values())
