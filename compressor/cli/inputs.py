"""Networks and images that the options name, loaded with progress on stderr."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from compressor.cli.config import preset_words
from compressor.cli.settings import check_tuning
from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.data.images import ImageSet
    from compressor.data.transforms import Transform
    from compressor.network.checkpoint import LoadedModel
    from compressor.pipeline.context import Source
    from compressor.progress import Progress, ProgressStage

NUM_SYNTHETIC_IMAGES = 256
MAX_IMAGES_WITH_DROP = 10_000
NUM_VERIFY_IMAGES = 64
NUM_SIZES = 20  # files whose size is looked at
MAX_ENLARGEMENT = 2
MIN_STD = 1e-6
MAX_IMAGES_GB = 8
SYNTHETIC_NOTE = (
    "no --data given: the images are synthetic; with real images of your task the plan is better and the report "
    "means more"
)


def make_progress(quiet: bool = False) -> "Progress":
    """Progress on stderr, as a bar on a terminal and as lines elsewhere; none if `quiet`."""
    from compressor.progress import Progress, progress_for_stderr

    return Progress() if quiet else progress_for_stderr()


def typed_command() -> str:
    """The command line as typed, quoted for a shell."""
    program = Path(sys.argv[0]).name
    return shlex.join(["bocompress" if program == "__main__.py" else program, *sys.argv[1:]])


def check_output(out: Path, options: dict[str, Any], progress: "Progress") -> None:
    """Check the folder to write before anything is loaded.

    Args:
        out: the folder to write.
        options: of the command, by name.
        progress: where it is noted that there is nothing to resume.

    Raises:
        InputError: it holds other files, an earlier run that is neither to resume nor to overwrite, or an input.
    """
    from compressor.files import check_folder, require_writable
    from compressor.pipeline.outputs import OUTPUTS, holds_run, require_replaceable

    if options["resume"] and options["overwrite"]:
        raise InputError("--resume and --overwrite contradict each other: give one of them")
    if options["resume"] and not holds_run(out):
        progress.log(f"note: nothing to resume in {out}: the run begins anew")
    require_writable(out)
    if options["overwrite"]:
        require_replaceable(out)
        inputs = [options[name] for name in ("model", "plan", "data", "train_data", "config") if options.get(name)]
        for path in inputs:
            if path.resolve().is_relative_to(out.resolve()):
                raise InputError(f"{path} lies in {out}, which --overwrite would empty: choose another --out")
        return
    try:
        check_folder(out, keep=OUTPUTS if options["resume"] else ())
    except InputError as error:
        if options["resume"] or not holds_run(out):
            raise
        raise InputError(f"{error}; --resume goes on with the run there, --overwrite replaces it") from error


def load_network(options: dict[str, Any]) -> "LoadedModel":
    """The network of `model`, with its published transform as the options change it.

    Raises:
        InputError: it cannot be loaded, --std is next to zero, or --mean or --std has not as many numbers as the
            network has channels.
    """
    from dataclasses import replace

    from compressor.network.checkpoint import load_model

    loaded = load_model(options["model"], options["arch"], options["trust_pickle"], options["weights"])
    channels = loaded.transform.channels
    for name in ("mean", "std"):
        given = options.get(name)
        if given and len(given) != channels:
            raise InputError(
                f"--{name} has {len(given)} numbers, but the network takes {channels} channels: give as many"
            )
    return replace(loaded, transform=adapt_transform(loaded.transform, options))


def adapt_transform(transform: "Transform", options: dict[str, Any]) -> "Transform":
    """The transform with what the options change of it; raises InputError where --std is next to zero."""
    from dataclasses import replace

    if options.get("input_size"):
        transform = replace(transform, input_size=options["input_size"], resize_size=options["input_size"])
    if options.get("mean"):
        transform = replace(transform, mean=options["mean"])
    if options.get("std"):
        transform = replace(transform, std=options["std"])
    if options.get("num_frames"):
        if transform.adjacent:
            raise InputError("--num-frames is of networks that take clips, and this one takes pairs: leave it out")
        if transform.frames is None:
            raise InputError("--num-frames is of networks that take clips, and this one takes images: leave it out")
        transform = replace(transform, frames=options["num_frames"])
    if any(value < MIN_STD for value in transform.std):
        raise InputError(f"--std must be at least {MIN_STD:g} in every channel")
    return transform


def load_network_and_images(
    options: dict[str, Any], progress: "Progress", tuned: bool = False
) -> "tuple[LoadedModel, ImageSet]":
    """The network of `model`, and the images of --data or synthetic ones.

    Args:
        options: the command's.
        progress: announces what is loaded.
        tuned: whether a recipe fine-tunes.

    Raises:
        InputError: one of them cannot be loaded, or the options of fine-tuning do not go together.
    """
    check_tuning(options, tuned or options["finetune"] > 0)
    from compressor.data.clips.frames import list_frames
    from compressor.data.folders import list_images
    from compressor.factorization.registry import CHANNELS

    num_images = image_limit(options)
    files: list[Path] = []
    if options["data"] is None:
        if options.get("method") == CHANNELS:  # said before synthetic images are made
            raise InputError(f"--method {CHANNELS} refits layers to images: synthetic ones will not do, give --data")
        num_images = min(NUM_SYNTHETIC_IMAGES, num_images)
    else:  # A wrong folder is an error at once, not after the network is loaded.
        files = list_images(options["data"]).files
        num_images = min(num_images, len(files))
    with progress.stage("loading the network"):
        loaded = load_network(options)
    transform = loaded.transform
    progress.log(f"{options['model']}: {loaded.arch} with {name_outputs(loaded)}, input of {transform.described}")
    if options["data"] is not None and transform.frames:
        clips = list_images(options["data"], transform=transform).files
        files = clips if transform.adjacent else [list_frames(clip)[0] for clip in clips[:NUM_SIZES]]
        num_images = min(num_images, len(clips))
    for note in (*loaded.notes, *([] if options["input_size"] else note_on_size(files, transform, loaded.arch))):
        progress.log(f"note: {note}")
    require_memory(num_images, transform)
    return loaded, _load_images(options, loaded, num_images, progress)


def name_outputs(loaded: "LoadedModel") -> str:
    """What the network gives for an image, or a pair of frames, in words."""
    import torch

    from compressor.network.architectures import task_of
    from compressor.network.clips.flow import FlowNetwork
    from compressor.outputs.structure import find_outputs

    if isinstance(loaded.model, FlowNetwork):
        return "a flow"
    if task_of(loaded.arch) is None and not is_detection(loaded):
        outputs = find_outputs(loaded.model, torch.zeros(1, *loaded.transform.shape))
        if len(outputs) > 1:
            return f"{len(outputs)} outputs"
        if len(outputs[0].shape) > 1:
            return f"an output of {' x '.join(map(str, outputs[0].shape))}"
    return "one output" if loaded.num_classes == 1 else f"{loaded.num_classes} classes"


def note_on_size(files: Sequence[Path], transform: "Transform", arch: str) -> list[str]:
    """That images are much smaller than the input that is taken for granted, which a network may not be trained for.

    Args:
        files: the images, of which a few are measured.
        transform: its input size is in pixels.
        arch: the network's architecture, for the sentence.

    Returns:
        The sentence, or nothing.
    """
    from compressor.data.pixels import open_image
    from compressor.files import open_regular

    shorter = []  # what cannot be read is counted where pixels are read
    for file in files[:: max(1, len(files) // NUM_SIZES)]:
        with suppress(Exception), open_regular(file) as opened, open_image(opened) as image:
            shorter.append(min(image.size))
    if not shorter or median(shorter) * MAX_ENLARGEMENT >= transform.input_size:
        return []
    return [
        f"the images have {median(shorter):.0f} px on their shorter side and are enlarged to {transform.input_size}, "
        f"as torchvision's own weights of {arch} take them; give --input-size if yours were trained at another size"
    ]


def _load_images(
    options: dict[str, Any], loaded: "LoadedModel", num_synthetic: int, progress: "Progress"
) -> "ImageSet":
    from dataclasses import replace

    from compressor.data.synthetic import synthetic_images

    if options["data"] is None:
        progress.log(f"note: {SYNTHETIC_NOTE}")
        with progress.stage("making synthetic images", num_synthetic) as stage:
            return synthetic_images(
                num_synthetic, loaded.transform, options["seed"], lambda done, _: stage.update(done)
            )
    max_images, clips = image_limit(options), loaded.transform.frames is not None
    with progress.stage("reading clips" if clips else "reading images", max_images) as stage:
        images = _read_folder(options["data"], loaded, options["seed"], max_images, stage)
    _log_images(images, progress)
    return images if options["max_images"] is None else replace(images, further=None)


def _read_folder(folder: Path, loaded: "LoadedModel", seed: int, limit: int, stage: "ProgressStage") -> "ImageSet":
    """At most `limit` images, with labels, or masks, as the network's outputs have them."""
    from compressor.data.folders import load_folder
    from compressor.data.masks import load_with_masks
    from compressor.fidelity.decisions import count_classes

    transform = loaded.transform
    if is_detection(loaded):
        from compressor.data.boxes.coco import load_with_boxes

        return load_with_boxes(folder, transform, limit, seed, loaded.num_classes, lambda done, _: stage.update(done))
    if gives_maps(loaded):
        return load_with_masks(folder, transform, limit, seed, loaded.num_classes, lambda done, _: stage.update(done))
    return load_folder(
        folder,
        transform,
        limit,
        seed,
        lambda done, _: stage.update(done),
        class_names=loaded.class_names,
        num_classes=count_classes(loaded.num_classes),
    )


def is_detection(loaded: "LoadedModel") -> bool:
    """Whether the network is a detector's, so that boxes are sought as labels."""
    from compressor.network.detection.raw import RawDetector

    return isinstance(loaded.model, RawDetector)


def gives_maps(loaded: "LoadedModel") -> bool:
    """Whether the network gives something at every pixel, so that masks are sought as labels."""
    import torch

    from compressor.network.architectures import list_task
    from compressor.outputs.structure import find_outputs

    transform = loaded.transform
    if loaded.arch in list_task("classification") or transform.frames:
        return False
    if loaded.arch in list_task("segmentation"):
        return True
    example = torch.zeros(1, transform.channels, transform.height, transform.width)
    outputs = find_outputs(loaded.model, example)
    return any(output.shape[1:] == (transform.height, transform.width) for output in outputs)


def _log_images(images: "ImageSet", progress: "Progress", what: str = "") -> None:
    progress.log(f"{what}{images.source}{f' ({images.label_note})' if images.label_note else ''}")
    for note in images.notes:
        progress.log(f"note: {note}")


def image_limit(options: dict[str, Any]) -> int:
    """--max-images; left out, more where --max-drop asks for a bound."""
    from compressor.data.images import MAX_IMAGES

    return int(options["max_images"] or (MAX_IMAGES_WITH_DROP if options.get("max_drop") else MAX_IMAGES))


def load_train_images(loaded: "LoadedModel", options: dict[str, Any], progress: "Progress") -> "ImageSet | None":
    """The images of --train-data under the network's transform, None without the option.

    Args:
        loaded: the network and what its file says of its inputs.
        options: of the command, by name.
        progress: shows the reading.

    Raises:
        InputError: the folder cannot be read, or its images would not fit into memory.
    """
    from compressor.data.folders import list_images

    if options["train_data"] is None:
        return None
    transform, count = loaded.transform, options["max_train_images"]
    count = min(count, len(list_images(options["train_data"], transform=transform).files))
    require_memory(count, transform)
    with progress.stage("reading training images", count) as stage:
        images = _read_folder(options["train_data"], loaded, options["seed"], count, stage)
    _log_images(images, progress, "training images: ")
    return images


def require_memory(num_images: int, transform: "Transform") -> None:
    """Raise InputError where so many inputs would not fit into memory."""
    needed_gb = num_images * prod(transform.shape) / 1e9
    if needed_gb > MAX_IMAGES_GB:
        what, options = ("clips", "--max-images, --num-frames") if transform.frames else ("images", "--max-images")
        raise InputError(
            f"{num_images} {what} of {transform.described} would take {needed_gb:.0f} GB of memory: "
            f"lower {options} or --input-size"
        )


def make_source(loaded: "LoadedModel", options: dict[str, Any]) -> "Source":
    """Where network and images come from, for the report."""
    from compressor.pipeline.context import Source

    notes = [*loaded.notes, *([SYNTHETIC_NOTE] if options["data"] is None else [])]
    names = None if loaded.class_names is None else tuple(loaded.class_names)
    return Source(loaded.arch, notes, typed_command(), loaded.transform, names, preset_words(options))
