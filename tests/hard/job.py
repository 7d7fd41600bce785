"""A whole job on a small network, without latencies: `python -m tests.hard.job FOLDER [RESUME [RECIPE]]`."""

import sys
from pathlib import Path

from compressor import InputError, Recipe, Settings, compress
from compressor.pipeline.delivery import measure
from compressor.pipeline.recipe import parse_recipe
from compressor.recovery.settings import TuneSettings
from compressor.search.settings import SearchSettings
from tests.hard.networks import make_images, make_network

RECIPE = """
[[stage]]
kind = "compress"
name = "all"
max_evaluations = 6
[[stage]]
kind = "finetune"
epochs = 2
[[stage]]
kind = "prune"
fraction = 0.1
"""
SEARCH = SearchSettings(max_evaluations=8, samples=4, delta=1e-6, epsilon=1e-9)
SETTINGS = Settings(search=SEARCH, calibration=8, tune=TuneSettings(epochs=2))


def run_job(folder: Path, resume: bool, recipe: Recipe | None = None) -> None:
    """Compress the network into the folder."""
    measure.latency_beside = lambda *_: {}
    compress(make_network(), make_images(40), folder, SETTINGS, recipe, resume=resume)


if __name__ == "__main__":
    try:
        run_job(Path(sys.argv[1]), "RESUME" in sys.argv, parse_recipe(RECIPE, "job") if "RECIPE" in sys.argv else None)
    except InputError as error:
        sys.exit(f"refused: {error}")
