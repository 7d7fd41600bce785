"""Names of classes in a checkpoint, or in a file beside it."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressor.errors import InputError
from compressor.files import read_bytes
from compressor.network.checkpoints.inert import Inert, InertArray, children

KEYS = (
    *("class_to_idx", "idx_to_class", "class_names", "classes", "categories", "labels", "names", "label_names"),
    *("id2label", "label2id", "idx2label", "label_map", "class_list", "label_encoder"),
)
BY_NUMBER = {"idx_to_class", "id2label", "idx2label"}  # tables from numbers to names
SIDECARS = tuple(
    f"{name}{suffix}"
    for name in ("class_names", "classes", "labels", "categories", "class_to_idx", "idx_to_class", "class_indices")
    for suffix in (".txt", ".json")
)
SYNSETS, KERAS = "*synset*.txt", "*class_index.json"  # ImageNet's lists, named after many a data set
SYNSET = re.compile(r"n\d{8}\b")
MAX_DEPTH = 6
MAX_BYTES = 10_000_000
MAX_DIGITS = 20  # Python refuses to read thousands


def find_class_names(content: object, path: Path, num_classes: int) -> tuple[list[str], str] | None:
    """The classes in the order of the outputs, and where they were found.

    Args:
        content: of the checkpoint.
        path: of the checkpoint, beside which a list may lie.
        num_classes: how many names there must be; other lists are of something else.
    """
    for key, value in _named_values(content):
        names = read_names(value, num_classes, key in BY_NUMBER)
        if names is not None:
            return names, f"{key!r} in the checkpoint"
    named = [path.parent / f"{start}{name}" for start in (f"{path.stem}.", f"{path.stem}_", "") for name in SIDECARS]
    for file in (*named, *(file for pattern in (SYNSETS, KERAS) for file in sorted(path.parent.glob(pattern)))):
        names = _read_file(file, num_classes)
        if names is not None:
            return names, str(file)
    return None


def _named_values(content: object) -> Iterator[tuple[str, object]]:
    """Values under KEYS anywhere in the content, the outermost first; what is there several times is seen once."""
    level, seen = [content], {id(content)}
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for inside in (children(part) for part in level if not isinstance(part, list | tuple)):
            if "param_groups" in inside:
                continue
            lower = {str(key).lower(): value for key, value in inside.items()}  # OpenMMLab writes CLASSES
            yield from ((key, lower[key]) for key in KEYS if key in lower)
            new = {id(value): value for value in inside.values() if id(value) not in seen}
            seen |= new.keys()
            below += new.values()
        level = below


def read_names(value: object, num_classes: int, is_by_number: bool = False) -> list[str] | None:
    """A list of names, or a table between names and numbers, as a list by number; None if it is neither.

    Args:
        value: the list or table.
        num_classes: how many names there must be.
        is_by_number: whether a table leads from numbers to names, where both are numbers.
    """
    if isinstance(value, InertArray):
        value = value.values if isinstance(value.values, list) else getattr(value.values, "tolist", lambda: None)()
    if isinstance(value, list | tuple):
        named = len(value) == num_classes and all(isinstance(name, str | int) for name in value)
        return _different([str(name) for name in value]) if named else None
    if not isinstance(value, Mapping):
        return _of_object(value, num_classes)
    table: dict[Any, Any] = dict(value)
    if not all(_is_number(key) for key in table):
        table = {number: name for name, number in table.items() if isinstance(number, int | str)}
    elif not is_by_number and all(map(_is_number, table.values())):  # folders named by numbers, in their order
        table = {number: name for name, number in table.items()}
    if not all(_is_number(key) and isinstance(name, str | int) for key, name in table.items()):
        return None
    by_number = {int(key): str(name) for key, name in table.items()}
    complete = len(value) == num_classes and sorted(by_number) == list(range(num_classes))
    return _different([by_number[number] for number in range(num_classes)]) if complete else None


def _of_object(value: object, num_classes: int) -> list[str] | None:
    """The names that an encoder of labels, or another object that was not loaded, holds."""
    if not isinstance(value, Inert):
        return None
    inside = children(value)
    found = (read_names(inside[key], num_classes) for key in ("classes_", "classes", "vocab") if key in inside)
    names = next((names for names in found if names is not None), None)
    return names or (read_names(value.entries, num_classes) if value.entries else None)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return value.isdecimal() and len(value) <= MAX_DIGITS
    return isinstance(value, int) and not isinstance(value, bool)


def _different(names: list[str]) -> list[str] | None:
    return names if len(set(names)) == len(names) else None


def _read_file(file: Path, num_classes: int) -> list[str] | None:
    with suppress(InputError, ValueError, RecursionError):
        text = read_bytes(file, max_bytes=MAX_BYTES).decode("utf-8-sig")
        if file.suffix == ".json":
            content = _without_words(json.loads(text))
            names = read_names(content, num_classes, file.stem.endswith(tuple(BY_NUMBER)))
            inside = content if isinstance(content, dict) else {}
            tables = (read_names(inside.get(key), num_classes, key in BY_NUMBER) for key in KEYS)
            return names or next(filter(None, tables), None)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _read_synsets(lines, num_classes) if file.match(SYNSETS) else read_names(lines, num_classes)
    return None


def _without_words(content: Any) -> Any:
    """Keras' table {"0": ["n01440764", "tench"]} with the first of each, by which ImageNet's folders are named."""
    if not isinstance(content, dict) or not all(isinstance(value, list) and value for value in content.values()):
        return content
    return {number: value[0] for number, value in content.items()} if all(map(_is_number, content)) else content


def _read_synsets(lines: list[str], num_classes: int) -> list[str] | None:
    """ImageNet's identifiers, with or without words behind them; lists in another order than the outputs' exist."""
    names = [line.split()[0] for line in lines if SYNSET.match(line)]
    return read_names(names, num_classes) if names == sorted(names) and len(names) == len(lines) else None
