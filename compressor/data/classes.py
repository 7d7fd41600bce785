"""Which subfolders are classes: not the splits of a data set, nor images beside their annotations."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compressor.data.listing import Folder
from compressor.text import count_of, join_words

SPLIT = re.compile(
    r"(train|training|val|valid|validation|test|testing|eval|evaluation|dev|development|holdout|fold|split)"
    r"[-_ ]?(set|data|images|imgs|split)?[-_ ]?\d*"
)
IMAGES = re.compile(r"images?|imgs?|jpegimages|photos|pictures|rgb|inputs?|raw|originals?")
ANNOTATIONS = re.compile(
    r"labels?|annotations?|masks?|gt|ground[-_ ]?truth|segmentation(s|class|object)?|targets?|depth|bbox(es)?|boxes|"
    r"overlays?|previews?|thumbs|thumbnails?"
)
MIN_MIRRORED = 5  # files of the same names say nothing where there are fewer
MIRRORED_SHARE = 0.9
MAX_STRAY_SHARE = 0.2  # of images may lie beside class folders; with more, the folders are hardly classes
MAX_NAMED = 5  # names in a sentence


@dataclass
class Classes:
    """Images by class, or all of them where there are none.

    Attributes:
        groups: image files by class name; folders without images have an empty list.
        images: all image files where there are no classes.
        reason: why there are no classes, to follow "unlabelled: "; empty where there are.
        splits: the splits of a data set that were looked through.
        notes: what was left out, one sentence each.
    """

    groups: dict[str, list[Path]] = field(default_factory=dict)
    images: list[Path] = field(default_factory=list)
    reason: str = ""
    splits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_classes(folder: Folder, known: Sequence[str] = (), num_classes: int | None = None) -> Classes:
    """The classes of a folder.

    Args:
        folder: the folder; one that holds nothing but another stands for that one.
        known: class names of the network; folders named so are classes.
        num_classes: of the network; it decides between classes and what they are divided into.
    """
    names = {form(name) for name in known for form in (normalize, stem)}
    folder = _unwrapped(folder, names)
    tops = [top for top in folder.folders if top.count]
    if not tops:
        where = f" {folder.name}" if folder.name else ""
        return Classes(images=folder.images, reason=f"all images lie in one folder,{where}")
    named = all(_is_known(top, names) for top in tops)
    if named:
        return _grouped(folder, folder.folders, strays_allowed=True)
    pictures = [top for top in tops if not _is_annotation(top, tops)]
    if len(pictures) < len(tops):
        return _without(folder, [top for top in tops if top not in pictures], names, known, num_classes)
    splits = [top for top in tops if _is_named(top, SPLIT)]
    if len(splits) >= 2 or len(splits) == len(tops):
        return _through(folder, splits, known, num_classes)
    if reason := _no_classes(tops, fits=num_classes in (len(tops), len(folder.folders))):
        return Classes(images=list(folder.walk()), reason=reason)
    if len(tops) < 2 and not _are_numbers(folder.folders):
        return Classes(images=list(folder.walk()), reason=f"{tops[0].name} is the only folder with images")
    inner = [part for top in tops for part in top.folders]
    if inner and not any(top.images for top in tops) and _are_classes(inner, names, len(tops), num_classes):
        return _grouped(folder, inner, strays_allowed=False)
    return _grouped(folder, folder.folders, strays_allowed=False)


def normalize(name: str) -> str:
    """A class name without what differs between folders and lists: case, and signs that stand for blanks."""
    return re.sub(r"[-_\s]+", " ", name).strip().casefold()


def stem(name: str) -> str:
    """A class name without a number before it and a plural's s: 0_dogs -> dog."""
    return re.sub(r"^\d+[ .]+", "", normalize(name)).removesuffix("s")


def name_some(names: Sequence[str]) -> str:
    """'a, b and c', or the first few and how many more there are."""
    if len(names) <= MAX_NAMED:
        return join_words(names)
    return f"{', '.join(names[: MAX_NAMED - 1])} and {len(names) - MAX_NAMED + 1} others"


def _unwrapped(folder: Folder, names: set[str]) -> Folder:
    """The first folder on the way down that holds more than a folder; archives often have such wrappers."""
    while not folder.images:
        tops = [top for top in folder.folders if top.count]
        if len(tops) != 1 or _is_known(tops[0], names):
            break
        if len(folder.folders) > 1 and _are_numbers(folder.folders):  # classes, most of them empty
            break
        folder = tops[0]
    return folder


def _is_known(folder: Folder, names: set[str]) -> bool:
    """Whether a folder is named as a class of the network; `names` are normalized, and their stems."""
    return not names.isdisjoint((normalize(folder.name), stem(folder.name)))


def _is_named(folder: Folder, names: re.Pattern[str]) -> bool:
    return names.fullmatch(folder.name.lower()) is not None


def _are_numbers(folders: Sequence[Folder]) -> bool:
    return all(folder.name.isdecimal() for folder in folders)


def _is_annotation(top: Folder, tops: Sequence[Folder]) -> bool:
    """Whether a folder holds pictures that describe those of another: masks, depth, previews."""
    if not _is_named(top, ANNOTATIONS):
        return False
    others = [other for other in tops if not _is_named(other, ANNOTATIONS)]
    return any(_is_named(other, IMAGES) or _is_named(other, SPLIT) or _stems(top) & _stems(other) for other in others)


def _stems(folder: Folder) -> set[str]:
    return {path.stem for path in folder.walk()}


def _no_classes(tops: Sequence[Folder], fits: bool) -> str:
    """Why folders are no classes, in words; empty where they may be.

    `fits` says that there are as many as the network has: then a name alone says nothing (photos, paintings).
    """
    roles = [] if fits else [top.name for top in tops if _is_named(top, IMAGES)]
    if roles:
        return f"{name_some(roles)} is no name of a class"
    stems = [_stems(top) for top in tops]
    first, *rest = stems
    same = rest and all(len(first & other) >= MIRRORED_SHARE * max(len(first), len(other)) for other in rest)
    if same and len(first) >= MIN_MIRRORED and not _is_run(first):
        return f"{name_some([top.name for top in tops])} hold files of the same names, not different classes"
    return ""


def _is_run(stems: set[str]) -> bool:
    """Whether files are numbered from 0 or 1, as they are anew in every class folder."""
    numbers = sorted(int(found[-1]) for stem in stems if (found := re.findall(r"\d+", stem)))
    return len(numbers) == len(stems) and numbers[-1] - numbers[0] == len(numbers) - 1 and numbers[0] in (0, 1)


def _are_classes(inner: Sequence[Folder], names: set[str], num_tops: int, num_classes: int | None) -> bool:
    """Whether folders one deeper are the classes, rather than parts of those above."""
    inner_names = {part.name for part in inner if part.count}
    if names:
        return all(_is_known(part, names) for part in inner if part.count)
    return num_classes is not None and num_tops != num_classes == len(inner_names)


def _grouped(folder: Folder, parts: Sequence[Folder], strays_allowed: bool) -> Classes:
    """One class for each name of `parts`; images that lie in none of them are left out, if they are few."""
    groups: dict[str, list[Path]] = {}
    for part in parts:
        groups.setdefault(part.name, []).extend(part.walk())
    grouped = {path for paths in groups.values() for path in paths}
    strays = [path for path in folder.walk() if path not in grouped]
    if not strays_allowed and len(strays) > MAX_STRAY_SHARE * folder.count:
        reason = f"{len(strays)} of {folder.count} images lie beside the folders, not in them"
        return Classes(images=list(folder.walk()), reason=reason)
    return Classes(groups, notes=list(_left_out(strays, "beside the class folders")))


def _left_out(strays: Sequence[Path], where: str) -> Iterator[str]:
    if strays:
        names = name_some([path.name for path in strays])
        yield f"{count_of(len(strays), 'image')} {where} left out: {names}"


def _without(
    folder: Folder, annotations: list[Folder], names: set[str], known: Sequence[str], num_classes: int | None
) -> Classes:
    """The classes of what is left without annotations that are pictures themselves."""
    rest = replace(folder, folders=[top for top in folder.folders if top not in annotations])
    found = find_classes(rest, known, num_classes)
    count = sum(top.count for top in annotations)
    where = name_some([top.name for top in annotations])
    found.notes.append(f"{count_of(count, 'image')} in {where} left out: they describe other images")
    return found


def _through(folder: Folder, splits: list[Folder], known: Sequence[str], num_classes: int | None) -> Classes:
    """The classes inside the splits of a data set, together."""
    inside = [find_classes(split, known, num_classes) for split in splits]
    names = {name for found in inside for name in found.groups}
    # A split may lack all classes but one, which alone would not look like a class.
    inside = [
        find_classes(split, [*known, *names]) if found.reason else found
        for split, found in zip(splits, inside, strict=True)
    ]
    labelled = [(split, found) for split, found in zip(splits, inside, strict=True) if not found.reason]
    if not labelled:
        reason = f"{name_some([split.name for split in splits])} are splits of a data set without class folders"
        notes = [note for found in inside for note in found.notes]
        rest = [path for top in folder.folders if top not in splits for path in top.walk()]
        images = [*folder.images, *rest, *(path for found in inside for path in found.images)]
        return Classes(images=images, reason=reason, notes=notes)
    groups: dict[str, list[Path]] = {}
    for _, found in labelled:
        for name, paths in found.groups.items():
            groups.setdefault(name, []).extend(paths)
    notes = [note for _, found in labelled for note in found.notes]
    taken = [split for split, _ in labelled]
    rest = [path for top in folder.folders if top not in taken for path in top.walk()]
    notes += _left_out([*folder.images, *rest], "outside the labelled splits")
    return Classes(groups, splits=[split.name for split in taken], notes=notes)
