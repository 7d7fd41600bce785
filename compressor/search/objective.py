"""The objective J(theta): fidelity against size, Eqs. (2) and (3), always to be maximized."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import InputError
from compressor.search.records import Form

LOST_SHARE = 0.25  # of the output: a network that has lost as much is of no use


@dataclass(frozen=True)
class Objective:
    """J = -gamma L - R (form "ratio", Eq. 3 with gamma for kappa) or J = -gamma L + 1/R (form "rate", Eq. 2).

    With a limit of R it is J = -gamma L, over the plans that keep to the limit: gamma is then only the unit of L.

    L is the function norm or another loss, known with noise. R is the size of the compressible layers over their
    original size, known exactly. The rate form is unbounded as R goes to 0: with a small gamma it prefers a destroyed
    network to any useful one.

    Attributes:
        gamma: weight of the loss.
        form: of the size term.
        limit: R of the plans that are searched for is at most this; None weighs R against L.

    Raises:
        InputError: gamma is not a positive finite number.
    """

    gamma: float
    form: Form = "ratio"
    limit: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.gamma) and self.gamma > 0):
            raise InputError(f"gamma must be a positive number, got {self.gamma}")

    def size_term(self, ratio: NDArray[np.float64]) -> NDArray[np.float64]:
        """The part of J that is known exactly, in the shape of R."""
        if self.limit is not None:
            return np.zeros_like(ratio)
        return -ratio if self.form == "ratio" else 1.0 / ratio

    def allows(self, ratio: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether R keeps to the limit, in its shape."""
        return np.asarray(ratio <= (np.inf if self.limit is None else self.limit))

    def value(self, function_norm: NDArray[np.float64], ratio: NDArray[np.float64]) -> NDArray[np.float64]:
        """J (...,) for function norms L (...,) and ratios R (...,)."""
        return self.size_term(ratio) - self.gamma * function_norm


def default_gamma(loss_when_lost: float) -> float:
    """gamma at which losing LOST_SHARE of the output costs as much as the whole size, R = 1.

    With the whole output in its place, networks of which little can be taken are worth less than no network at all: a
    constant output, the images' mean, loses less than E||f*||^2.

    Args:
        loss_when_lost: L of a network whose outputs carry no information: E||f*||^2 for the function norm, else
            `loss_of_guessing`.

    Raises:
        InputError: the outputs are all zero.
    """
    if loss_when_lost <= 0:
        raise InputError("the network's outputs on these images are all zero: there is nothing to preserve")
    return 1.0 / (LOST_SHARE * loss_when_lost)
