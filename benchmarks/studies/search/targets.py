"""Do targets hold on test images, and is searching for a target worth more than a sweep of gammas?

    python -m benchmarks.studies.search.targets MODEL DATA --input-size 64

Every seed draws its own images for calibration, search and validation; all others are test images. Each seed runs the
target. Some also run a plain search at the gamma that was found, which shows what the target costs in image passes,
other targets, and a sweep of eight gammas. From a sweep one would take the smallest network whose bound on the
validation images is within the drop; the smallest within it on the test images, which nobody could know, is reported as
well. Factors are computed once per seed.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import nn

from benchmarks.studies.loading import load_squares
from benchmarks.studies.study import earlier_rows, write_results
from compressor.cost.size import count_params
from compressor.data.images import ImageSet
from compressor.fidelity.accuracy_drop import DropCurve, DropEstimator
from compressor.fidelity.function_norm import FunctionNorm
from compressor.pipeline.context import Context, Source
from compressor.pipeline.prepare import prepare
from compressor.pipeline.search_stages import search_stages
from compressor.pipeline.settings import Settings, Target
from compressor.pipeline.stage import run_stages
from compressor.pipeline.stages.evaluate_original import EvaluateOriginal
from compressor.pipeline.stages.factorize import Factorize
from compressor.pipeline.state import Part, State, needed
from compressor.progress import Progress, progress_for_stderr
from compressor.search.optimizer import SearchSettings
from compressor.search.records import TargetKind

NUM_GAMMAS = 8
Ask = tuple[TargetKind | None, float]  # a target with its value, or None with a gamma


@dataclass
class Seed:
    """All runs on one draw of images; `test` measures drops on the test images."""

    context: Context
    test: DropEstimator
    folder: Path

    def __post_init__(self) -> None:
        context = self.context
        assert context.validation is not None
        start = run_stages([EvaluateOriginal(), Factorize()], context, State(context.original))
        self._decomposed: Sequence[Part] = needed(start.decomposed, "layers with factors")
        self._original = count_params(context.original)
        norm = needed(start.norm, "a function norm")
        self._validation = DropEstimator([norm, FunctionNorm(context.original, context.validation, context.device)])

    def runs(self, drop: float, others: Sequence[Ask] | None) -> Iterator[dict[str, Any]]:
        """The row of the drop; with `others`, also those of a plain search at the gamma found, and of `others`.

        The gammas among `others` are the sweep.
        """
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
        settings = replace(self.context.settings, target=wanted, gamma=value if kind is None else None)
        context = replace(self.context, settings=settings, folder=self.folder / f"{kind}-{value:g}")
        stages = [stage for stage in search_stages(settings) if not isinstance(stage, Factorize)]
        state = run_stages(stages, context, State(context.original, decomposed=self._decomposed))
        return self._row(state) | {"kind": kind or "gamma", "asked": value, "seconds": time.perf_counter() - began}

    def _row(self, state: State) -> dict[str, Any]:
        result, target = needed(state.result, "a plan"), state.target
        record = needed(result.search, "a search")
        decided = self._validation.measure(state.network)
        curve = DropCurve([decided], self._validation.is_labelled)
        return {
            "ratio": count_params(state.network) / self._original,
            "drop_outside": self.test.measure(state.network).drop,
            "gamma": result.gamma,
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
    """The runs of one seed on its images.

    Args:
        model: the original.
        arch: its name.
        images: those that runs get, and test images.
        seed: of all runs.
        recalibrate: whether layers are reconstructed.
        folder: where runs write.
        progress: announces their stages.
    """
    mine, test_images = images
    settings = Settings(target=Target("drop", 1.0), recalibrate=recalibrate, search=SearchSettings(seed=seed))
    context = prepare(model, mine, folder / "out", settings, Source(arch), progress)
    return Seed(context, DropEstimator([FunctionNorm(context.original, test_images, context.device)]), folder)


@click.command()
@click.argument("model_path", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--input-size", type=int, required=True)
@click.option("--images", "num_images", default=3000, show_default=True, help="Of a run; three fifths at most.")
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
    num_images = min(num_images, 3 * len(images) // 5)
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
    for seed in range(first_seed, first_seed + seeds):
        sweep = others if seed < first_seed + sweeps else []
        wanted = [("drop", drop), *((kind or "gamma", value) for kind, value in sweep)]
        known = {(row["kind"], row["asked"]) for row in rows if row["seed"] == seed}
        if all(ask in known for ask in wanted):
            continue
        rows = [row for row in rows if row["seed"] != seed]  # runs of a seed go on with one another's evaluations
        with tempfile.TemporaryDirectory() as folder:
            one = seed_of(
                loaded.model, loaded.arch, images.split(num_images, seed), seed, recalibrate, Path(folder), progress
            )

            for row in one.runs(drop, sweep or None):
                rows.append({"seed": seed} | row)
                progress.log(str(rows[-1]))
                write_results(name, about, rows, began)


if __name__ == "__main__":
    main()
