"""How records spell factorizations, and what the factors are fitted to; without torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from compressor.factorization.registry import CHANNELS, COMPETITIONS, METHODS


def _check_method(name: str) -> str:
    if name not in (*METHODS, CHANNELS):
        raise ValueError(f"unknown method {name!r}; methods are {', '.join((*METHODS, CHANNELS))}")
    return name


def _check_choice(name: str) -> str:
    if name not in (*COMPETITIONS, *METHODS, CHANNELS):
        choices = ", ".join((*COMPETITIONS, *METHODS, CHANNELS))
        raise ValueError(f"unknown method {name!r}; choices are {choices}")
    return name


# Of the registry, to which methods can be added: no Literal.
Method = Annotated[str, AfterValidator(_check_method)]
MethodChoice = Annotated[str, AfterValidator(_check_choice)]

FactorKind = Literal["weight", "refit", "activation"]
"""Of the weight alone; the weight's with the last factor refitted to calibration images; all fitted to these."""

FactorChoice = Literal["auto", "weight", "refit", "activation"]
"""A kind for all layers, or "auto" to measure which suits each."""
