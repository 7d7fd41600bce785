"""A prior mean of L from the energy that truncation discards, with a sensitivity per layer learnt from evaluations.

L of a plan is modelled as sum_l s_l E_l(r_l), where E_l(r) is the share of layer l's squared weight that rank r
discards: the squared singular values that it cuts off. The shapes E_l are known before any evaluation; how much a
layer's energy is worth to the network, s_l, is not.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from compressor.arrays import Array, Ranks
from compressor.search.surrogate.additive_prior import LOSS_FLOOR, sum_of, tabulated
from compressor.search.surrogate.base import ExpectedLoss

MAX_SHARE_OF_SATURATION = 0.5


class EnergyPrior:
    """The prior mean from truncated energies.

    Args:
        shares: one array per layer, the share of the energy that ranks 1, 2, ... and last the dense layer discard.
    """

    def __init__(self, shares: Sequence[Array]) -> None:
        self._shares = list(shares)
        self._shares_of = tabulated(self._shares)
        self._initial: Array | None = None

    def initialize(self, sensitivities: Sequence[Array]) -> None:
        """Set initial sensitivities from measured ones: geometric means over ranks of loss by energy.

        Args:
            sensitivities: one array per layer, L at ranks 1, 2, ... of the layer alone.
        """
        pairs = zip(sensitivities, self._shares, strict=True)
        self._initial = np.array([_mean_ratio(losses, share) for losses, share in pairs])

    def fit(self, plans: Ranks, losses: Array, saturation: float = np.inf) -> ExpectedLoss:
        """L before saturation, as a function of ranks (..., d).

        Least squares of relative errors with sensitivities of at least zero; each initial sensitivity counts as one
        evaluation. Without initial ones all layers' energies begin with the same sensitivity.

        Args:
            plans: ranks that were evaluated (n, d).
            losses: estimates of L (n,). Those near `saturation`, where a network is destroyed, are left out.
            saturation: loss of a destroyed network.
        """
        useful = losses < MAX_SHARE_OF_SATURATION * saturation
        energies = self._shares_of(plans[useful])
        losses = np.maximum(losses[useful], LOSS_FLOOR)
        losses = losses / (1.0 - losses / saturation)
        initial = self._initial
        if initial is None:
            levels = losses / np.maximum(energies.sum(1), LOSS_FLOOR)
            initial = np.full(len(self._shares), float(np.median(levels)) if len(levels) else 1.0)
        # In units of the initial sensitivities, so that all layers have the same scale
        rows = np.concatenate([energies * initial / losses[:, None], np.eye(len(initial))])
        factors, _ = nnls(rows, np.ones(len(rows)))
        return sum_of([factor * share for factor, share in zip(factors * initial, self._shares, strict=True)])


def _mean_ratio(losses: Array, share: Array) -> float:
    """Geometric mean of losses by energy over ranks that discard energy, the dense layer left out."""
    useful = share[:-1] > LOSS_FLOOR
    if not useful.any():
        return LOSS_FLOOR
    logs = np.log(np.maximum(losses[:-1][useful], LOSS_FLOOR)) - np.log(share[:-1][useful])
    return float(np.exp(logs.mean()))
