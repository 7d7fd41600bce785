"""One entry per factorization, from which choices, applicability and the report's words follow; one more is added."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from compressor import apply_plan, compress
from compressor.data.batches import from_batches
from compressor.data.images import ImageSet
from compressor.factorization.base import Factors
from compressor.factorization.records import Method, MethodChoice
from compressor.factorization.registry import (
    COMPETITIONS,
    METHODS,
    Factorization,
    applicable_methods,
    competing_methods,
    find_break_even_rank,
    is_pointwise,
    method_choices,
    register,
)
from compressor.factorization.spatial import SpatialFactors
from compressor.pipeline.plan import read_plan
from compressor.pipeline.settings import Settings
from compressor.search.settings import SearchSettings
from tests.unmeasured import without_measuring

LINEAR, CONVOLUTION, GROUPED = ((8, 6), 1), ((8, 6, 3, 3), 1), ((8, 3, 3, 3), 2)


class EvenSpatialFactors(SpatialFactors):
    """A spatial split with an even number of features, at least two: rank 7 is built as 6."""

    @staticmethod
    def factor_params(shape: Sequence[int], groups: int, rank: int) -> tuple[int, ...]:
        return SpatialFactors.factor_params(shape, groups, even(rank))

    def build(self, rank: int) -> nn.Sequential:
        self.check_rank(rank)
        return super().build(even(rank))

    def nested(self, limit: int) -> None:  # type: ignore[override]
        return None

    def squared_error(self, rank: int) -> float:
        return super().squared_error(even(rank))


def even(rank: int) -> int:
    return max(2, rank - rank % 2)


EVEN = Factorization(
    name="even",
    implementation=EvenSpatialFactors,
    applies_to=lambda shape, groups: not is_pointwise(shape),
    explanation="a spatial split with an even number of features",
    competes_under=("auto+cp",),
)


@pytest.fixture
def registered() -> Iterator[None]:
    register(EVEN)
    yield
    del METHODS["even"]


def test_every_entry_leads_to_its_class_and_has_its_words() -> None:
    for name, entry in METHODS.items():
        assert entry.name == name
        assert issubclass(entry.factors, Factors)
        assert Path(sys.modules[entry.factors.__module__].__file__ or "").stem == name
        assert entry.explanation
        assert set(entry.competes_under) <= set(COMPETITIONS)


def test_names_choices_and_words_come_without_torch() -> None:
    program = (
        "import sys\n"
        "from compressor.factorization import records, registry\n"
        "registry.method_choices(), [entry.explanation for entry in registry.METHODS.values()]\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_applies_where() -> None:
    assert applicable_methods(*LINEAR) == ("svd", "interpolative")
    assert applicable_methods((8, 6, 1, 1), 1) == ("svd", "interpolative")
    assert applicable_methods((8, 3, 1, 1), 2) == ("svd",)
    assert applicable_methods(*CONVOLUTION) == ("spatial", "tucker", "cp", "interpolative")
    assert applicable_methods(*GROUPED) == ("spatial",)


def test_what_competes_and_what_can_be_chosen() -> None:
    assert competing_methods("auto") == ("spatial", "tucker", "interpolative")
    assert competing_methods("auto+cp") == ("spatial", "tucker", "cp", "interpolative")
    assert competing_methods("tucker") == ()
    assert method_choices() == ("auto", "auto+cp", "spatial", "tucker", "cp", "interpolative", "channels")
    assert competing_methods("channels") == competing_methods("auto")


def test_the_two_factor_methods() -> None:
    assert [name for name, entry in METHODS.items() if entry.two_factors] == ["svd", "spatial"]


@pytest.mark.parametrize(("kind", "refused"), [(Method, "auto"), (MethodChoice, "qr")])
def test_records_know_the_names(kind: object, refused: str) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(kind)
    assert [adapter.validate_python(name) for name in METHODS] == list(METHODS)
    with pytest.raises(ValidationError, match=f"unknown method '{refused}'"):
        adapter.validate_python(refused)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (Factorization("svd", EvenSpatialFactors, EVEN.applies_to, ""), "there already is a method 'svd'"),
        (Factorization("auto", EvenSpatialFactors, EVEN.applies_to, ""), "there already is a method 'auto'"),
        (Factorization("odd", EvenSpatialFactors, EVEN.applies_to, "", ("all",)), "odd competes under all, not auto"),
    ],
)
def test_an_entry_that_would_not_work_is_refused(entry: Factorization, sentence: str) -> None:
    before = dict(METHODS)
    with pytest.raises(ValueError, match=sentence):
        register(entry)
    assert before == METHODS


@pytest.mark.usefixtures("registered")
def test_one_entry_adds_a_factorization() -> None:
    assert applicable_methods(*CONVOLUTION) == ("spatial", "tucker", "cp", "interpolative", "even")
    assert applicable_methods(*GROUPED) == ("spatial", "even")
    assert applicable_methods(*LINEAR) == ("svd", "interpolative")
    assert "even" in competing_methods("auto+cp")
    assert "even" not in competing_methods("auto")
    assert method_choices()[-2:] == ("even", "channels")
    assert METHODS["even"].two_factors is EvenSpatialFactors
    counts = [METHODS["even"].num_params((8, 6, 3, 3), 1, rank) for rank in range(1, 8)]
    assert counts == [84, 84, 84, 168, 168, 252, 252]
    assert find_break_even_rank("even", (8, 6, 3, 3), 1, 432) == 11


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    ).eval()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    torch.manual_seed(1)
    return from_batches([torch.randn(100, 3, 8, 8)], 100)


@pytest.mark.usefixtures("registered")
def test_an_added_factorization_compresses_a_network(network: nn.Module, images: ImageSet, tmp_path: Path) -> None:
    search = SearchSettings(max_evaluations=6, samples=8, seed=1)
    settings = Settings(search=search, method="even", gamma=1e-9, layers=["0", "2"])
    with without_measuring(pages=True):
        result = compress(network, images, tmp_path / "out", settings)
        plan = read_plan(tmp_path / "out" / "plan.json")
        applied = apply_plan(network, images, plan, tmp_path / "again", settings)
    assert [row.method for row in plan.layers] == ["even", "even"]
    for name in ("0", "2"):
        first, second = result.model.get_submodule(name)
        assert first.out_channels == second.in_channels
        assert first.out_channels % 2 == 0
    assert sum(layer.params_compressed or 0 for layer in result.report.layers) < sum(
        layer.params for layer in result.report.layers
    )
    assert EVEN.explanation in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    with torch.inference_mode():
        torch.testing.assert_close(applied.model(images.batch([0])), result.model(images.batch([0])))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("choice", "competes"), [("auto", False), ("auto+cp", True)])
def test_an_added_factorization_competes_where_it_says(
    network: nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, competes: bool
) -> None:
    built: list[int] = []
    build = EvenSpatialFactors.build
    monkeypatch.setattr(EvenSpatialFactors, "build", lambda factors, rank: built.append(rank) or build(factors, rank))
    search = SearchSettings(max_evaluations=4, samples=8, seed=1)
    with without_measuring():
        compress(network, images, tmp_path / "out", Settings(search=search, method=choice, gamma=1e-9, layers=["2"]))
    assert bool(built) == competes
