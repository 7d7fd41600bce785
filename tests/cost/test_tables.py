"""What ranks cost: exact where it can be counted, measured in ONNX Runtime where it cannot."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import swin_t

from compressor.cost.layer_latency import LayerClock, time_in_turn
from compressor.cost.records import Cost
from compressor.cost.tables import MEASURED_RANKS, cost_tables, saves_nothing
from compressor.factorization.registry import METHODS
from compressor.network.attention import open_attention
from compressor.network.layers import FoundLayer, compressible, find_layers
from compressor.network.macs import count_macs
from compressor.network.surgery import build_candidate
from compressor.report.records import Report
from compressor.search.space import RankSpace
from exporters.onnx import layer_bytes
from exporters.session import CUDA
from tests.unmeasured import without_measuring

METHOD_NAMES = ("spatial", "tucker", "cp", "interpolative")


def no_clock(_key: str, _modules: Sequence[nn.Module], _value: Tensor) -> list[float]:
    pytest.fail("nothing is to be timed")


class Network(nn.Module):
    """Layers of every kind, one of them called on more positions than its input has."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 12, (3, 5), stride=(2, 1), padding=(1, 2), bias=False)
        self.middle = nn.Conv2d(12, 16, 3, stride=2, padding="valid", dilation=2)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.point = nn.Conv2d(16, 20, 1, stride=2)
        self.head = nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        value = self.point(self.grouped(self.middle(self.wide(images))))
        return self.head(value.flatten(2).mT).mean(1)


def subject(method: str) -> tuple[nn.Module, list[FoundLayer], Tensor]:
    torch.manual_seed(0)
    model, example = Network().eval(), torch.randn(2, 3, 21, 18)
    return model, compressible(find_layers(model, example[:1], method)), example  # type: ignore[arg-type]


def tables(cost: Cost, model: nn.Module, layers: Sequence[FoundLayer], example: Tensor) -> dict[str, list[float]]:
    factors = {layer.name: METHODS[layer.method].factorize(layer.module) for layer in layers if layer.method}
    found = cost_tables(cost, model, layers, factors, example, no_clock)
    return {layer.name: table for layer, table in zip(layers, found, strict=True)}


@pytest.mark.parametrize("method", METHOD_NAMES)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_macs_are_those_that_run(method: str, data: st.DataObject) -> None:
    model, layers, example = subject(method)
    costs = tables("macs", model, layers, example)
    ranks = {layer.name: data.draw(st.integers(1, layer.dense_rank)) for layer in layers}
    factors = {layer.name: METHODS[layer.method].factorize(layer.module) for layer in layers if layer.method}
    below = {layer.name: ranks[layer.name] for layer in layers if ranks[layer.name] < layer.dense_rank}
    macs, _ = count_macs(build_candidate(model, factors, below), example)
    untouched = count_macs(model, example)[0] - sum(layer.macs for layer in layers)
    assert untouched + sum(costs[name][rank - 1] for name, rank in ranks.items()) == pytest.approx(macs, rel=1e-9)


def test_macs_of_attention_in_windows_are_those_of_one_image() -> None:
    """Windows lie along the batch of a layer's input."""
    torch.manual_seed(0)
    example = torch.randn(1, 3, 64, 64)
    model = open_attention(swin_t(num_classes=4).eval(), example)
    layer = next(layer for layer in compressible(find_layers(model, example)) if "attn.qkv" in layer.name)
    costs = tables("macs", model, [layer], example)[layer.name]
    factors = METHODS["svd"].factorize(layer.module)
    macs, _ = count_macs(build_candidate(model, {layer.name: factors}, {layer.name: 5}), example)
    assert costs[4] - costs[-1] == pytest.approx(macs - count_macs(model, example)[0])


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_bytes_are_those_stored(method: str) -> None:
    model, layers, example = subject(method)
    costs = tables("bytes", model, layers, example)
    for layer in layers:
        assert layer.method is not None
        factors = METHODS[layer.method].factorize(layer.module)
        for rank in {1, layer.dense_rank // 2, layer.dense_rank - 1} - {0}:
            state = factors.build(rank).state_dict().values()
            assert costs[layer.name][rank - 1] == sum(value.numel() * value.element_size() for value in state)
        assert costs[layer.name][-1] == sum(value.numel() * 4 for value in layer.module.state_dict().values())


def test_parameters_are_the_layers_own_table() -> None:
    model, layers, example = subject("spatial")
    costs = tables("params", model, layers, example)
    assert {layer.name: layer.params_by_rank() for layer in layers} == costs


def test_times_are_measured_at_some_ranks_and_interpolated_between() -> None:
    model, layers, example = subject("spatial")
    keys = []

    def clock(key: str, modules: Sequence[nn.Module], value: Tensor) -> list[float]:
        """Ten for the layer, then 1, 2, ...; every module takes the input that the layer gets."""
        keys.append(key)
        assert {tuple(module(value).shape) for module in modules} == {tuple(modules[0](value).shape)}
        assert len(value) == len(example)
        return [10.0, *map(float, range(1, len(modules)))]

    factors = {layer.name: METHODS[layer.method].factorize(layer.module) for layer in layers if layer.method}
    found = cost_tables("latency", model, layers, factors, example, clock)
    assert len(set(keys)) == len(layers)
    for layer, table in zip(layers, found, strict=True):
        assert len(table) == layer.dense_rank
        assert table[-1] == 10.0
        assert table[0] == 1.0
        assert table[-2] == len(np.unique(np.geomspace(1, layer.dense_rank - 1, MEASURED_RANKS).round()))
        assert (np.diff(table[:-1]) >= 0).all()


def test_a_layer_that_no_rank_makes_cheaper_saves_nothing() -> None:
    assert saves_nothing([3.0, 4.0, 3.0])
    assert not saves_nothing([2.9, 4.0, 3.0])


def test_ranks_that_cost_as_much_as_the_layer_are_not_in_the_lattice() -> None:
    space = RankSpace(["a", "b"], [[1.0, 3.0, 2.0, 3.5, 3.0], [1.0, 2.0]])
    assert space.choices[0].tolist() == [1, 3, 5]
    assert space.choices[1].tolist() == [1, 2]
    assert space.ratio(np.array([3, 1])) == pytest.approx(3 / 5)


# --- The clock -------------------------------------------------------------------------------------------------


def models(*sizes: int) -> list[bytes]:
    value = torch.randn(1, 8, 24, 24)
    return [layer_bytes(nn.Conv2d(8, size, 3, padding=1), value) for size in sizes]


def test_more_work_takes_more_time() -> None:
    value = np.random.default_rng(0).standard_normal((1, 8, 24, 24), dtype=np.float32)
    small, large = time_in_turn(models(1, 256), value, threads=1)
    assert 0 < small < large


def test_a_layer_is_measured_once(tmp_path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr("compressor.cost.layer_latency.time_in_turn", lambda *given: calls.append(given) or [1.5, 2.5])
    value, cache = np.zeros((1, 8, 4, 4), np.float32), tmp_path / "deep" / "cache.json"
    clock = LayerClock(1, cache=cache)
    assert clock.measure("layer", lambda: [], value) == [1.5, 2.5] == clock.measure("layer", lambda: [], value)
    assert LayerClock(1, cache=cache).measure("layer", lambda: pytest.fail("made again"), value) == [1.5, 2.5]
    assert len(calls) == 1
    LayerClock(2, cache=cache).measure("layer", lambda: [], value)
    LayerClock(1, CUDA, cache).measure("layer", lambda: [], value)
    clock.measure("other layer", lambda: [], value)
    clock.measure("layer", lambda: [], value[..., :2])
    assert len(calls) == 5
    cache.write_text('{"damaged')
    assert LayerClock(1, cache=cache).measure("layer", lambda: [], value) == [1.5, 2.5]


# --- A whole run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["macs", "latency"])
def test_a_run_lowers_what_counts(cost, tiny_checkpoint, digit_images, invoke, tmp_path) -> None:
    arguments = ("--trust-pickle", "--data", digit_images, "--input-size", 32, "--samples", 6, "--method", "spatial")
    budget = ("--max-evaluations", 8, "--cost", cost, "--out", tmp_path / "out")
    with without_measuring():
        result = invoke("bocompress-export", tiny_checkpoint, *arguments, *budget, "--factors", "weight")
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert report.cost == cost
    rows = [layer for layer in report.layers if layer.skipped is None]
    if cost == "macs":
        share = sum(row.macs_compressed or row.macs for row in rows) / sum(row.macs for row in rows)
        assert report.ratio == pytest.approx(share, rel=1e-9)
    for row in report.layers:
        assert row.skipped is None or f"times as much {'time' if cost == 'latency' else 'multiply'}" in row.skipped
