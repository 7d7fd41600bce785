"""What evaluating a candidate costs next to a bare forward pass of the same finished network on the same images.

    python -m benchmarks.studies.search.evaluation_cost MODEL DATA --input-size 64

A default search runs first. Its evaluations of whole plans are then repeated in order, each timed next to a bare pass
of the plan's network with tensors of its own and the images at hand. Whichever comes first has to prepare the kernels
for the layers' shapes, a tenth of its time, so the two take turns in coming first. The linear models are timed as well,
since they count as image passes. Times are processor times of one thread, and every repeat starts cold, like a search.
For the search itself, on two threads, the study measures how much of its time goes into Gaussian process and
acquisition, and how much into the sample paths of the joint certificate.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.studies.loading import load_squares
from benchmarks.studies.study import write_results
from compressor.arrays import Ranks
from compressor.fidelity.linearization import Linearizer
from compressor.network.acceleration.folding import fold_norms
from compressor.network.surgery import detach_from_original
from compressor.pipeline.context import Context, Source
from compressor.pipeline.prepare import prepare
from compressor.pipeline.settings import Settings
from compressor.pipeline.stage import run_stages
from compressor.pipeline.stages import search_ranks
from compressor.pipeline.stages.cost import TabulateCosts
from compressor.pipeline.stages.evaluate_original import EvaluateOriginal
from compressor.pipeline.stages.factorize import Factorize
from compressor.pipeline.stages.search_ranks import RankSearch, make_evaluation
from compressor.pipeline.state import State
from compressor.progress import progress_for_stderr
from compressor.search.evaluation.parallel import Evaluate
from compressor.search.settings import SearchSettings
from compressor.search.stopping import criterion as stopping
from compressor.search.stopping.joint_certificate import JointTest

EvaluatedPlan = tuple[Ranks, np.ndarray]  # ranks (d,), indices of images (m,)
LinearizedPlan = tuple[Linearizer, tuple[Ranks, Sequence[Sequence[int]], np.ndarray, int]]
MIN_IMAGES = 10  # a bare pass of fewer is too short to be timed
SEARCH_THREADS = 2
REPEATS = 4  # of which the minimum is taken; the candidate comes first in half of them


@dataclass(frozen=True)
class Watched:
    """A search that was run: its evaluations and linear models, to be repeated, and its seconds by part."""

    search: RankSearch
    evaluations: list[EvaluatedPlan]
    models: list[LinearizedPlan]
    seconds: dict[str, float]


def watch(context: Context, state: State) -> Watched:
    """Run a search on SEARCH_THREADS threads and record it."""
    evaluations: list[EvaluatedPlan] = []
    models: list[LinearizedPlan] = []
    certificate_seconds = []
    make, linearize, certify = search_ranks.make_evaluation, Linearizer.__call__, stopping.certify_jointly

    def recording(*given: Any) -> Evaluate:
        evaluate = make(*given)

        def record(ranks: Ranks, indices: np.ndarray) -> Any:
            evaluations.append((ranks.copy(), indices.copy()))
            return evaluate(ranks, indices)

        return record

    def recording_model(linearizer: Linearizer, *given: Any) -> Any:
        models.append((linearizer, given))
        return linearize(linearizer, *given)

    def timing_certificate(*given: Any) -> JointTest:
        began = time.perf_counter()
        test = certify(*given)
        certificate_seconds.append(time.perf_counter() - began)
        return test

    with (
        mock.patch.object(search_ranks, "make_evaluation", recording),
        mock.patch.object(Linearizer, "__call__", recording_model),
        mock.patch.object(stopping, "certify_jointly", timing_certificate),
        RankSearch(context, state) as search,
    ):
        torch.set_num_threads(SEARCH_THREADS)
        record = search.run().search
        torch.set_num_threads(1)
    assert record is not None
    certificate = sum(certificate_seconds)
    seconds = {
        "seconds": record.seconds,
        "process_and_acquisition": record.surrogate_seconds - certificate,
        "joint_certificate": certificate,
    }
    return Watched(search, evaluations, models, seconds)


def measure(context: Context) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, float]]:
    """Run a search and time its parts.

    Returns:
        A row per evaluation with milliseconds of the candidate and of a bare pass, a row per linear model with image
        passes by the clock and as counted, and the seconds of the search by part.
    """
    state = run_stages([EvaluateOriginal(), Factorize(), TabulateCosts()], context, State(context.original))
    watched = watch(context, state)
    whole = [evaluation for evaluation in watched.evaluations if len(evaluation[1]) >= MIN_IMAGES]
    repeats = [_time_all(context, watched.search, whole, turn % 2 == 0) for turn in range(REPEATS)]
    candidate_ms, bare_ms = np.array(repeats).min(0).T
    rows = [
        {"images": len(indices), "candidate_ms": float(candidate), "bare_ms": float(bare)}
        for (_, indices), candidate, bare in zip(whole, candidate_ms, bare_ms, strict=True)
    ]
    return rows, [_time_model(watched.search, model) for model in watched.models], watched.seconds


def _time_model(search: RankSearch, model: LinearizedPlan) -> dict[str, Any]:
    linearizer, given = model
    ranks, _, indices, directions = given
    images = search.norm.images.batch(indices.tolist())
    network = _finished(search, ranks, images)
    counted: list[int] = []
    times = []
    for _ in range(REPEATS):
        linear_ms = _milliseconds(lambda: counted.append(linearizer(*given).passes))
        with torch.inference_mode():
            times.append((linear_ms, _milliseconds(lambda: network(images))))
    linear_ms, bare_ms = np.array(times).min(0)
    return {
        "images": len(indices),
        "directions": directions,
        "passes_per_image_by_clock": float(linear_ms / bare_ms),
        "passes_per_image_counted": counted[0] / len(indices),
    }


def _time_all(
    context: Context, search: RankSearch, evaluations: list[EvaluatedPlan], candidate_first: bool
) -> list[tuple[float, float]]:
    """Milliseconds of each evaluation and of its bare pass, with nothing cached before the first."""
    evaluate = make_evaluation(search.norm, context.folded, search.parts, search.space)
    times = []
    for ranks, indices in evaluations:
        candidate = functools.partial(evaluate, ranks, indices)
        images = search.norm.images.batch(indices.tolist())
        network = _finished(search, ranks, images)
        bare = torch.inference_mode()(functools.partial(network, images))
        if candidate_first:
            times.append((_milliseconds(candidate), _milliseconds(bare)))
        else:
            times.append((_milliseconds(bare), _milliseconds(candidate))[::-1])
    return times


def _finished(search: RankSearch, ranks: Ranks, images: Tensor) -> nn.Module:
    """The network of a plan (d,), without norms as evaluations are."""
    return fold_norms(detach_from_original(search.build(ranks)).eval(), images[:1]).network


def _milliseconds(run: Callable[[], Any]) -> float:
    began = time.thread_time()
    run()
    return 1000.0 * (time.thread_time() - began)


@click.command()
@click.argument("model_path", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--input-size", type=int, required=True)
@click.option("--images", "num_images", default=2000, show_default=True)
@click.option("--gamma", default=0.03, show_default=True)
@click.option("--factors", default="weight,auto", show_default=True, help="Kinds, separated by commas.")
@click.option("--seed", default=0, show_default=True)
@click.option("--name", default="candidates", show_default=True, help="Name of the results file.")
def main(
    model_path: Path, data: Path, input_size: int, num_images: int, gamma: float, factors: str, seed: int, name: str
) -> None:
    """Run the study and write benchmarks/results/NAME.json."""
    torch.set_num_threads(1)
    began, rows, progress = time.perf_counter(), [], progress_for_stderr()
    loaded, images, _ = load_squares(model_path, data, input_size, num_images)
    for kind in factors.split(","):
        settings = Settings(gamma=gamma, factors=kind, search=SearchSettings(seed=seed))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            context = prepare(loaded.model, images, Path(folder) / "out", settings, Source(loaded.arch), progress)
            evaluations, models, search = measure(context)
        candidate, bare = (np.array([row[key] for row in evaluations]) for key in ("candidate_ms", "bare_ms"))
        rows.append(
            {
                "factors": kind,
                "evaluations": len(evaluations),
                "candidate_ms": float(np.median(candidate)),
                "bare_ms": float(np.median(bare)),
                "ratio": float(candidate.sum() / bare.sum()),
                "ratio_quartiles": np.quantile(candidate / bare, [0.25, 0.75]).tolist(),
                "models": models,
                "search": search,
            }
        )
        progress.log(str(rows[-1]))
    about = {"network": loaded.arch, "input_size": input_size, "gamma": gamma, "seed": seed, "repeats": REPEATS}
    write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
