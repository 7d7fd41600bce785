"""A checkpoint and a folder of images, at a chosen input size."""

from pathlib import Path

from compressor.data.folders import load_folder
from compressor.data.images import ImageSet
from compressor.data.transforms import Transform
from compressor.network.checkpoint import LoadedModel, load_model


def load_squares(model: Path, data: Path, side: int, limit: int) -> tuple[LoadedModel, ImageSet, Transform]:
    """The network, at most `limit` images of `side` pixels under its transform, and that transform."""
    loaded = load_model(model)
    transform = Transform(side, side, loaded.transform.mean, loaded.transform.std)
    return loaded, load_folder(data, transform, limit, seed=0), transform
