"""Networks that are broken in themselves: a run ends with a plan or one sentence, and its search goes past NaN."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compressor import InputError, Settings, compress
from compressor.errors import ShortageError
from compressor.failures import explain
from compressor.fidelity.function_norm import MAX_LOSS, FunctionNorm
from compressor.search.settings import SearchSettings
from tests.hard.networks import CLASSES, make_images, make_network
from tests.unmeasured import without_measuring

IMAGES = 24
CPU = torch.device("cpu")


def change_weights(change: Callable[[nn.Parameter], torch.Tensor]) -> nn.Module:
    network = make_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(change(parameter))
    return network


def with_last_bias(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        network.get_parameter("8.bias").copy_(torch.arange(CLASSES))
    return network


def rank_one(weight: nn.Parameter) -> torch.Tensor:
    flat = weight.reshape(len(weight), -1)
    return (flat[:, :1] * flat[:1]).reshape(weight.shape)


def without_spread() -> nn.Module:
    return with_last_bias(change_weights(torch.zeros_like))


def dead() -> nn.Module:
    network = make_network()
    with torch.no_grad():
        network.get_parameter("0.bias").fill_(-1e6)
    return network


QUICK = ("all zero", "overflow", "rank one")
DEGENERATE: dict[str, Callable[[], nn.Module]] = {
    "all zero": lambda: change_weights(torch.zeros_like),
    "constant output": without_spread,
    "rank one": lambda: change_weights(rank_one),
    "dead": dead,
    "equal weights": lambda: change_weights(torch.ones_like),
    "scale 1e18": lambda: change_weights(lambda weight: 1e18 ** (1 / 4) * weight),
    "one layer of 1e18": lambda: change_weights(lambda weight: weight * (1e18 if len(weight) == CLASSES else 1)),
    "scale 1e-18": lambda: change_weights(lambda weight: 1e-18 * weight),
    "overflow": lambda: change_weights(lambda weight: 1e30 * weight),
}


REFUSED = {"all zero": "outputs on these images are all zero", "overflow": "outputs on these images are not finite"}


NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.hard) for name in DEGENERATE]


@pytest.mark.parametrize("name", NAMES)
def test_a_degenerate_network_ends_in_a_plan_or_a_sentence(name: str, tmp_path: Path) -> None:
    settings = Settings(search=SearchSettings(max_evaluations=4, samples=4), calibration=8)
    network = DEGENERATE[name]()
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            compress(network, make_images(IMAGES), tmp_path / "out", settings)
        return
    with without_measuring():
        result = compress(network, make_images(IMAGES), tmp_path / "out", settings)
    assert result.report.search is not None
    assert result.report.search.evaluations >= 1
    with torch.inference_mode():
        assert result.model(make_images(2).data).shape == (2, CLASSES)


class Odd(nn.Module):
    """The network, whose outputs, or inputs, something is done to."""

    def __init__(self, change: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        super().__init__()
        self.network, self.change = make_network(), change

    def forward(self, x: torch.Tensor) -> object:
        return self.change(self.network(x), x)


def locked() -> nn.Module:
    network = make_network()
    vars(network)["lock"] = threading.Lock()
    return network


def half_pruned() -> nn.Module:
    network = make_network()
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one row": (lambda: Odd(lambda y, x: y[:1]), r"shape \[1, 5\] for a batch of 2"),
    "rows as columns": (lambda: Odd(lambda y, x: y.T), r"shape \[5, 2\] for a batch of 2"),
    "a lock": (locked, "cannot be copied to cpu"),
    "no weights yet": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)), "cannot be copied to cpu"),
    "no values": (lambda: make_network().to("meta"), "cannot be copied to cpu"),
    "scripted": (lambda: torch.jit.script(make_network()), "cannot be copied to cpu"),
    "half pruned": (half_pruned, "cannot be copied to cpu"),
    "no Unicode": (lambda: nn.Sequential(OrderedDict({"\udcff": make_network()})), "a name that is not Unicode"),
}


@pytest.mark.parametrize("name", [*ODD])
def test_a_network_that_cannot_be_compressed_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, reason = ODD[name]
    with pytest.raises(InputError, match=reason):
        compress(make(), make_images(IMAGES), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def tied() -> nn.Module:
    first, second = nn.Linear(3 * 12 * 12, 32), nn.Linear(32, 32)
    third = nn.Linear(32, 32)
    third.weight = second.weight
    return nn.Sequential(nn.Flatten(), first, second, third, nn.Linear(32, CLASSES))


@pytest.mark.parametrize("make", [tied, lambda: Odd(lambda y, x: (y, x.zero_())[0])])
def test_networks_that_share_weights_or_write_into_their_inputs_are_compressed(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    settings, images = Settings(search=SearchSettings(max_evaluations=2, samples=4), calibration=8), make_images(IMAGES)
    with without_measuring():
        result = compress(make(), images, tmp_path / "out", settings)
    assert result.report.search is not None
    assert torch.equal(images.held, make_images(IMAGES).held)


class NotANumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), CLASSES), torch.nan)


def test_a_candidate_that_gives_no_numbers_has_a_large_finite_loss() -> None:
    norm = FunctionNorm(make_network().eval(), make_images(IMAGES), CPU)
    losses = norm.losses(NotANumber(), np.arange(6))
    assert losses.values.tolist() == [MAX_LOSS] * 6


class Hungry(nn.Module):
    """Takes at most so many images at once."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most, self.seen = copy.deepcopy(network), most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        self.seen.append(len(x))
        return self.network(x)


def test_a_batch_that_does_not_fit_is_halved_from_then_on() -> None:
    network, images = make_network().eval(), make_images(IMAGES)
    norm = FunctionNorm(network, images, CPU)
    hungry = Hungry(network, most=7)
    torch.testing.assert_close(norm.outputs(hungry, torch.arange(IMAGES)), norm.targets)
    assert max(hungry.seen) <= 7
    tried = len(hungry.seen)
    norm.outputs(hungry, torch.arange(4))
    assert hungry.seen[tried:] == [4]


def test_one_image_that_does_not_fit_is_a_shortage() -> None:
    norm = FunctionNorm(make_network().eval(), make_images(IMAGES), CPU)
    with pytest.raises(RuntimeError) as raised:
        norm.outputs(Hungry(make_network(), most=0), torch.arange(4))
    assert isinstance(explain(raised.value), ShortageError)
