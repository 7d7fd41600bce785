"""Layer-wise reconstruction: refit each layer's factors, at fixed ranks, to the outputs of the original layer.

Factors are the best approximation of a layer on the original's activations. In the compressed network its inputs differ
from these by the errors of all layers before it. Front to back, each layer is refitted by least squares from the inputs
that it does receive to the outputs of the original layer on the same images (asymmetric reconstruction; Zhang et al.
2016): both factors in turn, or where that does not help or there are others, the last factor alone. This takes no
labels and no gradient descent. A step is kept only if it lowers the function norm on the check images, which are none
of the calibration images; layers in a row are checked together, and one by one where together they did not help.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from scipy.linalg import LinAlgError
from torch import Tensor, nn

from compressor.data.images import ImageSet
from compressor.factorization.alternating import alternate
from compressor.factorization.interpolative import Interpolated
from compressor.factorization.layers.kinds import Layer, groups_of, set_weight, weight_of
from compressor.factorization.least_squares import NestedRefit, solve_in_place
from compressor.factorization.moments import INPUT_FLOOR, raise_floor_
from compressor.factorization.registry import METHODS
from compressor.factorization.two_factor import first_factor, leading_directions
from compressor.fidelity.function_norm import FunctionNorm
from compressor.network.calibration.gradients import KEPT_BYTES, OutputGradients
from compressor.network.calibration.moments import (
    MAX_ROWS,
    RunningMoments,
    chunks,
    has_moments,
    make_moments,
    output_bytes,
    rows_of_batch,
)
from compressor.network.hooks import (
    OutputPositions,
    batches,
    count_calls,
    position_generators,
    sample_positions,
    watch_batches,
)
from compressor.network.layers import FoundLayer
from compressor.network.replay import Cuts, Replay
from compressor.network.surgery import replace_layer
from compressor.process.memory import release_memory
from compressor.recovery.records import ReconstructionRecord, ReconstructionStep, StepKind

CHECKED_TOGETHER = 3  # layers
ROW_FLOOR = 0.02  # ridge of a whole layer for as many inputs as rows: late layers have few output positions
UNSOLVABLE = (torch.linalg.LinAlgError, LinAlgError)
LAST_FLOOR = 1e-3  # ridge over the mean variance of the last factor's inputs: where these hardly vary, weights stay


Rows = list[tuple[OutputPositions, Tensor]]


@dataclass(frozen=True)
class _Goal:
    """The outputs that one layer is refitted to.

    Attributes:
        layer: the layer.
        rows: per batch and call the sampled output positions, and the original's outputs there (rows, Co).
        weights: of these outputs in the loss (see `OutputGradients.by_position`); None where only the last factor is
            refitted.
    """

    layer: FoundLayer
    rows: list[Rows]
    weights: Tensor | None


@dataclass
class Reconstruction:
    """One reconstruction of `network`, which it changes in place (or replaces, where the network is one layer).

    Args:
        original: the original network, on `device`.
        network: the compressed network on `device`, sharing no tensor with `original`.
        layers: its factorized layers, as found in the original.
        calibration: images to fit on.
        check: function norm on other images; steps that do not lower it are undone.
        device: where to compute.
        seed: seed of the output positions that are sampled.
        gradients: of the original on the calibration images, for who has them already.
        on_step: called with the number of layers done and the progress in words.
        steps: the steps so far.
    """

    original: nn.Module
    network: nn.Module
    layers: Sequence[FoundLayer]
    calibration: ImageSet
    check: FunctionNorm
    device: torch.device
    seed: int = 0
    gradients: OutputGradients | None = None
    on_step: Callable[[int, str], None] = lambda count, text: None
    steps: list[ReconstructionStep] = field(default_factory=list)

    def run(self) -> ReconstructionRecord:
        """Refit all layers; the record has the function norm before and after every step."""
        began, layers = time.perf_counter(), self._in_order()
        cuts = Cuts(self.network, list(self._calls), self._example())
        self._fitted = Replay(cuts, self.calibration, self.device)
        self._checked = Replay(cuts, self.check.images, self.device)
        self._current = before = self._loss()
        goals, count = self._goals(layers), 0
        while together := list(islice(goals, CHECKED_TOGETHER)):
            self.on_step(count, f"{together[0].layer.name}, function norm {self._current:.4g}")
            self._refit_together(together)
            release_memory()
            count += len(together)
        self._refit_norms()
        return ReconstructionRecord(
            calibration_images=len(self.calibration),
            check_images=len(self.check.images),
            before=before,
            after=self._current,
            seconds=time.perf_counter() - began,
            steps=self.steps,
        )

    def _loss(self) -> float:
        return self.check.of_outputs(self._checked.outputs(self.network))

    def _example(self) -> Tensor:
        return self.calibration.batch([0]).to(self.device)

    @cached_property
    def _calls(self) -> dict[str, int]:
        """How often the original calls each layer, in order of use."""
        return count_calls(self.original, [layer.name for layer in self.layers], self._example())

    @cached_property
    def _replayed(self) -> Replay:
        """The original's passes."""
        cuts = Cuts(self.original, list(self._calls), self._example())
        return Replay(cuts, self.calibration, self.device)

    @cached_property
    def _gradients_of_original(self) -> OutputGradients:
        return self.gradients or OutputGradients(self.original, self.calibration, self.device, self.seed)

    def _in_order(self) -> list[FoundLayer]:
        """The layers in order of use."""
        by_name = {layer.name: layer for layer in self.layers}
        return [by_name[name] for name in self._calls]

    def _goals(self, layers: Sequence[FoundLayer]) -> Iterator[_Goal]:
        """The goals of the layers; the original runs once for as many as fit into memory."""
        for outer in chunks(layers, output_bytes, KEPT_BYTES):
            both = [layer for layer in outer if _has_both(layer)]
            weights = self._gradients_of_original.by_position([layer.name for layer in both])
            for chunk in chunks(outer, _row_bytes):
                rows = self._outputs_of_original(chunk)
                for layer in chunk:
                    yield _Goal(layer, rows.pop(layer.name), weights.pop(layer.name, None))

    def _outputs_of_original(self, layers: Sequence[FoundLayer]) -> dict[str, list[Rows]]:
        """For every layer, batch and call the sampled positions, and the original layer's outputs there (rows, Co)."""
        rows: dict[str, list[Rows]] = {layer.name: [] for layer in layers}
        generators = position_generators(self.seed, len(layers))

        def each() -> Iterator[Tensor]:
            for batch in self._replayed.passes(self.original):
                for of_layer in rows.values():
                    of_layer.append([])
                yield batch

        def keep(number: int, _value: Tensor, output: Tensor, size: int) -> None:
            layer = layers[number]
            count = rows_of_batch(size, len(self.calibration), -(-MAX_ROWS // self._calls[layer.name]))
            positions = sample_positions(layer.module, output, count, generators[number])
            rows[layer.name][-1].append((positions, positions.of_output(output)))

        self._replayed.advance(self.original, *(layer.name for layer in layers))
        watch_batches(self.original, [self.original.get_submodule(layer.name) for layer in layers], each(), keep)
        return rows

    def _refit_together(self, goals: Sequence[_Goal]) -> None:
        """Refit layers that follow one another and keep that if the function norm falls; else refit one by one."""
        for runs in (self._fitted, self._checked):
            runs.advance(self.network, goals[0].layer.name)
        before = [self.network.get_submodule(goal.layer.name) for goal in goals]
        kinds = [self._refit(goal) for goal in goals]
        after = self._loss()
        kept = after < self._current
        if not kept:
            for goal, module in zip(goals, before, strict=True):
                self._replace(goal, module)
        if kept or len(goals) == 1:
            self._note([(kind, goal.layer.name) for kind, goal in zip(kinds, goals, strict=True) if kind], after, kept)
        if not kept and len(goals) > 1:
            for goal in goals:
                self._refit_together([goal])
        elif not kept and kinds[0] == "both factors":
            self._try_last(goals[0])

    def _refit(self, goal: _Goal) -> StepKind | None:
        """Refit a layer, and say how; None where its equations cannot be solved."""
        last, whole = self._moments(goal)
        release_memory()  # passes leave hundreds of MB, and the equations of a large layer take as much
        module = self.network.get_submodule(goal.layer.name)
        if goal.weights is not None:
            with suppress(*UNSOLVABLE):
                self._replace(goal, _with_both_refitted(goal.layer, module, whole, goal.weights))
                return "both factors"
        with suppress(*UNSOLVABLE):
            self._replace(goal, _with_last_refitted(module, last))
            return "last factor"
        return None

    def _try_last(self, goal: _Goal) -> None:
        """Refit the last factor alone, and keep that if the function norm falls."""
        present = self.network.get_submodule(goal.layer.name)
        with suppress(*UNSOLVABLE):
            self._replace(goal, _with_last_refitted(present, self._moments(goal)[0]))
            after = self._loss()
            kept = after < self._current
            if not kept:
                self._replace(goal, present)
            self._note([("last factor", goal.layer.name)], after, kept)

    def _replace(self, goal: _Goal, module: nn.Module) -> None:
        self.network = replace_layer(self.network, goal.layer.name, module)

    def _moments(self, goal: _Goal) -> tuple[RunningMoments, RunningMoments]:
        """Moments of inputs and original outputs: with the inputs of the last factor, and with those of the layer."""
        original, module = goal.layer.module, self.network.get_submodule(goal.layer.name)
        final, outputs = last_factor(module)
        last, whole = RunningMoments(groups_of(final)), RunningMoments(groups_of(original))
        inputs = self._fitted.inputs(self.network, goal.layer.name, self._calls[goal.layer.name])
        for received, rows in zip(inputs, goal.rows, strict=True):
            for given, (positions, targets) in zip(received, rows, strict=False):
                with torch.inference_mode():
                    features = _before_last(module, given)
                last.add(positions.of_input(final, features), targets if outputs is None else targets[:, outputs])
                if goal.weights is not None:
                    whole.add(positions.of_input(original, given), targets)
        return last, whole

    def _note(self, changes: Sequence[tuple[StepKind, str]], after: float, kept: bool) -> None:
        for kind, layer in changes:
            self.steps.append(ReconstructionStep(layer=layer, kind=kind, before=self._current, after=after, kept=kept))
        self._current = after if kept else self._current

    def _refit_norms(self) -> None:
        """Set all batch-norm statistics to those of the compressed network's activations."""
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
        norms = [norm for norm in norms if norm.track_running_stats]
        if not norms:
            return
        before = [copy.deepcopy(norm.state_dict()) for norm in norms]
        estimate_statistics(self.network, norms, self.calibration, self.device)
        after = self.check.losses(self.network, np.arange(len(self.check.images))).mean  # from the first layer on
        kept = after < self._current
        for norm, state in zip(norms, before, strict=True):
            if not kept or not norm.num_batches_tracked:  # an auxiliary head, which does not run
                norm.load_state_dict(state)
        self._note([("batch-norm statistics", "")], after, kept)


def last_factor(module: nn.Module) -> tuple[nn.Module, Tensor | None]:
    """The last linear part of a factorized layer, and the indices of the layer's outputs it gives (None for all)."""
    if isinstance(module, Interpolated):
        return module.rest, module.order.argsort()[len(weight_of(module.keep)) :]
    assert isinstance(module, nn.Sequential)
    return module[-1], None


def estimate_statistics(network: nn.Module, norms: Sequence[nn.Module], images: ImageSet, device: torch.device) -> None:
    """Set mean and variance of the batch norms to the averages over the images' batches.

    Args:
        network: on the device, in eval mode.
        norms: batch norms of the network, changed in place.
        images: run in batches; a batch of one is left out.
        device: where the network runs.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
        norm.momentum = None  # type: ignore[assignment]
        norm.train()
    with torch.no_grad():
        for batch in batches(images, device):
            if len(batch) > 1:  # a single image has no variance where outputs have one position
                network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _row_bytes(layer: FoundLayer) -> int:
    return 4 * MAX_ROWS * layer.shape[0]


def _has_both(layer: FoundLayer) -> bool:
    return layer.method is not None and METHODS[layer.method].two_factors is not None and has_moments(layer)


def _before_last(module: nn.Module, value: Tensor) -> Tensor:
    return module.keep(value) if isinstance(module, Interpolated) else module[:-1](value)  # type: ignore[index]


def _with_last_refitted(module: nn.Module, moments: RunningMoments) -> nn.Module:
    """A copy of the factorized layer whose last factor and bias are the least-squares ones."""
    changed = copy.deepcopy(module)
    final, _ = last_factor(changed)
    weight, bias = solve(moments, weight_of(final), LAST_FLOOR)
    final.bias = _as_parameter(bias, final)
    set_weight(final, weight)
    return changed


def _with_both_refitted(layer: FoundLayer, module: nn.Module, moments: RunningMoments, outputs: Tensor) -> nn.Module:
    """The layer with both factors refitted to the original's outputs.

    The factors are those of the least-squares layer, alternated from the better of two starts: the present first factor
    and that of a fresh factorization.
    """
    assert isinstance(module, nn.Sequential)
    assert layer.method is not None
    factors = METHODS[layer.method].two_factors
    assert factors is not None
    substitute: Layer = copy.deepcopy(layer.weighted_module)
    floor = INPUT_FLOOR + ROW_FLOOR * moments.num_inputs / moments.count
    weight, bias = solve(moments, weight_of(substitute), floor)
    substitute.bias = _as_parameter(bias, layer.module)
    set_weight(substitute, weight)
    metric = make_moments(moments, outputs)
    kernel = factors.kernel(substitute).double().cpu()
    present = first_factor(module, layer.num_groups).double().cpu()
    rank = present.shape[1]
    starts = [present, leading_directions(kernel, metric)[:, :rank]]
    start = max(starts, key=lambda first: NestedRefit(kernel, metric, first).kept(metric.outputs))
    return factors.with_first(substitute, metric, alternate(kernel, metric, start)).build(rank)


def solve(moments: RunningMoments, present: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of least squared error.

    Args:
        moments: of inputs and outputs.
        present: the present weight (Co, ...), to which a ridge pulls the directions in which inputs hardly vary.
        floor: the ridge, as a share of the inputs' mean variance.

    Returns:
        The weight, of the shape of `present`, and the bias (Co,), both float64.
    """
    # Above the floor of factors single precision is enough, and takes half the time and memory.
    covariance = moments.covariance(torch.float32 if floor >= INPUT_FLOOR else torch.float64)
    ridge = raise_floor_(covariance, floor)
    weight = present.detach().double().cpu().reshape(moments.groups, -1, covariance.shape[-1])
    cross = (moments.cross_covariance() + ridge[:, None, None] * weight.mT).to(covariance)
    solution = torch.stack([solve_in_place(*group) for group in zip(covariance, cross, strict=True)]).double()
    bias = moments.target_mean() - (moments.mean()[:, None] @ solution)[:, 0]
    return solution.mT.reshape(present.shape), bias.flatten()


def _as_parameter(values: Tensor, like: nn.Module) -> nn.Parameter:
    weight = like.weight
    assert isinstance(weight, Tensor)
    return nn.Parameter(values.to(weight).contiguous(), requires_grad=False)
