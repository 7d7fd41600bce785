"""What looking at a candidate costs beside a bare forward pass of the same network, once finished, on the same images.

    python -m benchmarks.studies.search.evaluation_cost MODEL DATA --input-size 64

A search runs as by default, with factors fitted to images. Its looks at whole plans are then repeated in their order,
each of them timed in turn with a bare pass of the plan's network: tensors of its own, images at hand. Whichever comes
first finds the kernels for the layers' shapes missing, a tenth of its time, and prepares them for the other: they take
turns in that. The linear models, which count as many image passes, are timed, too. Processor time of one thread; every
repeat starts cold, as a search begins. Of the search itself, on two threads, the study says what share of its time goes
into process and acquisition, and what into the paths of the joint certificate.
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

from benchmarks.studies.loading import load_squares
from benchmarks.studies.study import write_results
from compressor.arrays import Ranks
from compressor.fidelity.linearization import Linearizer
from compressor.network.surgery import detach_from_original
from compressor.pipeline.prepare import function_norm, prepare
from compressor.pipeline.settings import Settings
from compressor.pipeline.stages import search_ranks as rank_search
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import Job, Source
from compressor.progress import progress_for_stderr
from compressor.search.evaluation.parallel import Evaluate
from compressor.search.settings import SearchSettings
from compressor.search.stopping import criterion as stopping
from compressor.search.stopping.joint_certificate import JointTest

EvaluateAt = tuple[Ranks, np.ndarray]
ModelOf = tuple[Linearizer, tuple[Ranks, Sequence[Sequence[int]], np.ndarray, int]]
MIN_IMAGES = 10  # a bare pass of fewer is over before it can be timed
SEARCH_THREADS = 2
REPEATS = 4  # the least of so many is taken, for either; in half of them the candidate comes first


@dataclass(frozen=True)
class Watched:
    """A search that was run: its looks and its linear models, to be repeated, and where its seconds went."""

    search: RankSearch
    evaluations: list[EvaluateAt]
    models: list[ModelOf]
    seconds: dict[str, float]


def watch(job: Job, norm: Any) -> Watched:
    """Run a search on SEARCH_THREADS threads."""
    evaluations: list[EvaluateAt] = []
    models: list[ModelOf] = []
    certificate_seconds = []
    make, linearize, certify = rank_search._evaluation, Linearizer.__call__, stopping.certify_jointly

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
        mock.patch.object(rank_search, "_evaluation", recording),
        mock.patch.object(Linearizer, "__call__", recording_model),
        mock.patch.object(stopping, "certify_jointly", timing_certificate),
        RankSearch(job, norm, resume=False) as search,
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


def measure(job: Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, float]]:
    """One row for every look of a search, milliseconds of the candidate and of a bare pass; one for every linear model,
    image passes by the clock and as counted; and the seconds of the search."""
    norm = function_norm(job)
    watched = watch(job, norm)
    whole = [evaluation for evaluation in watched.evaluations if len(evaluation[1]) >= MIN_IMAGES]
    repeats = [_time_all(job, watched.search, norm, whole, turn % 2 == 0) for turn in range(REPEATS)]
    candidate_ms, bare_ms = np.array(repeats).min(0).T
    rows = [
        {"images": len(indices), "candidate_ms": float(candidate), "bare_ms": float(bare)}
        for (_, indices), candidate, bare in zip(whole, candidate_ms, bare_ms, strict=True)
    ]
    return rows, [_time_model(watched.search, norm, model) for model in watched.models], watched.seconds


def _time_model(search: RankSearch, norm: Any, model: ModelOf) -> dict[str, Any]:
    linearizer, given = model
    ranks, _, indices, directions = given
    network, images = detach_from_original(search.build(ranks)).eval(), norm.images.batch(indices)
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
    job: Job, search: RankSearch, norm: Any, evaluations: list[EvaluateAt], candidate_first: bool
) -> list[tuple[float, float]]:
    """Milliseconds of each look and of its bare pass, with nothing kept from before the first."""
    evaluate = rank_search._evaluation(norm, job.original, search.parts, search.space)
    times = []
    for ranks, indices in evaluations:
        candidate = functools.partial(evaluate, ranks, indices)
        network, images = detach_from_original(search.build(ranks)).eval(), norm.images.batch(indices)
        bare = torch.inference_mode()(functools.partial(network, images))
        if candidate_first:
            times.append((_milliseconds(candidate), _milliseconds(bare)))
        else:
            times.append((_milliseconds(bare), _milliseconds(candidate))[::-1])
    return times


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
            job = prepare(loaded.model, images, Path(folder) / "job", settings, Source(loaded.arch), progress)
            evaluations, models, search = measure(job)
        candidate, bare = (
            np.array([evaluation[key] for evaluation in evaluations]) for key in ("candidate_ms", "bare_ms")
        )
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
