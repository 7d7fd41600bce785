"""Which method and which factors suit each layer, by measurement: one layer at a time, at equal costs.

Every candidate takes the layer's place alone, at the same numbers of parameters, and the one that changes the network's
outputs least on a few images is taken, to first order: the gradients of the original serve all candidates. Methods
compete where the user leaves the choice open; one whose factors cannot be refitted in turn must win at every cost, by
as much as refitting brings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.channels.groups import ChannelGroup
from compressor.data.fingerprint import hash_images, hash_tensors
from compressor.data.images import ImageSet
from compressor.factorization.base import Factors
from compressor.factorization.choices import VERSION_KEY, ChoiceJournal, ChoiceRow
from compressor.factorization.moments import LayerMoments
from compressor.factorization.records import FactorChoice, FactorKind, Method
from compressor.factorization.registry import CHANNELS, METHODS, competing_methods
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.linearization import SingleLayerLosses
from compressor.network.acceleration.folding import Folded
from compressor.network.calibration.gradients import OutputGradients
from compressor.network.calibration.moments import collect_moments
from compressor.network.layers import FoundLayer, compressible, possible_methods, with_method
from compressor.pipeline.channels.choice import compare_with_channels, in_order, order_groups, outside
from compressor.pipeline.channels.found import groups_to_search
from compressor.pipeline.context import Context
from compressor.pipeline.expected_costs import expected_from_search_on
from compressor.pipeline.outputs import FACTORS, JOURNAL
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import Decomposed, OrderedGroup, Part, State, needed
from compressor.process.memory import release_memory

TRIAL_SHARES = (0.1, 0.25, 0.5)  # of the layer's parameters, at which candidates are compared
TRIAL_IMAGES = 16
TRIAL_DIRECTIONS = 4  # combinations of the outputs, per image
# Refitting both factors in turn took a third off the function norm where it could be done (docs/results.md).
MARGIN = 1.5
MIN_LOSS = 1e-12
# Equations of activations that overflow, or decompositions that do not converge; TensorLy works in numpy.
UNSOLVABLE = (torch.linalg.LinAlgError, np.linalg.LinAlgError)


@dataclass(frozen=True)
class Factorize(Stage):
    """Fills in `decomposed`: every layer that can be compressed, with the factors that suit it, or the groups of layers
    that lose hidden channels in place of these.

    Attributes:
        is_whole_run: whether the rest of the run is this search's: then how long it takes is better known.
    """

    is_whole_run: bool = True

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        parts = _decompose_or_recall(context, state)
        if self.is_whole_run and state.seconds_per_image is not None:
            groups = [part.layer for part in parts if isinstance(part, OrderedGroup)]
            context.progress.expect(expected_from_search_on(context, groups, state.seconds_per_image))
        return replace(state, decomposed=parts)


@dataclass
class Decomposer:
    """Factors for layers of one network.

    Args:
        model: the original on `device`.
        calibration: images for activation-aware factors; empty where there are none.
        evaluator: the function norm on other images, for measured choices.
        choice: the factors asked for, or "auto" to measure.
        kinds: factors already chosen for some layers, by name.
        competitors: methods that compete for k x k convolutions; none leaves each layer its own.
        decided: names of layers that keep their method whatever competes.
        seed: of the positions and directions that are sampled.
        gradients: of the model on the calibration images, for who has them already.
        folded: the model without its batch norms, likewise.
        on_step: called with the number of layers done and the next one's name.
        on_choice: called with every layer that was chosen for, once it is.
    """

    model: nn.Module
    calibration: ImageSet
    evaluator: FunctionNorm
    device: torch.device
    choice: FactorChoice
    kinds: Mapping[str, FactorKind] = field(default_factory=dict)
    competitors: tuple[Method, ...] = ()
    decided: frozenset[str] = frozenset()
    seed: int = 0
    gradients: OutputGradients | None = None
    folded: Folded | None = None
    on_step: Callable[[int, str], None] = lambda count, text: None
    on_choice: Callable[[Decomposed], None] = lambda part: None
    _alone: SingleLayerLosses | None = field(default=None, init=False)

    def run(self, layers: Sequence[FoundLayer]) -> list[Decomposed]:
        """Every layer decomposed, in the order given."""
        images = self.evaluator.subset(min(TRIAL_IMAGES, len(self.evaluator.images)))
        network = self._folded.network
        self._alone = SingleLayerLosses(images, network, [layer.name for layer in layers], TRIAL_DIRECTIONS)
        found = {}
        for count, (layer, moments) in enumerate(self._moments_by_layer(layers)):
            self.on_step(count, layer.name)
            found[layer.name] = self._decompose(layer, moments)
            self.on_choice(found[layer.name])
            del moments
            release_memory()
        return [found[layer.name] for layer in layers]

    @property
    def _folded(self) -> Folded:
        return self.folded or Folded(self.model)

    def _moments_by_layer(self, layers: Sequence[FoundLayer]) -> Iterator[tuple[FoundLayer, LayerMoments | None]]:
        """Layers with their metrics, then those that have none."""
        left = {layer.name: layer for layer in layers}
        wanting = [layer for layer in layers if self.kinds.get(layer.name, self.choice) != "weight"]
        if wanting and len(self.calibration):
            gradients = self.gradients or OutputGradients(self.model, self.calibration, self.device, self.seed)
            for layer, moments in collect_moments(gradients, wanting):
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
        for competitor in candidates:
            if competitor in own:
                continue
            losses = trials[_describe(competitor)] = self._losses_while_ahead(competitor, to_beat)
            if len(losses) == len(TRIAL_SHARES) and _mean(losses) < _mean(trials[_describe(best)]):
                best = competitor
        return replace(best, trials=trials)

    def _candidates(self, layer: FoundLayer, moments: LayerMoments | None) -> list[Decomposed]:
        """Those that can be computed: at worst the weight's own factors."""
        choice = self.kinds.get(layer.name, self.choice)
        candidates = []
        for competitor in self._competitors(layer):
            with suppress(*UNSOLVABLE):
                for factors, kind in _factorizations(competitor, moments, choice):
                    candidates.append(Decomposed(competitor, factors, kind, {}))
        if not any(candidate.layer.method == layer.method for candidate in candidates):
            candidates += [Decomposed(layer, *weight, {}) for weight in _factorizations(layer, None, "weight")]
        return candidates

    def _losses_while_ahead(self, competitor: Decomposed, to_beat: Sequence[float]) -> list[float]:
        """The competitor's losses share by share, ending before the first that is not lower by the margin."""
        losses: list[float] = []
        for share, other in zip(TRIAL_SHARES, to_beat, strict=True):
            loss = self._loss(competitor, share)
            if not MARGIN * loss < other:
                break
            losses.append(loss)
        return losses

    def _competitors(self, layer: FoundLayer) -> list[FoundLayer]:
        """The layer by every method that competes for it; by its own alone where that was asked for."""
        if (
            layer.name in self.decided
            or layer.method not in self.competitors
            or layer.method != possible_methods(layer)[0]
        ):
            return [layer]
        competitors = [with_method(layer, method) for method in possible_methods(layer) if method in self.competitors]
        return [competitor for competitor in competitors if competitor.dense_rank > 1]

    def _loss(self, candidate: Decomposed, share: float) -> float:
        """Function norm with this layer alone factorized, at the largest rank within the share of its parameters."""
        assert self._alone is not None
        layer = candidate.layer
        counts = np.array(layer.params_by_rank()[:-1])
        rank = max(1, int((counts <= share * layer.params).sum()))
        return self._alone(layer.name, self._folded.module(layer.name, candidate.factors.build(rank)))


def weight_factors(layer: FoundLayer) -> Factors:
    """The weight's own factors by the layer's method."""
    return METHODS[layer.method or "svd"].factorize(layer.weighted_module)


def energies_of(layer: FoundLayer, factors: Factors) -> np.ndarray:
    """What ranks 1, 2, ... and last the dense layer give up (dense,), as a share of the weight's squared norm.

    `factors` must be the weight's own; those fitted to images give up energy of outputs.
    """
    whole = float(layer.weighted_module.weight.detach().double().square().sum())
    errors = [factors.squared_error(rank) for rank in range(1, layer.dense_rank)]
    return np.array([*errors, 0.0]) / whole


def _factorizations(
    layer: FoundLayer, moments: LayerMoments | None, choice: FactorChoice
) -> Iterator[tuple[Factors, FactorKind]]:
    assert layer.method is not None
    method = METHODS[layer.method]
    if moments is None or choice == "weight":
        yield method.factorize(layer.weighted_module), "weight"
    elif (two_factors := method.two_factors) is None:
        yield method.factorize(layer.weighted_module, moments), "activation"
    else:
        if choice in ("refit", "auto"):
            weight = two_factors(layer.weighted_module)
            yield weight.refitted(moments, layer.break_even_rank), "refit"
        if choice == "auto":
            yield weight, "weight"
        if choice in ("activation", "auto"):
            yield two_factors(layer.weighted_module, moments, limit=layer.break_even_rank), "activation"


def _mean(losses: Sequence[float]) -> float:
    """Geometric mean: losses at different costs differ by orders of magnitude."""
    return float(np.exp(np.log(np.maximum(losses, MIN_LOSS)).mean()))


def _describe(candidate: Decomposed) -> str:
    return f"{candidate.layer.method}, {candidate.kind}"


def decompose_layers(
    context: Context,
    layers: Sequence[FoundLayer],
    norm: FunctionNorm,
    kinds: Mapping[str, FactorKind],
    competitors: tuple[Method, ...] = (),
    journal: ChoiceJournal | None = None,
) -> list[Decomposed]:
    """Factors for `layers`, as the settings want them (see `Decomposer`).

    Choices are kept in the journal. Layers that it has choices for are decomposed by these, without trials.

    Args:
        context: the original, images and settings.
        layers: to factorize.
        norm: the function norm by which candidates compete.
        kinds: factors by name of the layers for which these are settled.
        competitors: methods that compete with a layer's own.
        journal: keeps the choices; None for the memory alone.
    """
    journal = journal or ChoiceJournal()
    known = dict(journal.rows)
    layers = [with_method(layer, known[layer.name].method) if layer.name in known else layer for layer in layers]

    def keep(part: Decomposed) -> None:
        if part.layer.name not in known:
            row = ChoiceRow(
                layer=part.layer.name, method=part.layer.method or "svd", factors=part.kind, trials=part.trials
            )
            journal.append(row)

    with context.progress.stage("factorizing layers", len(layers)) as stage:
        decomposer = Decomposer(
            model=context.original,
            calibration=context.calibration,
            evaluator=norm,
            device=context.device,
            choice=_factor_choice(context),
            kinds={**kinds, **{name: row.factors for name, row in known.items()}},
            competitors=competitors,
            decided=frozenset(known),
            seed=context.settings.search.seed,
            gradients=context.gradients,
            folded=context.folded,
            on_step=stage.update,
            on_choice=keep,
        )
        parts = decomposer.run(layers)
    trials = {name: row.trials for name, row in known.items()}
    return [replace(part, trials=trials.get(part.layer.name, part.trials)) for part in parts]


def _factor_choice(context: Context) -> FactorChoice:
    """On synthetic images fitted factors seem better than they are (docs/results.md), and the search would follow."""
    choice = context.settings.factors or "auto"
    return "weight" if choice == "auto" and context.calibration.synthetic else choice


def _decompose_or_recall(context: Context, state: State) -> list[Part]:
    """The layers decomposed, and groups of them that lose channels rather than ranks.

    A resumed run keeps the methods and factors that were measured to be best. A search's journal has those of all
    layers; where there is none yet, the journal of factors has the first few.
    """
    found, norm = compressible(context.layers), needed(state.norm, "a function norm")
    earlier = context.earlier_search()
    if not earlier:
        return in_order(context, _decompose_by_trials(context, state, found, norm))
    recalled = _recall(context, earlier, found)
    if recalled is None:  # the search will refuse its journal
        return list(decompose_layers(context, found, norm, {}))
    groups, layers, kinds = recalled
    return in_order(context, [*order_groups(context, groups), *decompose_layers(context, layers, norm, kinds)])


def _recall(
    context: Context, earlier: Mapping[str, Any], found: Sequence[FoundLayer]
) -> tuple[list[ChannelGroup], list[FoundLayer], dict[str, FactorKind]] | None:
    """Groups, other layers with their methods, and factors by name, as the header of a journal has them; None where
    it has not all of them."""
    try:
        rows: dict[str, tuple[Any, FactorKind]] = {name: (method, kind) for name, method, _, kind in earlier["layers"]}
        names = {name for name, (method, _) in rows.items() if method == CHANNELS}
        groups = [group for group in groups_to_search(context) if group.name in names] if names else []
        layers = [with_method(layer, rows[layer.name][0]) for layer in outside(groups, found)]
    except (KeyError, TypeError, ValueError):
        return None
    return groups, layers, {name: kind for name, (_, kind) in rows.items()}


def _decompose_by_trials(
    context: Context, state: State, found: Sequence[FoundLayer], norm: FunctionNorm
) -> Sequence[Part]:
    """Parts with the methods and factors that are best by measurement."""
    # A journal of the search that cannot be read will be refused, and nothing is to be left beside it.
    journal = None
    if not (context.folder / JOURNAL).exists():
        journal = ChoiceJournal.open(context.folder / FACTORS, _fingerprint(context, found), context.resume)
    competitors = competing_methods(context.settings.method)
    if context.settings.method == CHANNELS:
        groups = groups_to_search(context)
        ordered = order_groups(context, groups)
        return [*ordered, *decompose_layers(context, outside(groups, found), norm, {}, competitors, journal)]
    parts = decompose_layers(context, found, norm, {}, competitors, journal)
    return compare_with_channels(context, parts, norm, _price(state))


def _price(state: State) -> float:
    """The function norm that the whole size is worth: 1 / gamma, or as much of it where L is another loss."""
    norm, measure = needed(state.norm, "a function norm"), state.measure
    lost = (measure or norm).uninformative_loss
    return norm.uninformative_loss / (needed(state.gamma, "gamma") * lost)


def _fingerprint(context: Context, layers: Sequence[FoundLayer]) -> dict[str, Any]:
    """What the choices depend on."""
    return {
        VERSION_KEY: 1,
        "weights": hash_tensors(context.original.state_dict().values()),
        "images": hash_images(context.search_images),
        "calibration": hash_images(context.calibration),
        "layers": [[layer.name, layer.method] for layer in layers],
        "method": context.settings.method,
        "factors": context.settings.factors,
        "seed": context.settings.search.seed,
    }
