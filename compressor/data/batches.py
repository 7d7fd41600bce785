"""Image sets of batches that come from Python, as the network takes them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compressor.data.images import VOID, ImageSet
from compressor.errors import InputError

NOT_USED = "targets beside the inputs are not integers of shape (n,) or (n, H, W) in all batches"


def from_batches(batches: Iterable[object], limit: int) -> ImageSet:
    """The first `limit` inputs of batches that are prepared for the network.

    Args:
        batches: tensors of shape (n, ...), or tuples or lists that begin with one, followed by labels if there is a
            one-dimensional tensor of n integers, or masks if there is one of shape (n, H, W). A single tensor is one
            batch.
        limit: maximum number of inputs; batches beyond are not iterated.

    Raises:
        InputError: no inputs, something that is not a floating-point tensor, shapes that differ from batch to
            batch, or values that are not finite.
    """
    inputs: list[Tensor] = []
    labels: list[Tensor | None] = []
    taken, has_targets = 0, False
    if not isinstance(batches, Iterable):
        raise InputError(f"inputs must be an iterable of batches, not {type(batches).__name__}")
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        x, y = split_batch(batch)
        if inputs and x.shape[1:] != inputs[0].shape[1:]:
            raise InputError(
                f"batches disagree on the shape of an input: {tuple(inputs[0].shape[1:])} and then {tuple(x.shape[1:])}"
            )
        inputs.append(x[: limit - taken])
        labels.append(None if y is None else y[: limit - taken])
        has_targets |= isinstance(batch, tuple | list) and len(batch) > 1
        taken += len(inputs[-1])
        if taken >= limit:
            break
    if not taken:
        raise InputError("the batches hold no inputs")
    known = [y for y in labels if y is not None]
    found = ImageSet(torch.cat(inputs), source=f"{taken} inputs given from Python")
    if len(known) == len(labels):
        return _with_targets(found, known)
    return found.without_labels(NOT_USED) if has_targets else found


def _with_targets(images: ImageSet, known: Sequence[Tensor]) -> ImageSet:
    """The images with the labels, or masks, of all batches; without any where they are of both kinds."""
    axes = {each.dim() for each in known}
    if len(axes) != 1:
        return images.without_labels(NOT_USED)
    targets = torch.cat(list(known))
    if axes == {1}:
        return replace(images, labels=targets)
    return replace(images, masks=targets.where((targets >= 0) & (targets < VOID), VOID).to(torch.uint8))


def split_batch(batch: object) -> tuple[Tensor, Tensor | None]:
    """Inputs (float32, on the CPU) and labels or masks (int64, or None) of one batch.

    Raises:
        InputError: it does not begin with a floating-point tensor of finite values and at least two dimensions.
    """
    first, *others = batch if isinstance(batch, tuple | list) and batch else [batch]
    if not isinstance(first, Tensor):
        raise InputError(f"batches must be tensors, or begin with one, not {type(first).__name__}")
    if not first.is_floating_point() or first.dim() < 2:
        kind = str(first.dtype).removeprefix("torch.")
        raise InputError(
            "batches must be floating-point tensors of shape (n, ...) as the network takes them, "
            f"not {kind} of shape {tuple(first.shape)}"
        )
    inputs = first.detach().to("cpu", torch.float32)
    if not bool(inputs.isfinite().all()):
        raise InputError("a batch has NaN or infinite values, or some beyond what float32 holds")
    return inputs, labels_of(others, first)


def labels_of(others: Sequence[object], inputs: Tensor) -> Tensor | None:
    """The labels (n,) of a batch of inputs (n, ...), or masks (n, H, W), int64; None for other kinds of targets."""
    if not others or not isinstance(others[0], Tensor):
        return None
    size = inputs.shape[2:]
    if others[0].shape != inputs.shape[:1] and (len(size) != 2 or others[0].shape != (len(inputs), *size)):
        return None
    labels = others[0]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return None
    return labels.detach().to("cpu", torch.int64)
