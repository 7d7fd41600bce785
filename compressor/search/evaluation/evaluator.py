"""What a search looks at: through its journal and its workers, counted, and kept."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compressor.arrays import Ranks
from compressor.fidelity.losses import Losses, NoiseSpecification
from compressor.fidelity.noise import ImageSampler, NoiseModel
from compressor.search.evaluation.history import Evaluation, History
from compressor.search.evaluation.journal import FINAL_RACING, Journal
from compressor.search.evaluation.parallel import Evaluate, Workers
from compressor.search.objective import Objective
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace
from compressor.search.surrogate.cokriging import NormModel

OnEvaluation = Callable[[int, str], None]


class Evaluator:
    """All looks of one search, and what they cost.

    Args:
        space, objective: what is searched and what for.
        evaluate: ranks (d,) and image indices (m,) in, per-image losses out.
        num_images: size of the pool the indices point into.
        journal: keeps every look, and answers the ones an earlier run made.
        on_evaluation: told after each look how many there were and how the search stands.
        workers: evaluate looks that do not depend on one another.
        law: how the losses behave.

    Attributes:
        state: the looks kept, in order.
        noise, norms: what they say of the losses' noise and of function norms.
        image_passes: of all looks, kept or not.
        most: looks allowed, if fewer than the settings allow.
    """

    def __init__(
        self,
        space: RankSpace,
        objective: Objective,
        evaluate: Evaluate,
        num_images: int,
        settings: SearchSettings,
        journal: Journal,
        on_evaluation: OnEvaluation,
        workers: Workers,
        noise_spec: NoiseSpecification,
    ) -> None:
        self.space = space
        self.objective = objective
        self.num_images = num_images
        self.settings = settings
        self.journal = journal
        self.noise_spec = noise_spec
        self.sampler = ImageSampler(num_images, settings.samples, settings.seed)
        self.state = History()
        self.noise = NoiseModel(num_images, noise_spec)
        self.norms = NormModel(space, num_images)
        self.image_passes = 0
        self.most = settings.max_evaluations
        self._evaluate = evaluate
        self._on_evaluation = on_evaluation
        self._workers = workers
        self._num_uncounted = 0
        self._began = time.perf_counter()

    def start_clock(self) -> None:
        """`max_seconds` count from now."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the clock was started."""
        return time.perf_counter() - self._began

    @property
    def count(self) -> int:
        """Evaluator kept at whole plans: no glances (see `Evaluation`)."""
        return len(self.state.ranks) - self._num_uncounted

    def log(self, text: str) -> None:
        """How the search stands, to whoever watches."""
        self._on_evaluation(self.count, text)

    def take(self, evaluations: Sequence[Evaluation]) -> list[Losses]:
        """Losses of plans that do not depend on one another, kept."""
        all_losses = []
        for evaluation, losses in zip(evaluations, self.observe(evaluations), strict=True):
            self.keep(evaluation, losses)
            all_losses.append(losses)
        return all_losses

    def observe(self, evaluations: Sequence[Evaluation]) -> Iterator[Losses]:
        """Losses in the looks' order: the journal's, as long as it has any, then new ones, which it gets."""
        missing = list(evaluations)
        while missing and (known := self._recall(missing[0])) is not None:
            self.image_passes += len(missing.pop(0).images)
            yield known
        found = self._workers.run(self._evaluate, [(evaluation.ranks, evaluation.images) for evaluation in missing])
        for evaluation, losses in zip(missing, found, strict=True):
            self.image_passes += len(evaluation.images)
            observed = self.observed_objective(evaluation.ranks, losses)
            self.journal.append(evaluation.source, evaluation.ranks, losses, self.ratio(evaluation.ranks), observed)
            yield losses

    def _recall(self, evaluation: Evaluation) -> Losses | None:
        recall = self.journal.recall_racing if evaluation.source == FINAL_RACING else self.journal.recall
        return recall(evaluation.ranks, evaluation.images)

    def keep(self, evaluation: Evaluation, losses: Losses) -> None:
        """Let the search learn from a look."""
        self.state.add(evaluation, losses)
        self.noise.add(losses)
        self.norms.add(losses)
        self._num_uncounted += evaluation.is_uncounted
        observed = self.observed_objective(evaluation.ranks, losses)
        self.log(f"{evaluation.source}: J {observed:.4f}, ratio {self.ratio(evaluation.ranks):.3f}")

    def keep_new(self, source: str, ranks: Ranks, losses: Losses) -> None:
        """Likewise from a glance at a plan (d,), of images that it has not been looked at with: two at least, since of
        a single one there is no variance."""
        new = losses.without(self.state.seen(ranks))
        if len(new.indices) > 1:
            self.keep(Evaluation(source, ranks, new.indices, is_uncounted=True), new)

    def images_for(self, ranks: Ranks, pending: Sequence[Evaluation] = ()) -> np.ndarray:
        """The next images of the pool, or for a plan (d,) looked at before, images that it has not seen."""
        number = len(self.state.ranks) + len(pending)
        under_way = [evaluation.images for evaluation in pending if np.array_equal(evaluation.ranks, ranks)]
        seen = np.concatenate([self.state.seen(ranks), *under_way])
        return self.sampler.draw_unseen(number, seen) if len(seen) else self.sampler.draw(number)

    def ratio(self, ranks: Ranks) -> float:
        """R of a plan (d,)."""
        return float(self.space.ratio(ranks[None])[0])

    def observed_objective(self, ranks: Ranks, losses: Losses) -> float:
        """J of a plan (d,) with the L that was observed."""
        return float(self.objective.value(np.array(losses.mean), np.array(self.ratio(ranks))))

    def spent_budget(self) -> str:
        """Which budget is spent, in words; empty while there is some left."""
        if self.count >= self.settings.max_evaluations:
            return f"{self.settings.max_evaluations} evaluations spent"
        if self.count >= self.most:
            return f"{self.count} evaluations spent, as many as another target is worth"
        if self.count and self.spent_time():
            return f"{self.settings.max_seconds:g} seconds spent"
        return ""

    def spent_time(self) -> bool:
        """Whether `max_seconds` have passed."""
        return self.settings.max_seconds is not None and self.seconds >= self.settings.max_seconds
