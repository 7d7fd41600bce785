"""bocompress's own search, its image passes counted as for the baselines, with any of its settings changed."""

import functools
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.search.baselines.problem import Attempt, OutOfBudget, Run, Step
from compressor.arrays import Ranks
from compressor.cli.commands import export
from compressor.cli.settings import search_settings
from compressor.fidelity.losses import Losses
from compressor.search.evaluation.journal import Journal
from compressor.search.initial.sensitivity import SENSITIVITY_IMAGES, SENSITIVITY_RANKS
from compressor.search.optimizer import Search, SearchListener
from compressor.search.problem import SearchProblem
from compressor.search.settings import SearchSettings

FRESH_STREAM = 81


def of_preset(name: str) -> dict[str, Any]:
    """The settings of the search that `--preset NAME` changes; images per evaluation are the study's."""
    with export.make_context("bocompress-export", ["model.pt", "--preset", name]) as context:
        settings = search_settings(context.params)
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "samples"}
    return {key: value for key, value in values.items() if value != getattr(SearchSettings(), key)}


PAPER = of_preset("paper")


def fresh_evaluation(attempt: Attempt, ranks: Ranks, indices: NDArray[np.int64]) -> Losses:
    """An evaluation on as many random images, returned under the indices asked for."""
    rng = np.random.default_rng([FRESH_STREAM, attempt.seed, attempt.evaluations])
    drawn = rng.choice(attempt.problem.num_images, len(indices), replace=False)
    return replace(attempt.evaluate(ranks, drawn), indices=indices)


def with_settings(fresh: bool = False, **changes: Any) -> Run:
    """The search with some of `SearchSettings` changed, and as many evaluations as the budget allows.

    `fresh` gives every evaluation images of its own in place of those it asks for, which others may share: the search
    then finds no correlation, and its noise matrix is diagonal. Where `max_evaluations` is among the changes, image
    passes alone are its budget.
    """

    def search(attempt: Attempt) -> Iterator[Step]:
        settings = SearchSettings(**{"samples": attempt.problem.samples, "seed": attempt.seed, **changes})
        sensitivity_passes = (
            SENSITIVITY_RANKS * SENSITIVITY_IMAGES * attempt.space.num_dims if settings.start == "sensitivity" else 0
        )
        allowed = max(1, (attempt.budget - sensitivity_passes) // settings.samples)
        steps: list[Step] = []

        def remember(image_passes: int, ranks: Ranks) -> None:
            if not steps or not np.array_equal(steps[-1][1], ranks):
                steps.append((image_passes, ranks.copy()))

        problem = SearchProblem(
            attempt.problem.space_in(settings.coordinates),
            attempt.problem.objective,
            functools.partial(fresh_evaluation, attempt) if fresh else attempt.evaluate,
            attempt.problem.num_images,
            noise_spec=attempt.problem.noise_spec,
            linearize=attempt.linearize if attempt.problem.linearize else None,
            energies=attempt.problem.energies,
        )
        listener = SearchListener(on_incumbent=remember)
        if "max_evaluations" not in changes:
            settings = replace(settings, max_evaluations=allowed)
        loop = Search(problem, settings, Journal(), listener=listener)
        try:
            _, record = loop.run()
            attempt.stopped_because = record.stopped_because
            attempt.certificate = record.certificate.model_dump() | record.calibration.model_dump()
        except OutOfBudget:  # conditional sensitivities do not count as evaluations
            attempt.stopped_because = "image passes spent"
        yield from steps

    return search
