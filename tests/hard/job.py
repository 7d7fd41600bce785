"""A whole job on a small network: `python -m tests.hard.job FOLDER [RESUME] [RECIPE] [EXPORT]`.

Latencies are never measured; ONNX files are written with EXPORT alone, since they take most of the time.
"""

import sys
from pathlib import Path

from compressor import InputError, Recipe, Settings, compress
from compressor.pipeline.recipe import parse_recipe
from compressor.recovery.settings import TuneSettings
from compressor.search.settings import SearchSettings
from tests.hard.networks import make_images, make_network
from tests.unmeasured import without_latency, without_measuring

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
    compress(make_network(), make_images(40), folder, SETTINGS, recipe, resume=resume)


if __name__ == "__main__":
    try:
        with without_latency() if "EXPORT" in sys.argv else without_measuring():
            run_job(
                Path(sys.argv[1]), "RESUME" in sys.argv, parse_recipe(RECIPE, "job") if "RECIPE" in sys.argv else None
            )
    except InputError as error:
        sys.exit(f"refused: {error}")
