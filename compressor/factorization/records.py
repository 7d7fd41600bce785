"""TODO docstring."""

from typing import Literal

Method = Literal["svd", "spatial", "tucker", "cp", "interpolative"]
FactorKind = Literal["weight", "refit", "activation"]
FactorChoice = Literal["auto", "weight", "refit", "activation"]
