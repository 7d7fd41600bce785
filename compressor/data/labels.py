"""The number of every class: as the network knows it by name, by numbers in the names, or in alphabetical order."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compressor.data.classes import name_some, normalize, stem

MIN_KNOWN_SHARE = 0.5  # of the images lie in folders named as the network's classes, or labels are not used


@dataclass(frozen=True)
class Numbering:
    """The label of every class.

    Attributes:
        labels: by folder name; folders without one are no classes of the network.
        class_names: of the labels 0, 1, ...
        reason: why there are no labels, in words; empty where there are.
        other_order: labels that are as usual, by these labels: alphabetical ones where names were taken for numbers,
            numerical ones where the order is alphabetical, numbers from 1 where none is 0; None where both are the
            same, or the labels are certain.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    reason: str = ""
    other_order: Sequence[int] | None = None


def number_classes(counts: Mapping[str, int], known: Sequence[str] = (), num_classes: int | None = None) -> Numbering:
    """Labels for class folders.

    Names that the network knows come first. Names that are all numbers are those numbers, where they fit into the
    network's classes (from 0 or from 1), else they sort as numbers. Other names sort alphabetically, as in
    torchvision's `ImageFolder`.

    Args:
        counts: images by folder name; folders without images have none.
        known: the network's class names, in the order of its outputs.
        num_classes: of the network, as far as it is known.
    """
    if known:
        numbering = _by_known_names(counts, known)
        if numbering.labels or not all(name.isdecimal() for name in counts):
            return numbering
        num_classes = len(known)
    if all(name.isdecimal() for name in counts) and len({int(name) for name in counts}) == len(counts):
        return _by_number(list(counts), known, num_classes)
    filled = [name for name, count in counts.items() if count]
    names = sorted(counts if len(counts) == num_classes else filled)
    return _in_order(names, sorted(names, key=_natural))


def _by_known_names(counts: Mapping[str, int], known: Sequence[str]) -> Numbering:
    found = _match(list(counts), known)
    share = sum(counts[name] for name in found) / sum(counts.values())
    if share < MIN_KNOWN_SHARE:
        unknown = name_some([name for name in counts if name not in found and counts[name]])
        return Numbering(reason=f"{unknown} are none of the network's classes ({name_some(known)})")
    return Numbering(found, list(known))


def _match(names: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Labels of names that are among the known ones: exactly, but for case and blanks, or by a stem of one alone."""
    exact = {name: label for label, name in enumerate(known)}
    alike = {normalize(name): label for name, label in exact.items()}
    labels = {name: exact.get(name, alike.get(normalize(name))) for name in names}
    found = {name: label for name, label in labels.items() if label is not None}
    stems = Counter(map(stem, known)), Counter(map(stem, names))
    by_stem = {stem(name): label for name, label in exact.items()}
    for name in names:
        if name not in found and all(count[stem(name)] == 1 for count in stems):
            found[name] = by_stem[stem(name)]
    return found


def _by_number(names: Sequence[str], known: Sequence[str], num_classes: int | None) -> Numbering:
    ordered = sorted(names, key=int)
    low, high = int(ordered[0]), int(ordered[-1])
    if num_classes is not None and len(names) != num_classes:
        first = 0 if high < num_classes else 1 if low >= 1 and high == num_classes else None
        if first is not None:
            class_names = [str(number + first) for number in range(num_classes)]
            for name in names:
                class_names[int(name) - first] = name
            # Without a folder 0 they may be numbered from 1, the last class being absent.
            shifted = None if known or first or low == 0 else [(n - 1) % num_classes for n in range(num_classes)]
            labels = {name: int(name) - first for name in names}
            return Numbering(labels, list(known) or class_names, other_order=shifted)
    numbering = _in_order(ordered, sorted(names))
    return Numbering(numbering.labels, known, other_order=None) if len(known) == len(names) else numbering


def _in_order(names: Sequence[str], other: Sequence[str]) -> Numbering:
    order = None if list(names) == list(other) else [list(other).index(name) for name in names]
    return Numbering({name: label for label, name in enumerate(names)}, list(names), other_order=order)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts class2 before class10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
