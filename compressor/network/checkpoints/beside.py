"""Notes on which network of a checkpoint was taken, and on what lies beside it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.network.checkpoints.copies import COUNTER, Copy
from compressor.network.checkpoints.matching import BESIDE, COUNTERS, NORMALIZATION
from compressor.text import join_words

UNTOLD = (COUNTER, "num_batches_tracked")
MAX_NAMED = 4
MAX_VALUE = 255  # of a pixel in bytes


def describe_rest(chosen: Copy, copies: list[Copy], tensors: Mapping[str, Tensor]) -> list[str]:
    """Notes on which network was taken, on the others, and on tensors that belong to none.

    Args:
        chosen: the network that was taken.
        copies: all networks in the file.
        tensors: all tensors in the file, by name.
    """
    notes = []
    words = [f"{copy.name}{' (averaged)' * copy.averaged}" for copy in copies if copy is not chosen]
    if words:
        notes.append(f"weights taken from {chosen.name}; the file also holds {join_words(words)}: see --weights")
    if all(copy.averaged for copy in copies):
        notes.append(f"{chosen.name} is an average of weights over training; the file does not hold those in training")
    used = tuple(f"{copy.prefix}." if copy.prefix else "" for copy in copies)
    beside = [name for name in tensors if not name.startswith(used) and not name.endswith(UNTOLD)]
    start = f"{chosen.prefix}." if chosen.prefix else ""
    inside = [start + name for name in chosen.match.left if not name.startswith("aux")] if chosen.match else []
    found = {name: tensors[name] for name in (*inside, *beside) if name in tensors}
    pair = find_normalization(found, start, _num_channels(chosen))
    notes += [describe_normalization(pair, _num_channels(chosen))] if pair else []
    return notes + _describe_left_out([name for name in found if name not in pair]) + _describe_next(chosen, found)


def _describe_left_out(names: list[str]) -> list[str]:
    counters = [name for name in names if COUNTERS.search(name)]
    others = [name for name in names if not COUNTERS.search(name)]
    notes = []
    for kind, left in (("counter", counters), ("other tensor", others)):
        if left:
            named = join_words([repr(name) for name in left[:MAX_NAMED]] + ["more"] * (len(left) > MAX_NAMED))
            notes.append(f"{len(left)} {kind}{'s' * (len(left) > 1)} in the file left out: {named}")
    return notes


def _describe_next(chosen: Copy, tensors: Mapping[str, Tensor]) -> list[str]:
    """Notes on layers that could follow the network."""
    classes = chosen.match.num_classes if chosen.match else None
    return [
        f"{name!r} takes {classes} inputs, as many as the network gives: if it follows, use --arch module:function"
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and tensor.shape[1] == classes
    ]


def _num_channels(copy: Copy) -> int:
    """How many channels the first convolution takes; 3 for networks without one."""
    return next((tensor.shape[1] for tensor in copy.tensors.values() if tensor.ndim == 4), 3)


def find_normalization(tensors: Mapping[str, Tensor], start: str, channels: int) -> dict[str, Tensor]:
    """A mean and a deviation by name, or one alone; those under the network's first key before others.

    Args:
        tensors: beside the network.
        start: of the names of the network's tensors.
        channels: of the network; each tensor has one value, or as many.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        few = NORMALIZATION.search(name) and not BESIDE.search(name.lower()) and tensor.numel() in (1, channels)
        if few and tensor.layout == torch.strided and not tensor.is_meta and bool(tensor.isfinite().all()):
            pairs.setdefault(NORMALIZATION.sub("", name), {})[name] = tensor
    first = start.partition(".")[0]
    return max(pairs.values(), key=lambda pair: next(iter(pair)).partition(".")[0] == first, default={})


def describe_normalization(pair: Mapping[str, Tensor], channels: int) -> str:
    """The note on a mean and a deviation, with the options that apply them to pixels in [0, 1]."""
    values = {name: tensor.double().flatten().tolist() * (channels // tensor.numel()) for name, tensor in pair.items()}
    scale = MAX_VALUE if any(value > 1 for numbers in values.values() for value in numbers) else 1
    options = [
        f"--{'mean' if 'mean' in name.lower().rpartition('.')[2] else 'std'} "
        + ",".join(f"{value / scale:.6g}" for value in numbers)
        for name, numbers in values.items()
    ]
    verb = "look" if len(pair) > 1 else "looks"
    divided = f", divided by {MAX_VALUE}" if scale > 1 else ""
    return (
        f"{join_words([repr(name) for name in pair])} {verb} like a normalization of the images, which is not applied: "
        f"if nothing else came before it, give {' '.join(sorted(options))}{divided}; see --mean and --std"
    )
