"""Finds the networks in a checkpoint, under whatever keys they lie, and chooses one of them."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from compressor.errors import InputError
from compressor.network import architectures
from compressor.network.architectures import Fingerprint
from compressor.network.checkpoints.contents import WRAPPER_PARTS, shorten
from compressor.network.checkpoints.matching import Match, match, match_any, modern_name, nearest, stem_tensor
from compressor.network.detection.recognition import detector_prefixes, match_detector
from compressor.text import join_words

LIGHTNING_LIVE = "current_model_state"  # where a callback that averages weights keeps those in training
# First those whose weights training changes, the most likely first; a copy under other keys comes after them.
LIVE = (
    LIGHTNING_LIVE,
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "student",
    "online",
    "encoder_q",
)
AVERAGED = re.compile(
    r"(^|[._])(ema|swa|averaged?|shadow|avg)($|[._])|(ema|swa)_?(model|net|state|weights)|(model|net|state|weights)_?(ema|swa)",
    re.IGNORECASE,
)
SECOND = re.compile(r"teacher|target|momentum|encoder_k|(^|[._])(key|frozen|old|prev)($|[._])", re.IGNORECASE)
# An averaged model's counter lies beside its `module.`; no name need say what it is.
COUNTER = "n_averaged"

WAYS_OUT = (
    "for a network of your own, use --arch module:function, --trust-pickle for a whole pickled module that you trust, "
    "or compressor.compress in Python"
)


@dataclass(frozen=True)
class Copy:
    """A network in a checkpoint.

    Attributes:
        prefix: of its tensors' names, without the last dot.
        tensors: by names without the prefix.
        match: the architecture that it is; None where the user's own function gives the network.
        averaged: whether it is an average of weights over training.
        second: whether it is the one of a pair that training does not change, such as a teacher.
    """

    prefix: str
    tensors: dict[str, Tensor]
    match: Match | None
    averaged: bool
    second: bool

    @property
    def name(self) -> str:
        """How messages call it."""
        return repr(self.prefix) if self.prefix else "the file's own tensors"


Recognize = Callable[[Fingerprint], list[Match]]


def recognizer(arch: str | None) -> tuple[Recognize, set[str]]:
    """What matches an architecture to shapes, and the names of first convolutions to look for.

    Args:
        arch: torchvision's name of the only architecture asked for; all of them otherwise.
    """
    if arch is None:
        registry = architectures.registry_fingerprints()
        return partial(match_any, registry=registry), {stem_tensor(expected) for expected in registry.values()}
    expected = architectures.architecture_fingerprint(arch)

    def only(shapes: Fingerprint) -> list[Match]:
        found = match(shapes, arch, expected)
        return [found] if isinstance(found, Match) else []

    return only, {stem_tensor(expected)}


def prefixes_before(tensors: Mapping[str, Tensor], names: set[str]) -> list[str]:
    """All prefixes under which one of the names is found, in the order of the file; the empty one is no prefix."""
    prefixes: dict[str, None] = {}
    for tensor in tensors:
        for name in names:
            if tensor == name or tensor.endswith("." + name):
                prefixes[tensor[: -len(name)].removesuffix(".")] = None
    return list(prefixes)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, by what follows it."""
    start = f"{prefix}." if prefix else ""
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def find_copies(tensors: Mapping[str, Tensor], arch: str | None, source: str) -> list[Copy]:
    """All networks in a checkpoint, in its order.

    Args:
        tensors: of the file, by name.
        arch: torchvision's name of the architecture; None for any of them.
        source: the file's name, for errors.

    Raises:
        InputError: one of them fits several architectures alike.
    """
    tensors = {modern_name(name): tensor for name, tensor in tensors.items()}
    detectors = list(_detectors(tensors, arch, source))
    if detectors or arch in architectures.list_task("detection"):
        return detectors
    recognize, stems = recognizer(arch)
    return list(_recognized(tensors, recognize, prefixes_before(tensors, stems), source))


def _detectors(tensors: Mapping[str, Tensor], arch: str | None, source: str) -> Iterator[Copy]:
    if arch is not None and arch not in architectures.list_task("detection"):
        return
    for prefix, family in detector_prefixes(tensors):
        found = match_detector(architectures.shapes_of(under(tensors, prefix)), family, arch)
        if not isinstance(found, str):
            yield _only(tensors, prefix, found, source)


def _recognized(
    tensors: Mapping[str, Tensor], recognize: Recognize, prefixes: list[str], source: str
) -> Iterator[Copy]:
    for prefix in prefixes:
        inside = under(tensors, prefix)
        matches = recognize(architectures.shapes_of(inside))
        if matches:
            yield _only(tensors, prefix, matches, source)


def _only(tensors: Mapping[str, Tensor], prefix: str, matches: list[Match], source: str) -> Copy:
    if len(matches) > 1:
        names = [item.arch for item in matches]
        raise InputError(f"{source} fits {join_words(names)} alike: say which with --arch")
    return make_copy(tensors, prefix, matches[0])


def make_copy(tensors: Mapping[str, Tensor], prefix: str, found: Match | None) -> Copy:
    """The copy under a prefix, with what its name says of it.

    Args:
        tensors: of the file, by name.
        prefix: in front of the copy's names, without the dot; empty where there is none.
        found: the architecture that its tensors fit; None where that was not sought.
    """
    counters = {name.removesuffix(COUNTER) for name in tensors if name.endswith(COUNTER)}
    averaged = bool(AVERAGED.search(prefix)) or (prefix.endswith("module") and prefix[: -len("module")] in counters)
    swapped = any(name.startswith(LIGHTNING_LIVE) for name in tensors)
    averaged |= swapped and prefix.split(".")[0] == "state_dict"
    return Copy(prefix, under(tensors, prefix), found, averaged, bool(SECOND.search(prefix)))


def choose_copy(copies: list[Copy], weights: str | None, source: str) -> Copy:
    """The network to compress.

    Args:
        copies: all in the file, at least one.
        weights: "model", "ema" or a prefix, as the user asked; None takes weights in training before others.
        source: the checkpoint, for messages.

    Raises:
        InputError: there is none such, or several alike.
    """
    names = join_words([copy.name for copy in copies])
    if weights is None or weights == "model":
        wanted = [copy for copy in copies if not copy.averaged and not copy.second]
        wanted = wanted or [copy for copy in copies if not copy.averaged] or ([] if weights else copies)
    elif weights == "ema":
        wanted = [copy for copy in copies if copy.averaged]
    else:
        wanted = _under_prefix(copies, shorten(weights.strip("."), WRAPPER_PARTS))
    if not wanted:
        words = {"ema": "averaged weights", "model": "weights that are no average"}
        asked = words.get(str(weights), f"a whole network under {weights!r}")
        raise InputError(f"{source} does not hold {asked}: --weights can choose {names}")
    wanted = _without_equals(sorted(wanted, key=_rank))
    if len(wanted) > 1 and _rank(wanted[0]) == _rank(wanted[1]):
        raise InputError(
            f"{source} holds several networks, {join_words([copy.name for copy in wanted])}: "
            f"say which with --weights {wanted[0].prefix}"
        )
    return wanted[0]


def _under_prefix(copies: list[Copy], prefix: str) -> list[Copy]:
    """Copies under exactly this prefix, else below it, else those whose prefix ends so; case counts where it can."""
    for change in (str, str.lower):
        names, asked = [change(copy.prefix) for copy in copies], change(prefix)
        for fits in (
            [name == asked for name in names],
            [name.startswith(asked + ".") for name in names],
            [f".{name}.".endswith(f".{asked}.") for name in names],
        ):
            if any(fits):
                return list(itertools.compress(copies, fits))
    return []


def _rank(copy: Copy) -> tuple[int, int]:
    """The order of preference: by the first key in LIVE, those without any last; the shorter prefix before a longer."""
    parts = copy.prefix.lower().split(".")
    ranks = [LIVE.index(part) for part in parts if part in LIVE]
    own = 0 if not copy.prefix else 1 + min(ranks, default=len(LIVE))
    return own, LIVE.index(parts[-1]) if parts[-1] in LIVE and len(ranks) > 1 else len(LIVE)


def _without_equals(copies: list[Copy]) -> list[Copy]:
    """Without networks that are an earlier one under another name."""
    different: list[Copy] = []
    for copy in copies:
        if not any(_equal(copy.tensors, known.tensors) for known in different):
            different.append(copy)
    return different


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(_same_values(first[name], second[name]) for name in first)


def _same_values(first: Tensor, second: Tensor) -> bool:
    plain = first.layout == second.layout == torch.strided and not first.is_meta and not second.is_meta
    return plain and first.dtype == second.dtype and torch.equal(first, second)


def explain_misfit(tensors: Mapping[str, Tensor], arch: str | None, source: str) -> str:
    """One sentence on why no network was found.

    Args:
        tensors: of the file, by name.
        arch: torchvision's name of the architecture; None for any of them.
        source: the file's name.
    """
    tensors = {modern_name(name): tensor for name, tensor in tensors.items()}
    for prefix, family in detector_prefixes(tensors):
        reason = match_detector(architectures.shapes_of(under(tensors, prefix)), family, arch)
        return f"{source} fits none of torchvision's detectors: {reason}; {WAYS_OUT}"
    if arch in architectures.list_task("detection"):
        return f"{source} does not fit {arch}: it has no heads of a detector; {WAYS_OUT}"
    prefixes = prefixes_before(tensors, recognizer(arch)[1]) or [""]
    inside = max((architectures.shapes_of(under(tensors, prefix)) for prefix in prefixes), key=len)
    if arch is None:
        reason = nearest(inside, architectures.registry_fingerprints())
        return f"{source} fits none of torchvision's networks: {reason}; {WAYS_OUT}"
    reason = str(match(inside, arch, architectures.architecture_fingerprint(arch)))
    return f"{source} does not fit {arch}: {reason}; {WAYS_OUT}"
