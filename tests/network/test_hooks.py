"""Rows that give a layer's outputs, passes that end early, and hooks that are removed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.data.images import ImageSet
from compressor.network.hooks import (
    attached,
    batches,
    count_calls,
    inputs_of,
    noting,
    output_of,
    sample_positions,
    watch_batches,
    watching,
)

MODES = ("zeros", "reflect", "replicate", "circular")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    groups = draw(st.integers(1, 3))
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    if padding == "numbers":
        padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return nn.Conv2d(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        stride=stride,
        padding=padding,
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        groups=groups,
        padding_mode=draw(st.sampled_from(MODES)),
    )


def explained(layer: nn.Module, rows: Tensor, groups: int = 1) -> Tensor:
    """Outputs (rows, Co) by each group's own rows and weight."""
    weight = layer.weight.flatten(1).unflatten(0, (groups, -1))
    by_group = rows.unflatten(1, (groups, -1))
    return torch.einsum("rgn,gon->rgo", by_group, weight).flatten(1) + layer.bias


@settings(max_examples=80, deadline=None)
@given(convolutions(), st.integers(1, 400))
def test_rows_of_a_convolution_times_its_weight_are_its_outputs(layer: nn.Conv2d, count: int) -> None:
    images = torch.randn(3, layer.in_channels, 10, 11)
    with torch.inference_mode():
        outputs = layer(images)
        positions = sample_positions(layer, outputs, count, generator())
        rows, expected = positions.of_input(layer, images), positions.of_output(outputs)
        assert len(rows) == len(expected) == min(count, outputs[:, 0].numel())
        torch.testing.assert_close(explained(layer, rows, layer.groups), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 6), (5, 8, 6), (2, 5, 4, 6)])
@pytest.mark.parametrize("count", [7, 40, 1000])
def test_rows_of_a_linear_layer_times_its_weight_are_its_outputs(shape: tuple[int, ...], count: int) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(6, 4), torch.randn(shape)
    with torch.inference_mode():
        outputs = layer(inputs)
        positions = sample_positions(layer, outputs, count, generator())
        rows, expected = positions.of_input(layer, inputs), positions.of_output(outputs)
        assert len(rows) == min(count, 40)
        torch.testing.assert_close(explained(layer, rows), expected)


def test_places_are_distinct_random_and_everywhere() -> None:
    layer = nn.Conv2d(1, 1, 1)
    numbered = torch.arange(2 * 5 * 7.0).reshape(2, 1, 5, 7)
    every = sample_positions(layer, numbered, 1000, generator()).of_output(numbered).flatten()
    assert sorted(every.tolist()) == list(range(70))
    some, others = (sample_positions(layer, numbered, 20, generator(seed)).of_output(numbered) for seed in (1, 2))
    assert len(set(some.flatten().tolist())) == 20
    assert not torch.equal(some, others)
    again = sample_positions(layer, numbered, 20, generator(1)).of_output(numbered)
    assert torch.equal(some, again)


def test_the_same_places_in_another_network_of_that_shape() -> None:
    """How recalibration pairs what one network receives with what the other gives."""
    first, second = nn.Conv2d(2, 3, 3, stride=2), nn.Conv2d(5, 7, 1, stride=2)
    images = torch.randn(2, 2, 9, 9)
    outputs = first(images)
    positions = sample_positions(first, outputs, 10, generator())
    inputs = torch.randn(2, 5, 7, 7)
    with torch.inference_mode():
        torch.testing.assert_close(
            explained(second, positions.of_input(second, inputs)), positions.of_output(second(inputs))
        )


class Bomb(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the pass went on")


def armed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), Bomb())


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_the_input_ends_the_pass_and_leave_no_hooks() -> None:
    network, batch = armed(), torch.randn(6, 4)
    with torch.inference_mode():
        hidden = network[:2](batch)
        torch.testing.assert_close(inputs_of(network, network[2], batch), [hidden])
        assert torch.equal(inputs_of(network, network[3], batch)[0], network[2](hidden))
        assert torch.equal(inputs_of(network, network, batch)[0], batch)
    assert hooks(network) == 0


def test_the_output_is_a_copy_and_ends_the_pass() -> None:
    network, batch = armed(), torch.randn(6, 4)
    with torch.inference_mode():
        found = output_of(network, network[1], batch)
        torch.testing.assert_close(found, network[:2](batch))
        passed_on = nn.Sequential(nn.Identity(), Bomb())
        assert output_of(passed_on, passed_on[0], batch).data_ptr() != batch.data_ptr()
    assert hooks(network) == 0


def test_an_error_on_the_way_is_not_swallowed_and_leaves_no_hooks() -> None:
    network = nn.Sequential(Bomb(), nn.Linear(4, 5))
    with pytest.raises(AssertionError, match="the pass went on"):
        inputs_of(network, network[1], torch.randn(2, 4))
    assert hooks(network) == 0


def test_watching_reports_every_call_and_can_replace_outputs() -> None:
    network, batch = armed()[:3], torch.randn(6, 4)
    calls = []

    def see(number: int, value: Tensor, output: Tensor) -> Tensor | None:
        calls.append((number, tuple(value.shape), tuple(output.shape)))
        return torch.zeros_like(output) if number == 1 else None

    with torch.inference_mode(), watching([network[2], network[0]], see):
        found = network(batch)
    assert calls == [(1, (6, 4), (6, 5)), (0, (6, 5), (6, 3))]
    torch.testing.assert_close(found, network[2].bias.expand(6, 3))
    assert hooks(network) == 0


def test_noting_tells_beginnings_and_ends_in_order() -> None:
    network = armed()[:3]
    noted: list[tuple[str, nn.Module]] = []
    with noting(
        [network, network[2]],
        lambda module, _output: noted.append(("end", module)),
        lambda m: noted.append(("begin", m)),
    ):
        network(torch.randn(6, 4))
    assert noted == [("begin", network), ("begin", network[2]), ("end", network[2]), ("end", network)]
    assert hooks(network) == 0


class Crossed(nn.Module):
    """Modules that run in another order than they are defined in, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.twice, self.first = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.twice(self.first(self.twice(x))))


def test_the_order_of_use_is_that_of_the_first_calls() -> None:
    network = Crossed()
    found = count_calls(network, ["last", "twice", "first"], torch.zeros(1, 4))
    assert list(found.items()) == [("twice", 2), ("first", 1), ("last", 1)]
    assert list(count_calls(network, ["last", "first"], torch.zeros(1, 4))) == ["first", "last"]
    assert hooks(network) == 0


def test_inputs_of_several_calls_end_with_the_last_that_is_asked_for() -> None:
    network, batch = nn.Sequential(Crossed(), Bomb()), torch.randn(5, 4)
    inner = network[0]
    with torch.inference_mode():
        expected = [batch, inner.first(inner.twice(batch))]
        torch.testing.assert_close(inputs_of(network, inner.twice, batch, 2), expected)
        torch.testing.assert_close(inputs_of(network, inner.twice, batch), expected[:1])
    assert hooks(network) == 0


def test_batches_are_the_images_in_order_and_share_no_memory() -> None:
    data = torch.randn(10, 3)
    images = ImageSet(data.clone(), "test")
    for batch in batches(images, torch.device("cpu"), 4):
        batch.zero_()  # as a network that works in place would
    found = list(batches(images, torch.device("cpu"), 4))
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert torch.equal(torch.cat(found), data)


def test_hooks_are_removed_also_where_registering_one_fails() -> None:
    layer = nn.Linear(2, 2)

    def register() -> Iterator[RemovableHandle]:
        yield layer.register_forward_hook(lambda *_: None)
        raise RuntimeError("no hook here")

    with pytest.raises(RuntimeError, match="no hook here"), attached(register()):
        pytest.fail("reached")
    assert not layer._forward_hooks
    with attached([layer.register_forward_hook(lambda *_: None)]):
        assert len(layer._forward_hooks) == 1
    assert not layer._forward_hooks


def test_passes_end_with_the_last_call_of_what_is_watched() -> None:
    """The first runs to its end, since only that shows how many calls there are: here two of one module."""
    torch.manual_seed(0)
    first, shared, last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    network, found = nn.Sequential(first, shared, shared, last), []
    ends: list[int] = []
    last.register_forward_hook(lambda _module, args, _output: ends.append(len(args[0])))
    given = list(torch.randn(7, 4).split(3))
    watch_batches(network, [first, shared], given, lambda number, value, _output, size: found.append((number, size)))
    assert found == [(number, size) for size in (3, 3, 1) for number in (0, 1, 1)]
    assert ends == [3]
