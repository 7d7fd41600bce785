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

Size = tuple[int | None, ...]  # channels, height, width; of clips the frames after the channels


@dataclass(frozen=True)
class ComparedImages:
    """The same images for two files: inputs (N, ...) of each, and the set with labels and files' names.

    `hint` says what may be wrong with them if the files differ by much; empty where nothing was assumed.
    """

    images: "ImageSet"
    first: "Tensor"
    second: "Tensor"
    hint: str = ""

    @property
    def labels(self) -> "Labels | None":
        """The images' labels and how many classes there are."""
        from exporters.verify import Labels

        values, names = self.images.labels, self.images.class_names
        return None if values is None or names is None else Labels(values, len(names))


def load_images_for_files(options: dict[str, Any], progress: "Progress") -> ComparedImages:
    """Images for the files `first` and `second`, of the size that the first one's metadata or the options give.

    Each file gets them normalized as its own metadata say; --mean and --std count for both in their place.

    Raises:
        InputError: a file or the folder cannot be read, the files take images of two sizes, or the images would not
            fit into memory.
    """
    from compressor.data.folders import load_folder
    from compressor.data.synthetic import synthetic_images
    from exporters.feeding import class_names_of
    from exporters.session import describe_input

    inputs = [describe_input(options[name]) for name in ("first", "second")]
    transform = _transform_for(inputs, _common_size(inputs, options), options)
    count = image_limit(options)
    require_memory(4 * count, transform)  # all at once, as float32
    if options["data"] is None:
        progress.log(f"note: {SYNTHETIC_NOTE}")
        images = synthetic_images(min(NUM_VERIFY_IMAGES, count), transform, options["seed"])
    else:
        names = class_names_of(inputs[0].metadata) or class_names_of(inputs[1].metadata)
        images = load_folder(options["data"], transform, count, options["seed"], class_names=names)
    first, second = (_feed(images, each, options) for each in inputs)
    return ComparedImages(images, first, second, _hint(inputs, transform, options))


def _common_size(inputs: list["ModelInput"], options: dict[str, Any]) -> Size:
    """Channels, frames, height and width that both files take; None where both leave one open."""
    sizes = [each.shape[1:] for each in inputs]
    if len(sizes[0]) != len(sizes[1]):
        raise InputError(f"of {options['first']} and {options['second']} one takes images and the other clips")
    for one, other in zip(*sizes, strict=True):
        if one is not None and other is not None and one != other:
            shapes = [" x ".join("any" if side is None else str(side) for side in size) for size in sizes]
            raise InputError(
                f"{options['first']} takes images of {shapes[0]} and {options['second']} of {shapes[1]}: no image "
                "fits both"
            )
    channels, *clip, height, width = (one if one is not None else other for one, other in zip(*sizes, strict=True))
    side = options["input_size"]
    if side and any(fixed not in (None, side) for fixed in (height, width)):
        sides = [f"{name} {fixed}" for name, fixed in (("height", height), ("width", width)) if fixed is not None]
        raise InputError(f"the files take images of {' and '.join(sides)} only: leave out --input-size")
    frames = options["num_frames"]
    if frames and (not clip or clip[0] not in (None, frames)):
        raise InputError(f"the files take {f'{clip[0]} frames only' if clip else 'images'}: leave out --num-frames")
    return channels, *(one or frames for one in clip), height or side, width or side


def _transform_for(inputs: list["ModelInput"], size: Size, options: dict[str, Any]) -> "Transform":
    """The transform of the first metadata that have one, else as published for an architecture; for this size."""
    from compressor.data.transforms import Transform
    from compressor.network.architectures import list_architectures, published_transform
    from exporters.feeding import transform_of

    architecture = inputs[0].metadata.get("architecture", "")
    transform = transform_of(inputs[0].metadata) or transform_of(inputs[1].metadata)
    if transform is None:
        transform = published_transform(architecture) if architecture in list_architectures() else Transform()
    transform = adapt_transform(transform, {**options, "input_size": None, "num_frames": None})
    channels, *clip, height, width = size
    if clip:
        transform = replace(transform, frames=clip[0] or transform.frames)
        if transform.frames is None:
            raise InputError("the files do not say how many frames they take: give --num-frames")
    channels = channels or max(len(transform.mean), len(transform.std))
    for option in ("mean", "std"):
        if options[option] and len(options[option]) not in (1, channels):
            raise InputError(f"--{option} takes a number for each of the {channels} channels of the files, or one")
    mean, std = (
        values if len(values) == channels else (sum(values) / len(values),) * channels
        for values in (transform.mean, transform.std)
    )
    transform = replace(transform, mean=mean, std=std)
    height, width = height or width or transform.height, width or height or transform.width
    if (height, width) == (transform.height, transform.width):
        return transform
    narrow = None if width == height else width
    return replace(transform, input_size=height, resize_size=min(height, width), input_width=narrow)


def _feed(images: "ImageSet", file: "ModelInput", options: dict[str, Any]) -> "Tensor":
    """Images as the file takes them: bytes, pixels in its range where it normalizes itself, else normalized."""
    from exporters.feeding import IN_GRAPH, normalization_of

    if file.dtype == "uint8":
        return images.data.float()
    own = normalization_of(file.metadata)
    channels = len(images.mean)
    if own is not None and len(own.mean) in (1, channels):
        mean, std = (values * (channels // len(values)) for values in (own.mean, own.std))
        if file.metadata.get("normalization") != IN_GRAPH:
            mean, std = images.mean if options["mean"] else mean, images.std if options["std"] else std
        images = replace(images, mean=mean, std=std)
    return images.batch(slice(0, len(images)))


def _hint(inputs: list["ModelInput"], transform: "Transform", options: dict[str, Any]) -> str:
    """What was assumed of the one file that does not say how to feed it, while the other says it or takes bytes."""
    from exporters.feeding import normalization_of

    silent = [each.dtype != "uint8" and normalization_of(each.metadata) is None for each in inputs]
    if silent.count(True) != 1 or (options["mean"] and options["std"]):
        return ""
    mean, std = (",".join(f"{value:.3g}" for value in values) for values in (transform.mean, transform.std))
    return (
        f"{options['first' if silent[0] else 'second']} does not say how its images are normalized, --mean {mean} "
        f"--std {std} were assumed: give both options if it takes others"
    )
