"""Choices from Python: each is checked before anything is done, as the command line checks its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor import InputError, Settings, Target, compress
from compressor.pipeline.settings import require_compatible
from compressor.recovery.settings import TuneSettings
from compressor.search.settings import SearchSettings
from tests.hard.networks import make_images, make_network

UNKNOWN: list[dict[str, Any]] = [
    {"gamma": -1.0},
    {"gamma": float("nan")},
    {"target": Target("ratio", -1)},
    {"target": Target("nope", 1)},  # type: ignore[arg-type]
    {"cost": "nope"},
    {"method": "nope"},
    {"precisions": ("fp32", "nope")},
    {"layers": "fc"},
    {"calibration": -5},
    {"workers": 0},
    {"batch_size": 0},
    {"prune_fraction": 1.0},
    {"max_memory_bytes": -1.0},
    *({"search": SearchSettings(**{name: value})} for name, value in (
        ("samples", 1), ("max_evaluations", 0), ("delta", 0.0), ("epsilon", 1.0), ("seed", -1), ("start", "nope")
    )),
    *({"tune": TuneSettings(**{name: value})} for name, value in (("epochs", -1), ("by", "nope"), ("batch_size", 0))),
]  # fmt: skip


@pytest.mark.parametrize("changes", UNKNOWN, ids=str)
def test_what_is_no_choice_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"the setting {next(iter(changes))}.* cannot be "):
        require_compatible(replace(Settings(), **changes))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Settings(target=Target("bytes", 4e6)), "a target in bytes needs the cost bytes, not params"),
        (Settings(target=Target("macs", 1e6), cost="bytes"), "a target in macs needs the cost macs, not bytes"),
        (Settings(target=Target("ratio", 0.5), form="rate"), "a target needs the form ratio"),
    ],
)
def test_a_target_goes_with_the_cost_and_the_form(settings: Settings, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        require_compatible(settings)


def test_defaults_are_choices() -> None:
    require_compatible(Settings())
    require_compatible(Settings(target=Target("drop", 0.5), factors=None, prune_fraction=0.5, layers=["a*"]))


def test_a_provider_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no provider 'nope'"):
        compress(make_network(), make_images(8), tmp_path / "out", Settings(provider="nope"))


@pytest.mark.parametrize("out", ["a\0b", "a" * 5000])
def test_a_folder_that_cannot_be(out: str) -> None:
    with pytest.raises(InputError, match="cannot create the folder"):
        compress(make_network(), make_images(8), out)
