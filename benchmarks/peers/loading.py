"""A checkpoint and a folder of images, at a side of one's choice."""

from pathlib import Path

from compressor.architectures import Transform
from compressor.checkpoint import LoadedModel, load_model
from compressor.images import ImageSet, load_folder


def load_squares(model: Path, data: Path, side: int, limit: int) -> tuple[LoadedModel, ImageSet, Transform]:
    """The network, at most `limit` images of `side` pixels as its weights want them, and what made them so."""
    loaded = load_model(model)
    transform = Transform(side, side, loaded.transform.mean, loaded.transform.std)
    return loaded, load_folder(data, transform, limit, seed=0), transform
