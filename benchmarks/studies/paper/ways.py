"""The searches that stand in the paper's tables, and those beside them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.studies.paper import fabolas
from benchmarks.studies.paper.subject import Subject, block_ratios
from benchmarks.studies.search.baselines import DEFAULT, SEARCHES, ComparedSearch, chance
from benchmarks.studies.search.baselines.ours import PAPER, with_settings
from benchmarks.studies.search.baselines.problem import Attempt
from benchmarks.studies.search.baselines.scoring import follow
from compressor.errors import InputError
from compressor.fidelity.records import Fidelity
from compressor.search.records import Form

OURS = "paper"
MAX_EVALUATIONS = 200  # --max-evaluations' default
NO_LIMIT = 10**9
FIGURES = 6  # significant digits of what is written


@dataclass(frozen=True)
class Way:
    """A search of the tables.

    Attributes:
        search: how it runs, and what it is in words.
        form: of the objective that it maximizes.
        is_limited: whether it gets the image passes that the paper's search spent with the same gamma and seed.
    """

    search: ComparedSearch
    form: Form = "ratio"
    is_limited: bool = False


def _papers(about: str, form: Form = "ratio", **changes: Any) -> Way:
    settings = {**PAPER, "max_evaluations": MAX_EVALUATIONS, **changes}
    return Way(ComparedSearch(with_settings(**settings), about, ours=True), form)


PEERS = ("tpe", "optuna-gp", "skopt", "botorch")
WAYS: dict[str, Way] = {
    OURS: _papers("the paper's, `--preset paper`"),
    "random": Way(ComparedSearch(chance.search_in("linear"), "random search"), is_limited=True),
    "fabolas": Way(ComparedSearch(fabolas.search, "Fabolas by emukit", package="GPy"), is_limited=True),
    DEFAULT: Way(
        ComparedSearch(with_settings(max_evaluations=NO_LIMIT), "bocompress's default, equal image passes", ours=True),
        is_limited=True,
    ),
    "default-to-its-end": Way(
        ComparedSearch(
            with_settings(max_evaluations=MAX_EVALUATIONS), "bocompress's default, to its own end", ours=True
        )
    ),
    "rate": _papers("`--form rate`: Eq. (2) as it stands", "rate"),
    "pooled-noise": _papers("`--noise pooled`: noise from all evaluations together", noise="pooled"),
    "no-excess-noise": _papers("`--no-excess-noise`", excess_noise=False),
    "no-remeasure": _papers("`--no-remeasure`", remeasure=False),
    "literal": _papers("all three", "rate", excess_noise=False, remeasure=False),
    **{name: Way(SEARCHES[name], is_limited=True) for name in PEERS},
}


@dataclass(frozen=True)
class Job:
    """One cell of a table: a search at one of the paper's gammas, with one seed."""

    way: str
    of_paper: float
    seed: int
    fidelity: Fidelity = "norm"
    samples: int = 50

    @property
    def key(self) -> dict[str, Any]:
        """The part of a row by which it is found again."""
        return {
            "way": self.way,
            "paper_gamma": self.of_paper,
            "seed": self.seed,
            "fidelity": self.fidelity,
            "samples": self.samples,
        }


def choose_ways(names: str) -> list[str]:
    """The ways named, separated by commas.

    Raises:
        InputError: there is no such way, or its package is missing.
    """
    chosen = names.split(",")
    for name in chosen:
        if name not in WAYS:
            raise InputError(f"no search is called {name!r}; there are {', '.join(WAYS)}")
        if not WAYS[name].search.is_installed:
            raise InputError(f"{name} needs {WAYS[name].search.package}: pip install '.[bench]'")
    return chosen


def run(subject: Subject, job: Job, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One search, its plan on the test images, and what it cost.

    Args:
        subject: the network.
        job: the search.
        rows: those so far; a limited search gets the image passes of the paper's among them.
    """
    way, gamma = WAYS[job.way], subject.gamma(job.of_paper, job.fidelity)
    problem = subject.problem(job.fidelity, gamma, job.samples, way.form)
    attempt = Attempt(problem, _passes_of_paper(job, rows) if way.is_limited else NO_LIMIT, job.seed)
    began, began_cpu = time.perf_counter(), time.process_time()
    steps, _ = follow(way.search, attempt)
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    _, ranks = steps[-1]
    found = subject.evaluate(ranks)
    original = subject.original
    loss = found["function_norm"] if job.fidelity == "norm" else original["top1"] - found["top1"]
    row = {
        **job.key,
        "gamma": gamma,
        **found,
        "objective": -gamma * loss - found["ratio"],
        **seconds,
        "passes": attempt.passes,
        "evaluations": attempt.evaluations,
        "stopped_because": attempt.stopped_because,
        "certified": bool(attempt.certificate.get("met")),
        "ranks": ranks.tolist(),
        "blocks": list(block_ratios(subject, ranks).values()),
    }
    return {key: _rounded(value) for key, value in row.items()}


def _passes_of_paper(job: Job, rows: Sequence[dict[str, Any]]) -> int:
    of_paper = job.key | {"way": OURS}
    for row in rows:
        if all(row[name] == value for name, value in of_paper.items()):
            return int(row["passes"])
    raise InputError(f"{job.way} gets the image passes of the paper's search: first run `{OURS}` with the same seeds")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{FIGURES}g}")
    return [_rounded(each) for each in value] if isinstance(value, list) else value
