"""What a network decides: the class of its largest output, or the sign where it has a single output."""

import torch
from torch import Tensor


def decide(outputs: Tensor) -> Tensor:
    """The class decided on (n, ...), from outputs (n, num_outputs, ...), such as scores of every pixel.

    Of a single output it is 1 where that is above zero, else 0.
    """
    return outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()


def count_classes(num_outputs: int) -> int:
    """Classes that so many outputs tell apart: a single one tells two by its sign."""
    return max(2, num_outputs)


def margins(outputs: Tensor) -> Tensor:
    """How far every decision (n,) is from another: the gap between the two largest outputs, or to zero."""
    if outputs.shape[1] == 1:
        return outputs[:, 0].abs()
    best = outputs.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def share(hits: Tensor) -> float:
    """The share of elements that are true."""
    return float(hits.double().mean())


def agreement(outputs: Tensor, targets: Tensor) -> float | None:
    """The share of images with the same decision, from two outputs (n, num_outputs).

    None where the targets are a single output of one sign throughout: a quantity, not a decision.
    """
    decided = decide(targets)
    if targets.shape[1] == 1 and torch.equal(decided, decided[:1].expand_as(decided)):
        return None
    return share(decide(outputs) == decided)
