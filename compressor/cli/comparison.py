"""Images for `bocompress verify`: of the size that both files take, each normalized as its file wants it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compressor.cli.inputs import (
    NUM_VERIFY_IMAGES,
    SYNTHETIC_NOTE,
    adapt_transform,
    image_limit,
    require_memory,
)
from compressor.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data.images import ImageSet
    from compressor.data.transforms import Transform
    from compressor.progress import Progress
    from exporters.session import ModelInput
    from exporters.verify import Labels

Size = tuple[int | None, int | None, int | None]  # channels, height, width


@dataclass(frozen=True)
class ComparedImages:
    """The same images for two files: inputs (N, ...) of each, and the set with labels and files' names."""

    images: "ImageSet"
    first: "Tensor"
    second: "Tensor"

    @property
    def labels(self) -> "Labels | None":
        """The images' labels and how many classes there are."""
        from exporters.verify import Labels

        values, names = self.images.labels, self.images.class_names
        return None if values is None or names is None else Labels(values, len(names))


def load_images_for_files(options: dict[str, Any], progress: "Progress") -> ComparedImages:
    """Images for the files `first` and `second`, with the transform that the first one's metadata or the options give.

    Raises:
        InputError: a file or the folder cannot be read, the files take images of two sizes, or the images would not
            fit into memory.
    """
    from compressor.data.folders import load_folder
    from compressor.data.synthetic import synthetic_images
    from exporters.feeding import class_names_of
    from exporters.session import describe_input

    inputs = [describe_input(options[name]) for name in ("first", "second")]
    transform = _transform_for(inputs[0], _common_size(inputs, options), options)
    count = image_limit(options)
    require_memory(4 * count, max(transform.height, transform.width))  # all at once, as float32
    if options["data"] is None:
        progress.log(f"note: {SYNTHETIC_NOTE}")
        images = synthetic_images(min(NUM_VERIFY_IMAGES, count), transform, options["seed"])
    else:
        names = class_names_of(inputs[0].metadata) or class_names_of(inputs[1].metadata)
        images = load_folder(options["data"], transform, count, options["seed"], class_names=names)
    first, second = (_feed(images, each) for each in inputs)
    return ComparedImages(images, first, second)


def _common_size(inputs: list["ModelInput"], options: dict[str, Any]) -> Size:
    """Channels, height and width that both files take; None where both leave one open."""
    sizes = [each.shape[1:] for each in inputs]
    for one, other in zip(*sizes, strict=True):
        if one is not None and other is not None and one != other:
            shapes = [" x ".join("any" if side is None else str(side) for side in size) for size in sizes]
            raise InputError(
                f"{options['first']} takes images of {shapes[0]} and {options['second']} of {shapes[1]}: no image "
                "fits both"
            )
    channels, height, width = (one if one is not None else other for one, other in zip(*sizes, strict=True))
    side = options["input_size"]
    if side and any(fixed not in (None, side) for fixed in (height, width)):
        raise InputError(f"the files take images of {height} x {width} only: leave out --input-size")
    return channels, height or side, width or side


def _transform_for(first: "ModelInput", size: Size, options: dict[str, Any]) -> "Transform":
    """The transform of the file's metadata, else that published for its architecture, for images of this size."""
    from compressor.data.transforms import Transform
    from compressor.network.architectures import list_architectures, published_transform
    from exporters.feeding import transform_of

    architecture = first.metadata.get("architecture", "")
    transform = transform_of(first.metadata)
    if transform is None:
        transform = published_transform(architecture) if architecture in list_architectures() else Transform()
    transform = adapt_transform(transform, {**options, "input_size": None})
    channels, height, width = size
    if channels is not None and channels != transform.channels:
        mean, std = (sum(values) / transform.channels for values in (transform.mean, transform.std))
        transform = replace(transform, mean=(mean,) * channels, std=(std,) * channels)
    height, width = height or width or transform.height, width or height or transform.width
    if (height, width) == (transform.height, transform.width):
        return transform
    narrow = None if width == height else width
    return replace(transform, input_size=height, resize_size=min(height, width), input_width=narrow)


def _feed(images: "ImageSet", file: "ModelInput") -> "Tensor":
    """Images as the file takes them: bytes, pixels in [0, 1] where it normalizes itself, else normalized."""
    from exporters.feeding import IN_GRAPH

    if file.dtype == "uint8":
        return images.data.float()
    if file.metadata.get("normalization") == IN_GRAPH:
        channels = len(images.mean)
        images = replace(images, mean=(0.0,) * channels, std=(1.0,) * channels)
    return images.batch(slice(0, len(images)))
