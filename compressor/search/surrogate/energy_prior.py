"""Losses expected from the energy that truncation gives up, with a sensitivity for every layer learnt from looks.

L of a plan is taken for sum_l s_l E_l(r_l), E_l(r) being the share of layer l's squared weight that rank r gives up:
the squared singular values that it cuts off. The shapes are known before any look; how much a layer's energy is worth
to the network is not.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from compressor.arrays import Array, Ranks
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, looked_up, sum_of
from compressor.search.surrogate.base import Expected

MAX_OF_SATURATION = 0.5


class Energies:
    """The prior mean from truncated energies.

    Args:
        shares: for every layer what ranks 1, 2, ... and last the dense layer give up (cap,), of 1.
    """

    def __init__(self, shares: Sequence[Array]) -> None:
        self._shares = list(shares)
        self._shares_of = looked_up(self._shares)
        self._guess: Array | None = None

    def guess(self, alone: Sequence[Array]) -> None:
        """Take for first guesses how many times its energies every layer loses alone (cap,), as a geometric mean."""
        self._guess = np.array([_times(losses, share) for losses, share in zip(alone, self._shares, strict=True)])

    def learn(self, plans: Ranks, losses: Array, saturation: float = np.inf) -> Expected:
        """L as a function of ranks (..., d), before it is bent, from the losses (n,) of plans (n, d).

        Losses near `saturation` say no more than that a network is destroyed, and are left out. Least squares of
        relative errors, no sensitivity being negative; each layer's first guess counts as one look.
        ExcludedPoints guesses all layers' energies are taken to be worth the same.
        """
        useful = losses < MAX_OF_SATURATION * saturation
        energies = self._shares_of(plans[useful])
        losses = np.maximum(losses[useful], LOSS_FLOOR)
        losses = losses / (1.0 - losses / saturation)
        guess = self._guess
        if guess is None:
            levels = losses / np.maximum(energies.sum(1), LOSS_FLOOR)
            guess = np.full(len(self._shares), float(np.median(levels)) if len(levels) else 1.0)
        # In units of the guesses, so that all layers' are alike.
        rows = np.concatenate([energies * guess / losses[:, None], np.eye(len(guess))])
        times, _ = nnls(rows, np.ones(len(rows)))
        return sum_of([factor * share for factor, share in zip(times * guess, self._shares, strict=True)])


def _times(losses: Array, share: Array) -> float:
    useful = share[:-1] > LOSS_FLOOR
    if not useful.any():
        return LOSS_FLOOR
    logs = np.log(np.maximum(losses[:-1][useful], LOSS_FLOOR)) - np.log(share[:-1][useful])
    return float(np.exp(logs.mean()))
