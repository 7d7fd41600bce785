"""Whether labels are those of the network's outputs, which the original's own decisions tell."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import nn

from compressor.data.images import ImageSet
from compressor.fidelity.decisions import count_classes, decide
from compressor.fidelity.function_norm import FunctionNorm
from compressor.fidelity.labels import misfit
from compressor.text import input_noun

Labels = NDArray[np.int64]

MAX_CHECKED_IMAGES = 500
SIGNIFICANCE = 0.01  # of one-sided tests
SHUFFLES = 2000


@dataclass(frozen=True)
class LabelCheck:
    """What is done with labels.

    Attributes:
        reason: why they are not used, in words; empty where they are.
        renumbered: whether classes are numbered in their other usual order.
        note: what a person should know; empty where labels are used as they are.
        finding: how often the original decides as the labels in use say, in words; empty where none are.
    """

    reason: str = ""
    renumbered: bool = False
    note: str = ""
    finding: str = ""

    def apply(self, images: ImageSet) -> ImageSet:
        """The images, of the set that was checked, with labels as they are to be used."""
        if not self.note:
            return images
        images = replace(images, notes=(*images.notes, self.note))
        if self.renumbered:
            return images.renumbered()
        return images.without_labels(self.reason) if self.reason else images


def check_labels(original: nn.Module, images: ImageSet, device: torch.device) -> LabelCheck:
    """Hold labels against the decisions of the original on the first of the images.

    Labels are not used where they do not fit the outputs, or where the original decides by them no better than by
    labels that are shuffled among the images. Where class folders can be numbered in two usual orders, by number or
    by letter, the one by which it decides clearly better is taken.

    Args:
        original: the network, on the device.
        images: with or without labels; at most MAX_CHECKED_IMAGES are run.
        device: where it runs.

    Raises:
        InputError: the network's outputs are not one finite tensor.
    """
    if images.labels is None or len(images) < 2:
        return LabelCheck()
    first = FunctionNorm(original, images.subset(range(2)), device)
    if not first.decides:
        return _dropped("the network does not give one score for each class of an image")
    num_outputs = first.targets.shape[1]
    if reason := misfit(images, num_outputs):
        return _dropped(reason)
    images = images.subset(range(min(MAX_CHECKED_IMAGES, len(images))))
    norm, nouns = FunctionNorm(original, images, device), f"{input_noun(images.input_shape)}s"
    assert images.labels is not None
    decided, labels = decide(norm.targets.cpu()).numpy(), images.labels.numpy()
    if images.other_order is not None:
        other = np.array(images.other_order)[labels]
        if _is_better(decided, other, labels):
            return _renumbered(images.renumbered(), (decided == other).mean(), (decided == labels).mean())
    # So few images that the best network could not be told from chance say nothing.
    num_classes = count_classes(num_outputs)
    if _chance(labels, labels, num_classes) < SIGNIFICANCE <= _chance(decided, labels, num_classes):
        hits = int((decided == labels).sum())
        return _dropped(
            f"the original decides as they say on {hits} of {len(labels)} {nouns}, no more than chance gives: they may "
            f"be in another order than its outputs, or its {nouns} be prepared otherwise (--input-size, --mean, --std)"
        )
    return LabelCheck(finding=_finding(decided, labels, nouns))


def _finding(decided: Labels, labels: Labels, nouns: str) -> str:
    return f"the original decides as the labels say on {(decided == labels).mean():.1%} of {len(labels)} {nouns}"


def _dropped(reason: str) -> LabelCheck:
    return LabelCheck(reason, note=f"labels are not used: {reason}")


def _renumbered(images: ImageSet, right: float, beside: float) -> LabelCheck:
    order = ", ".join((images.class_names or [])[:4])
    note = (
        f"classes are numbered in the order {order}, ..., as the original's decisions say: it is right on {right:.0%} "
        f"of {len(images)} images, in the other usual order on {beside:.0%}"
    )
    return LabelCheck(renumbered=True, note=note)


def _is_better(decided: Labels, one: Labels, other: Labels) -> bool:
    """Whether decisions are right more often by labels `one`, by the sign test on images where only one is right."""
    right, beside = (int(((decided == a) & (decided != b)).sum()) for a, b in ((one, other), (other, one)))
    return right > beside and binomtest(right, right + beside, alternative="greater").pvalue < SIGNIFICANCE


def _chance(decided: Labels, labels: Labels, num_classes: int) -> float:
    """The probability that as many decisions (n,) are right by chance.

    Chance shuffles the labels (n,) among the images, so that nobody gains by deciding for the most common class. Where
    there is one label alone, it is a guess among all classes.
    """
    hits = int((decided == labels).sum())
    if (labels == labels[0]).all():
        return float(binomtest(hits, len(labels), 1 / num_classes, alternative="greater").pvalue)
    rng = np.random.default_rng(0)
    shuffled = np.array([(decided == rng.permutation(labels)).sum() for _ in range(SHUFFLES)])
    return float((1 + (shuffled >= hits).sum()) / (1 + SHUFFLES))
