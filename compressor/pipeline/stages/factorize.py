"""Which method and which factors suit each layer, by measurement: one layer at a time, at equal costs.

Every candidate takes the layer's place alone, at the same numbers of parameters, and the one that changes the network's
outputs least on a few images is taken. Methods compete where the user leaves the choice open; one whose factors cannot
be recalibrated in turn must win at every cost, and by what that brings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.data.images import ImageSet
from compressor.factorization.moments import LayerMoments
from compressor.factorization.records import FactorChoice, FactorKind, Method
from compressor.factorization.registry import METHODS, SPLIT_METHODS, Factors
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.layers import FoundLayer, with_method
from compressor.network.statistics import collect_moments
from compressor.network.surgery import build_candidate
from compressor.pipeline.state import Job

TRIAL_SHARES = (0.1, 0.25, 0.5)  # of the layer's parameters, at which candidates are compared
TRIAL_IMAGES = 16
# Recalibrating both factors in turn took a third off the function norm where it could be done (docs/results.md).
MARGIN = 1.5
MIN_LOSS = 1e-12
# Equations of activations that overflow, or decompositions that do not converge; TensorLy works in numpy.
UNSOLVABLE = (torch.linalg.LinAlgError, np.linalg.LinAlgError)
# The four thin convolutions of CP take up to twice the time of two with as many parameters (docs/results.md), so that
# it competes where only size matters.
COMPETITORS: dict[str, tuple[Method, ...]] = {
    "auto": ("spatial", "tucker", "interpolative"),
    "auto+cp": ("spatial", "tucker", "cp", "interpolative"),
}


@dataclass(frozen=True)
class Decomposed:
    """A layer with the method and the factors it was given; `trials` are the function norms that decided, at as many
    of the shares as it took."""

    layer: FoundLayer
    factors: Factors
    kind: FactorKind
    trials: dict[str, list[float]]


@dataclass(frozen=True)
class Decomposer:
    """Factors for layers of one network.

    Args:
        model: the original on `device`.
        calibration: images for activation-aware factors; empty where there are none.
        judge: function norm on other images, for measured choices.
        choice: the factors wanted, or "auto" to measure.
        kinds: factors already chosen for some layers, by name.
        rivals: methods that compete for k x k convolutions; none leaves each layer its own.
        seed: of the places and directions that are drawn.
        on_step: told the number of layers done and a word.
    """

    model: nn.Module
    calibration: ImageSet
    evaluator: FunctionNorm
    device: torch.device
    choice: FactorChoice
    kinds: Mapping[str, FactorKind] = field(default_factory=dict)
    challengers: tuple[Method, ...] = ()
    seed: int = 0
    on_step: Callable[[int, str], None] = lambda count, text: None

    def run(self, layers: Sequence[FoundLayer]) -> list[Decomposed]:
        """Every layer decomposed, in the order given."""
        found = {}
        for count, (layer, moments) in enumerate(self._moments_by_layer(layers)):
            self.on_step(count, layer.name)
            found[layer.name] = self._decompose(layer, moments)
        return [found[layer.name] for layer in layers]

    def _moments_by_layer(self, layers: Sequence[FoundLayer]) -> Iterator[tuple[FoundLayer, LayerMoments | None]]:
        """Layers with their metrics, then those that have none."""
        left = {layer.name: layer for layer in layers}
        wanting = [layer for layer in layers if self.kinds.get(layer.name, self.choice) != "weight"]
        if wanting and len(self.calibration):
            for layer, moments in collect_moments(self.model, wanting, self.calibration, self.device, self.seed):
                del left[layer.name]
                yield layer, moments
        for layer in left.values():
            yield layer, None

    def _decompose(self, layer: FoundLayer, moments: LayerMoments | None) -> Decomposed:
        candidates = self._candidates(layer, moments)
        if len(candidates) == 1:
            return candidates[0]
        own = [candidate for candidate in candidates if candidate.layer.method == layer.method]
        trials = {_describe(candidate): [self._loss(candidate, share) for share in TRIAL_SHARES] for candidate in own}
        best = min(own, key=lambda candidate: _mean(trials[_describe(candidate)]))
        to_beat = trials[_describe(best)]
        for challenger in candidates:
            if challenger in own:
                continue
            losses = trials[_describe(challenger)] = self._losses_while_ahead(challenger, to_beat)
            if len(losses) == len(TRIAL_SHARES) and _mean(losses) < _mean(trials[_describe(best)]):
                best = challenger
        return replace(best, trials=trials)

    def _candidates(self, layer: FoundLayer, moments: LayerMoments | None) -> list[Decomposed]:
        """Those that can be computed: at worst the weight's own factors."""
        choice = self.kinds.get(layer.name, self.choice)
        candidates = []
        for challenger in self._competitors(layer):
            with suppress(*UNSOLVABLE):
                for factors, kind in _factorizations(challenger, moments, choice):
                    candidates.append(Decomposed(challenger, factors, kind, {}))
        if not any(candidate.layer.method == layer.method for candidate in candidates):
            candidates += [Decomposed(layer, *weight, {}) for weight in _factorizations(layer, None, "weight")]
        return candidates

    def _losses_while_ahead(self, challenger: Decomposed, to_beat: Sequence[float]) -> list[float]:
        """The rival's losses share by share, ending before the first that is not lower by the margin."""
        losses: list[float] = []
        for share, other in zip(TRIAL_SHARES, to_beat, strict=True):
            loss = self._loss(challenger, share)
            if not MARGIN * loss < other:
                break
            losses.append(loss)
        return losses

    def _competitors(self, layer: FoundLayer) -> list[FoundLayer]:
        if not self.challengers or layer.method != "spatial" or layer.num_groups > 1:
            return [layer]
        challengers = [with_method(layer, method) for method in self.challengers]
        return [challenger for challenger in challengers if challenger.dense_rank > 1]

    def _loss(self, candidate: Decomposed, share: float) -> float:
        """Function norm with this layer alone factorized, at the largest rank within the share of its parameters."""
        layer = candidate.layer
        counts = np.array(layer.params_by_rank()[:-1])
        rank = max(1, int((counts <= share * layer.params).sum()))
        network = build_candidate(self.model, {layer.name: candidate.factors}, {layer.name: rank})
        images = np.arange(min(TRIAL_IMAGES, len(self.evaluator.images)))
        return self.evaluator.losses(network, images).mean


def weight_factors(layer: FoundLayer) -> Factors:
    """The weight's own factors by the layer's method."""
    return METHODS[layer.method or "svd"].factorize(layer.module)


def energies_of(layer: FoundLayer, factors: Factors) -> np.ndarray:
    """What ranks 1, 2, ... and last the dense layer give up (cap,), as a share of the weight's squared norm.

    `factors` must be the weight's own; those fitted to images give up energy of outputs.
    """
    whole = float(layer.weighted_module.weight.detach().double().square().sum())
    errors = [factors.squared_error(rank) for rank in range(1, layer.dense_rank)]
    return np.array([*errors, 0.0]) / whole


def _factorizations(
    layer: FoundLayer, moments: LayerMoments | None, choice: FactorChoice
) -> Iterator[tuple[Factors, FactorKind]]:
    assert layer.method is not None
    factorize = METHODS[layer.method].factorize
    if moments is None or choice == "weight":
        yield factorize(layer.module), "weight"
    elif layer.method not in SPLIT_METHODS:
        yield factorize(layer.module, moments), "activation"
    else:
        if choice in ("refit", "auto"):
            weight = SPLIT_METHODS[layer.method](layer.weighted_module)
            yield weight.refitted(moments, layer.break_even_rank), "refit"
        if choice == "auto":
            yield weight, "weight"
        if choice in ("activation", "auto"):
            yield factorize(layer.module, moments, limit=layer.break_even_rank), "activation"


def _mean(losses: Sequence[float]) -> float:
    """Geometric mean: losses at different costs differ by orders of magnitude."""
    return float(np.exp(np.log(np.maximum(losses, MIN_LOSS)).mean()))


def _describe(candidate: Decomposed) -> str:
    return f"{candidate.layer.method}, {candidate.kind}"


def decompose_layers(
    job: Job,
    layers: Sequence[FoundLayer],
    norm: FunctionNorm,
    kinds: Mapping[str, FactorKind],
    challengers: tuple[Method, ...] = (),
) -> list[Decomposed]:
    """Factors for `layers`, as the job wants them (see `Decomposer`)."""
    with job.progress.stage("factorizing layers", len(layers)) as stage:
        decomposer = Decomposer(
            model=job.original,
            calibration=job.calibration,
            evaluator=norm,
            device=job.device,
            choice=_factor_choice(job),
            kinds=kinds,
            challengers=challengers,
            seed=job.settings.search.seed,
            on_step=stage.update,
        )
        return decomposer.run(layers)


def _factor_choice(job: Job) -> FactorChoice:
    """On drawn images other factors look better than they are (docs/results.md), and the search would posterior it."""
    choice = job.settings.factors or "auto"
    return "weight" if choice == "auto" and job.calibration.synthetic else choice


def decompose_or_recall(
    job: Job, found: Sequence[FoundLayer], norm: FunctionNorm, earlier: Mapping[str, Any]
) -> list[Decomposed]:
    """The layers decomposed; a resumed search keeps the methods and factors that were measured to be best."""
    rows = earlier.get("layers")
    try:
        chosen = {name: (method, kind) for name, method, _, kind in rows or []}
        layers = [with_method(layer, chosen[layer.name][0]) for layer in found]
        kinds: dict[str, FactorKind] = {name: kind for name, (_, kind) in chosen.items()}
    except (KeyError, TypeError, ValueError):  # no journal, or one that will be refused
        return decompose_layers(job, found, norm, {}, () if earlier else COMPETITORS.get(job.settings.method, ()))
    return decompose_layers(job, layers, norm, kinds)
