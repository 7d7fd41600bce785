"""Do targets hold outside the run, and is finding gamma for one worth more than a sweep of gammas?

    python -m benchmarks.studies.search.targets MODEL DATA --input-size 64

Every seed draws its own images to fit, search and decide with; the others judge. Each seed runs the target. Some run a
plain search at the gamma that was found, too, which says what image passes the target cost beside one search, other
targets, and a sweep of eight gammas. Of the sweep a person could take the smallest network whose own bound, on
the images that decide, keeps to the drop; the smallest that the judges find to have kept to it is beside it, which
nobody could know. Factors are computed once per seed.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from torch import nn

from benchmarks.studies.loading import load_squares
from benchmarks.studies.study import earlier_rows, write_results
from compressor.cost.size import count_params
from compressor.data.images import ImageSet
from compressor.fidelity.accuracy_drop import DropCurve, DropEstimator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.pipeline.prepare import function_norm, prepare
from compressor.pipeline.settings import Settings, Target
from compressor.pipeline.stages import search_ranks
from compressor.pipeline.stages.build import build
from compressor.pipeline.stages.factorize import decompose_or_recall
from compressor.pipeline.stages.meet_size import reach_target
from compressor.pipeline.stages.search_ranks import RankSearch
from compressor.pipeline.state import BuiltNetwork, Job, Source
from compressor.progress import Progress, progress_for_stderr
from compressor.search.optimizer import SearchSettings
from compressor.search.records import TargetKind

NUM_GAMMAS = 8
Ask = tuple[TargetKind | None, float]  # a wish, or None with a gamma


@dataclass
class Seed:
    """All runs on one draw of images; `gauge` measures drops on those outside."""

    job: Job
    estimator: DropEstimator
    folder: Path

    def __post_init__(self) -> None:
        self._norm = function_norm(self.job)
        self._parts: Sequence[Any] | None = None
        self._original = count_params(self.job.original)
        assert self.job.validation is not None
        self._validation = DropEstimator(
            [self._norm, FunctionNorm(self.job.original, self.job.validation, self.job.device)]
        )

    def runs(self, drop: float, others: Sequence[Ask] | None) -> Iterator[dict[str, Any]]:
        """The row of the drop; with `others`, of a plain search at the gamma that was found, and of those, whose gammas
        are a sweep."""
        found = self.run("drop", drop)
        yield {"sweep": False} | found
        if others is not None:
            yield {"sweep": False} | self.run(None, found["gamma"])
            for kind, value in others:
                yield {"sweep": kind is None} | self.run(kind, value)

    def run(self, kind: TargetKind | None, value: float) -> dict[str, Any]:
        """The row of one target or gamma."""
        began = time.perf_counter()
        wanted = None if kind is None else Target(kind, value)
        settings = replace(self.job.settings, target=wanted, gamma=value if kind is None else None)
        job = replace(self.job, settings=settings, folder=self.folder / f"{kind}-{value:g}")
        with self._cached_factors(), RankSearch(job, self._norm, resume=False) as search:
            self._parts = search._every_part
            built = reach_target(job, search, self._norm) if wanted else build(job, search.run(), self._norm)
        return self._row(built) | {"kind": kind or "gamma", "asked": value, "seconds": time.perf_counter() - began}

    def _cached_factors(self) -> Any:
        known = self._parts
        original = decompose_or_recall
        return mock.patch.object(search_ranks, "decompose_or_recall", lambda *given: known or original(*given))

    def _row(self, built: BuiltNetwork) -> dict[str, Any]:
        record, target = built.result.search, built.target
        assert record is not None
        decided = self._validation.measure(built.network)
        curve = DropCurve([decided], self._validation.is_labelled)
        return {
            "ratio": count_params(built.network) / self._original,
            "drop_outside": self.estimator.measure(built.network).drop,
            "gamma": built.result.gamma,
            "evaluations": record.evaluations,
            "image_passes": record.image_passes,
            "certificate_met": record.certificate.met,
            "reached": target.reached if target else decided.drop,
            "at_most": target.at_most if target else curve.at_most(decided.loss),
            "met": target.met if target else None,
            "steps": len(target.steps) if target else 0,
            "validation_passes": target.image_passes if target else 0,
        }


def seed_of(
    model: nn.Module,
    arch: str,
    images: tuple[ImageSet, ImageSet],
    seed: int,
    recalibrate: bool,
    folder: Path,
    progress: Progress,
) -> Seed:
    """The job of one seed on its images, with the images that judge it."""
    mine, evaluators = images
    settings = Settings(target=Target("drop", 1.0), recalibrate=recalibrate, search=SearchSettings(seed=seed))
    job = prepare(model, mine, folder / "job", settings, Source(arch), progress)
    return Seed(job, DropEstimator([FunctionNorm(job.original, evaluators, job.device)]), folder)


@click.command()
@click.argument("model_path", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--input-size", type=int, required=True)
@click.option("--images", "num_images", default=3000, show_default=True, help="That a run gets; the others judge.")
@click.option("--seeds", default=10, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--sweeps", default=2, show_default=True, help="Seeds that run all the rest, too.")
@click.option("--ratios", default="0.4,0.15", show_default=True)
@click.option("--drop", default=1.0, show_default=True, help="Points of top-1.")
@click.option("--gammas", nargs=2, type=float, default=(0.02, 2.0), show_default=True, help="Ends of the sweep.")
@click.option("--recalibrate/--no-recalibrate", default=False, show_default=True)
@click.option("--add", is_flag=True, help="Keep the rows that the results file holds already.")
@click.option("--name", default="targets", show_default=True, help="Name of the results file.")
def main(
    model_path: Path,
    data: Path,
    input_size: int,
    num_images: int,
    seeds: int,
    first_seed: int,
    sweeps: int,
    ratios: str,
    drop: float,
    gammas: tuple[float, float],
    recalibrate: bool,
    add: bool,
    name: str,
) -> None:
    """Run the study and write benchmarks/results/NAME.json, anew after every run."""
    began, progress = time.perf_counter(), progress_for_stderr()
    loaded, images, _ = load_squares(model_path, data, input_size, 10**6)
    about = {
        "network": loaded.arch,
        "images": num_images,
        "evaluated_on": len(images) - num_images,
        "recalibrated": recalibrate,
        "drop": drop,
    }
    rows, began = earlier_rows(name, add, began)
    others: list[Ask] = [("ratio", float(ratio)) for ratio in ratios.split(",") if ratio]
    others += [(None, float(value)) for value in np.geomspace(*gammas, NUM_GAMMAS)]
    known = {row["seed"] for row in rows if (row["kind"], row["asked"]) == ("drop", drop)}
    for seed in range(first_seed, seeds):
        if seed in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            one = seed_of(
                loaded.model, loaded.arch, images.split(num_images, seed), seed, recalibrate, Path(folder), progress
            )

            for row in one.runs(drop, others if seed < sweeps else None):
                rows.append({"seed": seed} | row)
                progress.log(str(rows[-1]))
                write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
