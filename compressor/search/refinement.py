"""Steps by the linear model after the search, each taken only where looks on other images say that it is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.fidelity import Losses
from compressor.objective import Objective
from compressor.search import refine
from compressor.search.gp import Array
from compressor.search.journal import Journal
from compressor.search.refine import Linearise
from compressor.search.space import Ranks, RankSpace
from compressor.search.state import Look, merge_losses

STREAM = 9  # keeps its random numbers apart from the search's
MAX_STEPS = 2
LOOKS_WORTH = 2  # images for a model, and others for a look along its step, in those of a look of the search


@dataclass
class Refinement:
    """From the search's plan to a better one.

    Its looks stay out of the Gaussian process: plans that are so alike teach it that all noise is shared.

    Args:
        linearise, observe: the linear model around a plan, and losses of looks; both are counted by who gives them.
        num_images: size of the pool, `samples` of which are a look's.
        per_norm: how much L comes with a function norm of 1.
        on_step: told after each step the plan (d,), and the passes that the models took so far.
    """

    space: RankSpace
    objective: Objective
    linearise: Linearise
    observe: Callable[[Sequence[Look]], list[Losses]]
    journal: Journal
    num_images: int
    samples: int
    seed: int
    per_norm: float = 1.0
    on_step: Callable[[Ranks, int], None] = lambda plan, passes: None
    passes: int = 0
    _losses: dict[bytes, Losses] = field(default_factory=dict)

    def run(self, plan: Ranks, known: Losses, may_go_on: Callable[[], bool]) -> tuple[Ranks, Losses]:
        """The plan (d,) that the steps from `plan` lead to, with all losses of it that are known."""
        self._remember(plan, known)
        for number in range(MAX_STEPS):
            following = self._step(plan, number) if may_go_on() else None
            if following is None:
                break
            plan = following
            self.on_step(plan, self.passes)
        return plan, self._losses[plan.tobytes()]

    def _step(self, plan: Ranks, number: int) -> Ranks | None:
        """The best of the plans on the way to where the model leads, if it is better than `plan` beyond chance.

        The model knows its own images too well: the plans are looked at on others, which they share.
        """
        for_model, for_looks = self._divide(plan, number)
        if min(len(for_model), len(for_looks)) < 2:
            return None
        plans = refine.on_the_way(self.space, plan, self._target(plan, for_model))
        if len(plans) < 2:
            return None
        self._look(plans, for_looks)
        values = [self._values(ranks, for_looks) for ranks in plans]
        best = int(np.argmax([value.mean() for value in values]))
        return plans[best] if refine.is_better(values[best], values[0]) else None

    def _divide(self, plan: Ranks, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Images for the linear model, and others for looks: those that the plan has not been looked at with first."""
        images = np.random.default_rng([self.seed, STREAM, number]).permutation(self.num_images)
        seen = np.isin(images, self._losses[plan.tobytes()].indices)
        fresh = images[~seen] if (~seen).sum() > 1 else images[:0]  # of a single image there is no variance
        ordered = np.concatenate([fresh, images[seen]])
        count = min(LOOKS_WORTH * self.samples, self.num_images // 2)
        return ordered[count:][:count], ordered[:count]

    def _target(self, plan: Ranks, images: np.ndarray) -> Ranks:
        """The plan (d,) that the model around `plan` holds for the best: the journal's answer, if it has one."""
        known = self.journal.recall_step(plan, images)
        if known is None:
            model = self.linearise(plan, refine.alternatives(self.space, plan), images)
            target = refine.descend(self.space, self.objective, plan, model, self.per_norm)
            known = target, model.passes
            self.journal.append_step(plan, target, images, model.passes)
        self.passes += known[1]
        return known[0]

    def _look(self, plans: Sequence[Ranks], images: np.ndarray) -> None:
        """Looks at the plans on those of the images that are new to them."""
        looks = []
        for ranks in plans:
            known = self._losses.get(ranks.tobytes())
            new = images if known is None else images[~np.isin(images, known.indices)]
            # Two images at least: the journal keeps every look's variance.
            if len(new):
                looks.append(Look("refinement", ranks, new if len(new) > 1 else images))
        for look, losses in zip(looks, self.observe(looks), strict=True):
            self._remember(look.ranks, losses)

    def _remember(self, ranks: Ranks, losses: Losses) -> None:
        known = self._losses.get(ranks.tobytes())
        self._losses[ranks.tobytes()] = merge_losses([losses] if known is None else [known, losses])  # in order

    def _values(self, ranks: Ranks, images: np.ndarray) -> Array:
        """J (m,) of a plan by each of the images, in the order of their indices."""
        losses = self._losses[ranks.tobytes()]
        values = losses.values[np.searchsorted(losses.indices, np.sort(images))]
        return self.objective.value(values, self.space.ratio(ranks[None])[0])
