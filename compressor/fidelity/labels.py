"""Labels of images: whether there are any, and whether they fit the network's outputs."""

from torch import Tensor

from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.fidelity.decisions import count_classes
from compressor.fidelity.records import Fidelity


def fitting_labels(images: ImageSet, num_outputs: int) -> Tensor | None:
    """The images' labels (m,) where there are as many classes as the outputs tell apart, else None."""
    return None if images.labels is None or misfit(images, num_outputs) else images.labels


def require_labels(images: ImageSet, num_outputs: int, kind: Fidelity) -> Tensor:
    """The images' labels (m,).

    Args:
        images: m of them.
        num_outputs: of the network.
        kind: the fidelity that needs them, for the sentence.

    Raises:
        InputError: there are none, or they do not fit the network's outputs.
    """
    require_labelled(images, kind)
    why = misfit(images, num_outputs)
    if why:
        raise InputError(f"--fidelity {kind} needs one class for each output of the network: {why}")
    assert images.labels is not None
    return images.labels


def require_labelled(images: ImageSet, kind: Fidelity) -> None:
    """Check what does not depend on the network's outputs.

    Raises:
        InputError: a risk is asked for, and the images have no labels.
    """
    if kind == "norm" or images.labels is not None:
        return
    if images.masks is not None or images.boxes is not None:
        what = (
            "masks: mean IoU is in the report and by --max-drop"
            if images.boxes is None
            else "boxes: average precision is in the report"
        )
        raise InputError(
            f"--fidelity {kind} needs a label for each image, and these have {what}; --fidelity norm searches without"
        )
    why = "synthetic images have none" if images.synthetic else f"there are none with {images.source}"
    raise InputError(
        f"--fidelity {kind} needs labels, and {why}: give --data a folder with one subfolder for each class, "
        "or use --fidelity norm, which needs no labels"
    )


def misfit(images: ImageSet, num_outputs: int) -> str:
    """Why the labels cannot be those of the outputs, in words; empty where they can."""
    assert images.labels is not None
    num_classes = count_classes(num_outputs)
    outputs = f"{num_outputs} outputs" if num_outputs > 1 else "a single output, whose sign tells two classes apart"
    if images.class_names is not None and len(images.class_names) != num_classes:
        few = len(images.class_names) < num_classes
        hint = " (classes.txt beside the checkpoint, a name per output, says which ones they are)" if few else ""
        return f"the folder has {len(images.class_names)} classes and the network {outputs}{hint}"
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= num_classes:
        return f"labels run from {low} to {high} and the network has {outputs}"
    return ""
