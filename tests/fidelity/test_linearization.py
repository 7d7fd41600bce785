"""The linear model around a plan against the network itself."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.factorization.records import MethodChoice
from compressor.fidelity import linearization as linearize
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import SingleLayerLosses
from compressor.network import hooks
from compressor.network.surgery import with_layer
from compressor.search.space import alternatives
from tests.search.initial.networks import NUM_IMAGES, Blocked, Net, Shared, curved_net, linear_net


class TokensFirst(nn.Module):
    """Linear layers on (tokens, images, features), as in CLIP's transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(10, 12), nn.Linear(12, 8), nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(tokens.transpose(0, 1))).transpose(0, 1)
        outputs: Tensor = self.last(found.flatten(1))
        return outputs


class Positions(nn.Module):
    """A layer that sees positions and no image."""

    def __init__(self, *lead: int) -> None:
        super().__init__()
        self.first, self.positions, self.last = nn.Linear(10, 12), nn.Linear(16, 12), nn.Linear(48, 5)
        self.register_buffer("where", torch.randn(*lead, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.last((self.first(tokens) * self.positions(self.where)).flatten(1))
        return outputs


@pytest.mark.parametrize(
    ("network", "shape", "method"),
    [
        (TokensFirst(), (4, 10), "auto"),
        (Positions(4), (4, 10), "auto"),
        (Positions(1, 4), (4, 10), "auto"),
        (linear_net(), (3, 8, 8), "auto"),
        (linear_net(), (3, 8, 8), "tucker"),
        (linear_net(), (3, 8, 8), "interpolative"),
        (
            nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 8, bias=False), nn.Flatten(), nn.Linear(32, 5)),
            (4, 10),
            "auto",
        ),
        (nn.Sequential(nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(), nn.Linear(432, 5)), (8, 8, 8), "auto"),
    ],
)
def test_where_the_network_is_linear_the_model_of_one_layer_is_exact(
    network: nn.Module, shape: tuple[int, ...], method: MethodChoice
) -> None:
    net, images = Net(network, shape, method), np.arange(7, 32)
    plan = np.maximum(net.space.break_even_ranks // 2, 1)
    others = alternatives(net.space, plan)
    model = net.linearize(plan, others, images, 10)
    np.testing.assert_allclose(model.residuals, net.residuals(plan, images), atol=1e-5)
    for layer, ranks in enumerate(others):
        assert int(plan[layer]) not in ranks
        for rank in ranks:
            changed = plan.copy()
            changed[layer] = rank
            found = model.residuals + model.changes[layer][rank]
            np.testing.assert_allclose(found, net.residuals(changed, images), atol=1e-4)


def test_a_small_step_of_all_layers_of_a_curved_network_is_predicted() -> None:
    net, images = Net(curved_net()), np.arange(NUM_IMAGES)
    plan = net.space.break_even_ranks - 3
    model = net.linearize(plan, [[int(rank) + 1] for rank in plan], images, 10)
    moved = model.residuals + sum(rows[int(rank) + 1] for rows, rank in zip(model.changes, plan, strict=True))
    truth, before = net.residuals(plan + 1, images), model.residuals
    assert np.square(moved - truth).sum() < 0.3 * np.square(before - truth).sum()


def test_layers_that_work_in_place_change_nothing() -> None:
    plan, images = np.array([4, 5, 3]), np.arange(20)
    models = []
    for inplace in (True, False):
        net = Net(curved_net(inplace))
        models.append(net.linearize(plan, alternatives(net.space, plan), images, 10))
    np.testing.assert_allclose(models[0].residuals, models[1].residuals)
    for first, second in zip(models[0].changes, models[1].changes, strict=True):
        assert all(np.allclose(first[rank], second[rank]) for rank in first)


def test_with_many_outputs_lengths_are_kept_on_average() -> None:
    net, images = Net(linear_net(outputs=200)), np.arange(NUM_IMAGES)
    plan = np.maximum(net.space.break_even_ranks // 2, 1)
    model = net.linearize(plan, [[1]] * len(plan), images, 10)
    assert model.residuals.shape == (NUM_IMAGES, 10)
    truth = np.square(net.residuals(plan, images)).sum(1)
    assert np.square(model.residuals).sum(1).mean() == pytest.approx(truth.mean(), rel=0.3)
    assert model.passes == NUM_IMAGES * (1 + 15 + 1)


def test_combinations_of_outputs_are_at_right_angles_and_keep_lengths_on_average() -> None:
    along = linearize._directions(np.arange(4000), 8, 3).numpy()
    gram = np.einsum("bkp,bkq->bpq", along, along)
    np.testing.assert_allclose(gram, np.broadcast_to(8 / 3 * np.eye(3), gram.shape), atol=1e-5)
    np.testing.assert_allclose(np.einsum("bkp,blp->kl", along, along) / len(along), np.eye(8), atol=0.05)


def test_a_large_network_is_taken_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = Net(linear_net(outputs=40)), np.arange(23)
    plan = np.maximum(net.space.break_even_ranks // 2, 1)
    whole = net.linearize(plan, alternatives(net.space, plan), images, 10)
    sizes, at_once = [], []
    forward, slopes = linearize._forward, linearize._slopes
    monkeypatch.setattr(hooks, "MAX_ACTIVATIONS", 6_000)
    monkeypatch.setattr(linearize, "MAX_GRADIENTS", 6_000)
    monkeypatch.setattr(
        linearize,
        "_forward",
        lambda network, names, axes, inputs: sizes.append(len(inputs)) or forward(network, names, axes, inputs),
    )
    monkeypatch.setattr(
        linearize,
        "_slopes",
        lambda values, outputs, dtype, last: (
            at_once.append((values.shape[1], dtype)) or slopes(values, outputs, dtype, last=last)
        ),
    )
    parts = net.linearize(plan, alternatives(net.space, plan), images, 10)
    assert max(sizes) in (2, 3)
    assert {count for count, _ in at_once} <= {2, 3, 4, 5, 6}
    assert {dtype for _, dtype in at_once} == {torch.bfloat16}
    np.testing.assert_allclose(whole.residuals, parts.residuals, atol=1e-5)
    for one, two in zip(whole.changes, parts.changes, strict=True):
        for rank, change in one.items():
            assert np.linalg.norm(change - two[rank]) <= 0.01 * np.linalg.norm(change)


# One layer alone


@pytest.mark.parametrize("limit", [10**8, 1])
def test_losses_of_a_linear_network_with_one_layer_replaced_are_exact(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linearize, "MAX_GRADIENTS", limit)
    monkeypatch.setattr(linearize, "MAX_TRIED", limit)
    net = Net(linear_net())
    names = [layer.name for layer in net.layers]
    alone = SingleLayerLosses(net.norm, net.network, names, 10)
    images = np.arange(NUM_IMAGES if limit > 1 else linearize.MIN_IMAGES)
    for name in names:
        for rank in (1, 3):
            substitute = net.factors[name].build(rank)
            found = alone(name, substitute)
            truth = net.norm.losses(with_layer(net.network, name, substitute), images).mean
            assert found == pytest.approx(truth, rel=1e-2)  # gradients are rounded to 16 bits
        assert len(alone._held) == (1 if limit == 1 else len(names))


def test_single_layer_losses_count_every_call_of_a_shared_layer() -> None:
    torch.manual_seed(0)
    net = Net(Shared(), (10,))
    substitute = net.factors["layer"].build(5)
    twice = SingleLayerLosses(net.norm, net.network, ["layer"], 10)("layer", substitute)
    inputs = net.norm.images.batch(range(NUM_IMAGES))
    layer = net.network.get_submodule("layer")
    change = layer(substitute(inputs)) - layer(layer(inputs)) + substitute(layer(inputs)) - layer(layer(inputs))
    assert twice == pytest.approx(float(change.square().sum(1).mean()), rel=1e-3)


def test_a_layer_without_gradients_is_measured() -> None:
    net = Net(nn.Sequential(nn.Linear(10, 10), Rounded(), nn.Linear(10, 5)), (10,))
    substitute = net.factors["0"].build(2)
    found = SingleLayerLosses(net.norm, net.network, ["0", "2"], 10)("0", substitute)
    truth = net.norm.losses(with_layer(net.network, "0", substitute), np.arange(NUM_IMAGES)).mean
    assert found == pytest.approx(truth) != 0.0


class Rounded(nn.Module):
    """Passes no gradient."""

    def forward(self, value: Tensor) -> Tensor:
        return (4 * value).round()


def test_a_layer_called_twice_counts_twice_and_one_without_gradients_not_at_all() -> None:
    torch.manual_seed(0)
    net, images = Net(Shared(), (10,)), np.arange(NUM_IMAGES)
    plan = np.array([int(net.space.break_even_ranks[0]) - 1])
    rank = int(plan[0]) - 1
    model = net.linearize(plan, [[rank]], images, 10)
    before, after = net.factors["layer"].build(int(plan[0])), net.factors["layer"].build(rank)
    inputs = net.norm.images.batch(range(NUM_IMAGES))
    middle = before(inputs)
    first = before(after(inputs)) - before(middle)  # linear, but for the bias, which cancels
    second = after(middle) - before(middle)
    np.testing.assert_allclose(model.changes[0][rank], (first + second).numpy(), atol=1e-5)
    blocked = Net(Blocked(), (10,))
    assert not blocked.linearize(plan, [[rank]], images, 10).changes[0][rank].any()


class SeveralRows(nn.Module):
    """A linear layer that sees three rows of every image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.reshape(-1, 4)).reshape(len(inputs), 15)


def test_rows_of_an_image_add_up() -> None:
    torch.manual_seed(0)
    network, substitute = SeveralRows().eval(), nn.Linear(4, 5, bias=False)
    norm = FunctionNorm(network, ImageSet(torch.randn(10, 12), "random"), torch.device("cpu"))
    expected = norm.losses(with_layer(network, "layer", substitute), np.arange(10)).mean
    found = SingleLayerLosses(norm, network, ["layer"], directions=15)("layer", substitute)
    assert found == pytest.approx(expected, rel=1e-4)
