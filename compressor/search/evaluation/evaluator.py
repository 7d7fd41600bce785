"""Evaluates plans: through the journal and the workers, counted against the budgets, and kept in the history."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses
from compressor.fidelity.noise import ImageSampler, NoiseModel
from compressor.search.evaluation.history import RACING, SENSITIVITY, Evaluation, History
from compressor.search.evaluation.journal import Journal
from compressor.search.evaluation.parallel import Workers
from compressor.search.expected_gain import ExpectedGain
from compressor.search.problem import SearchProblem
from compressor.search.settings import SearchSettings
from compressor.search.surrogate.cokriging import NormModel

OnEvaluation = Callable[[int, str], None]


class Evaluator:
    """All evaluations of one search, and what they cost.

    Args:
        problem: the space, the objective and how losses are found.
        settings: of the search; of these the budgets, the images per evaluation and the seed.
        journal: keeps every evaluation, and answers those of an earlier run.
        workers: run evaluations that do not depend on one another.
        on_evaluation: called after each evaluation with their number and the state of the search in words.

    Attributes:
        objective: J, with the current gamma.
        history: the evaluations that the surrogate learns from, in order.
        gain: what reconstruction is expected to leave of losses.
        noise: the noise of losses, learnt from them.
        norms: the model of function norms, learnt from them.
        image_passes: of all evaluations, kept or not.
        max_evaluations: how many are allowed, if fewer than the settings allow.
    """

    def __init__(
        self,
        problem: SearchProblem,
        settings: SearchSettings,
        journal: Journal,
        workers: Workers | None = None,
        on_evaluation: OnEvaluation = lambda count, text: None,
    ) -> None:
        self.space = problem.space
        self.objective = problem.objective
        self.num_images = problem.num_images
        self.noise_spec = problem.noise_spec
        self.gain = problem.gain
        self.settings = settings
        self.journal = journal
        self.sampler = ImageSampler(self.num_images, settings.samples, settings.seed)
        self.history = History()
        self.noise = NoiseModel(self.num_images, self.noise_spec)
        self.norms = NormModel(self.space, self.num_images)
        self.image_passes = 0
        self.max_evaluations = settings.max_evaluations
        self._evaluate = problem.evaluate
        self._on_evaluation = on_evaluation
        self._workers = workers or Workers()
        self._num_uncounted = 0
        self._began = time.perf_counter()

    def start_clock(self) -> None:
        """Count `seconds` from now."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the clock was started."""
        return time.perf_counter() - self._began

    @property
    def count(self) -> int:
        """Number of evaluations in the history that budgets count (see `Evaluation`)."""
        return len(self.history.ranks) - self._num_uncounted

    def log(self, text: str) -> None:
        """Report the state of the search."""
        self._on_evaluation(self.count, text)

    def use_gain(self, gain: ExpectedGain) -> None:
        """Weigh all losses so far, and those to come, by what reconstruction is now expected to leave."""
        history, before = self.history, self.gain.before
        self.gain, self.history, self.noise = gain, History(), NoiseModel(self.num_images, self.noise_spec)
        for ranks, losses, source in zip(history.ranks, history.losses, history.sources, strict=True):
            old, raw = losses.mean, before(losses.mean)
            scaled = losses.scaled(float(gain.delivered(np.array(raw))) / old) if old > 0.0 else losses
            self.history.add(Evaluation(source, ranks, losses.indices), scaled)
            self.noise.add(scaled)

    def run(self, evaluations: Sequence[Evaluation]) -> list[Losses]:
        """Losses of plans that do not depend on one another, in their order; all are kept."""
        all_losses = []
        for evaluation, losses in zip(evaluations, self.observe(evaluations), strict=True):
            self.keep(evaluation, losses)
            all_losses.append(losses)
        return all_losses

    def observe(self, evaluations: Sequence[Evaluation]) -> Iterator[Losses]:
        """Losses in the order of the evaluations, not kept: the journal's as long as it has any, then new ones.

        They are as reconstruction is expected to leave them; those of single layers, which are summed, as they are.
        """
        missing = list(evaluations)
        while missing and (known := self._recall(missing[0])) is not None:
            evaluation = missing.pop(0)
            self.image_passes += len(evaluation.images)
            yield self._delivered(evaluation, known)
        found = self._workers.run(self._evaluate, [(evaluation.ranks, evaluation.images) for evaluation in missing])
        for evaluation, losses in zip(missing, found, strict=True):
            self.image_passes += len(evaluation.images)
            delivered = self._delivered(evaluation, losses)
            observed = self.observed_objective(evaluation.ranks, delivered)
            self.journal.append(evaluation.source, evaluation.ranks, losses, self.ratio(evaluation.ranks), observed)
            yield delivered

    def _delivered(self, evaluation: Evaluation, losses: Losses) -> Losses:
        return losses if evaluation.source == SENSITIVITY else self.gain.scaled(losses)

    def _recall(self, evaluation: Evaluation) -> Losses | None:
        recall = self.journal.recall_racing if evaluation.source == RACING else self.journal.recall
        return recall(evaluation.ranks, evaluation.images)

    def keep(self, evaluation: Evaluation, losses: Losses) -> None:
        """Add an evaluation to the history, and let the noise and the model of function norms learn from it."""
        self.history.add(evaluation, losses)
        self.noise.add(losses)
        self.norms.add(losses)
        self._num_uncounted += evaluation.is_uncounted
        observed = self.observed_objective(evaluation.ranks, losses)
        self.log(f"{evaluation.source}: J {observed:.4f}, ratio {self.ratio(evaluation.ranks):.3f}")

    def keep_new(self, source: str, ranks: Ranks, losses: Losses) -> None:
        """Keep losses on images that are new to a plan, as an uncounted evaluation.

        A single image is left out: there is no variance of one.

        Args:
            source: what asked for them (see `history`).
            ranks: the plan (d,).
            losses: on any images, those seen before among them.
        """
        new = losses.without(self.history.seen(ranks))
        if len(new.indices) > 1:
            self.keep(Evaluation(source, ranks, new.indices, is_uncounted=True), new)

    def images_for(self, ranks: Ranks, pending: Sequence[Evaluation] = ()) -> np.ndarray:
        """Indices (m,) of the images to evaluate a plan (d,) on: the next of the pool, all new to the plan.

        Args:
            ranks: the plan.
            pending: evaluations that are planned but not run yet.
        """
        number = len(self.history.ranks) + len(pending)
        planned = [evaluation.images for evaluation in pending if np.array_equal(evaluation.ranks, ranks)]
        seen = np.concatenate([self.history.seen(ranks), *planned])
        return self.sampler.draw_unseen(number, seen) if len(seen) else self.sampler.draw(number)

    def ratio(self, ranks: Ranks) -> float:
        """R of a plan (d,)."""
        return float(self.space.ratio(ranks[None])[0])

    def observed_objective(self, ranks: Ranks, losses: Losses) -> float:
        """J of a plan (d,) with the mean of these losses for L."""
        return float(self.objective.value(np.array(losses.mean), np.array(self.ratio(ranks))))

    def spent_budget(self) -> str:
        """Which budget is spent, in words; empty while there is some left."""
        if self.count >= self.settings.max_evaluations:
            return f"{self.settings.max_evaluations} evaluations spent"
        if self.count >= self.max_evaluations:
            return f"{self.count} evaluations spent, as many as going on is worth"
        if self.count and self.is_out_of_time():
            return f"{self.settings.max_seconds:g} seconds spent"
        return ""

    def is_out_of_time(self) -> bool:
        """Whether `max_seconds` have passed."""
        return self.settings.max_seconds is not None and self.seconds >= self.settings.max_seconds
