"""Which of torchvision's networks some tensors are, allowing for other heads, stems, and tensors beside them."""

import math
import re
from dataclasses import dataclass, field

from compressor.network.architectures import AUXILIARY, CLASSES, TOKEN_TENSOR, TOKENS, Fingerprint, Shape
from compressor.network.checkpoints.heads import Head, infer_head
from compressor.network.clips.flow import NUM_CHANNELS
from compressor.text import join_words

AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.", AUXILIARY)

# Names of torchvision's own older files (DenseNet until 0.2, vision transformers until 0.13).
OLD_NAMES = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
# Counters of profilers and of averaging, observers of quantization-aware training.
COUNTERS = re.compile(
    r"(^|\.)(total_ops|total_params|__\w+__|n_averaged|num_batches_tracked)$"
    r"|(^|\.)(activation_post_process|weight_fake_quant|act_fake_quant)\."
)
# Words in the first part of a name that training scripts give to losses and metrics, which lie beside the network.
BESIDE = re.compile(r"loss|criteri|metric|acc(uracy)?($|[._\d])|auroc|f1|confusion|confmat|precision|recall|ema_decay")

# Names of a normalization that stands before the network, as buffers of few values.
NORMALIZATION = re.compile(r"(?<!running_)(mean|std|stdev|stddev)s?$", re.IGNORECASE)
MAX_CHANNELS = 16

# Stems of 7 x 7 that become 3 x 3 for small images, and the pooling that then goes.
SMALL_STEMS = {"conv1.weight": "maxpool", "features.conv0.weight": "features.pool0"}


@dataclass(frozen=True)
class Stem:
    """The first convolution, where it differs from torchvision's.

    Attributes:
        name: of the convolution.
        channels: of the image.
        small: whether it is 3 x 3 where the architecture has 7 x 7.
        bias: whether it has one.
    """

    name: str
    channels: int
    small: bool
    bias: bool


@dataclass(frozen=True)
class Match:
    """An architecture that some tensors are.

    Attributes:
        arch: torchvision's name.
        sizes: values of CLASSES and TOKENS.
        num_equal: tensors that are the architecture's own.
        head: in place of the architecture's; None where it is the same.
        stem: likewise.
        left: names of tensors that do not belong to the network.
    """

    arch: str
    sizes: dict[int, int] = field(default_factory=dict)
    num_equal: int = 0
    head: Head | None = None
    stem: Stem | None = None
    left: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Width of the output; of a flow that of its vectors."""
        return self.sizes.get(CLASSES, NUM_CHANNELS)

    @property
    def is_exact(self) -> bool:
        """Whether nothing was inferred."""
        return self.head is None and self.stem is None


def match_any(shapes: Fingerprint, registry: dict[str, Fingerprint]) -> list[Match]:
    """The matches of most tensors among the registry's architectures; exact ones first, and then alone."""
    found = [match(shapes, arch, expected) for arch, expected in registry.items() if _is_near(shapes, expected)]
    matches = [item for item in found if isinstance(item, Match)]
    most = max((item.num_equal for item in matches), default=0)
    matches = [item for item in matches if item.num_equal == most]
    return [item for item in matches if item.is_exact] or matches


def match(shapes: Fingerprint, arch: str, expected: Fingerprint) -> Match | str:
    """How the tensors are those of an architecture, or in words the first difference.

    Args:
        shapes: of the file's tensors, by name.
        arch: the architecture's name.
        expected: shapes of its tensors, by name.
    """
    stem_name = stem_tensor(expected)
    reason = first_difference(shapes, expected)
    for slot, features in head_slots(expected):
        body = {name: shape for name, shape in expected.items() if not is_under(name, slot)}
        stem = _find_stem(shapes, stem_name, expected[stem_name])
        if stem is None or not _has(shapes, body, stem_name) or tokens_fill_no_square(shapes, expected):
            continue
        head = infer_head(shapes, slot, features) if slot else None
        if slot and head is None:
            continue
        known = {*body, stem_name.removesuffix("weight") + "bias"} if stem.bias else set(body)
        left = [name for name in shapes if name not in known and not (slot and is_under(name, slot))]
        if foreign := next((name for name in left if not lies_beside(name, shapes, expected)), None):
            if slot == "":
                reason = f"it has {foreign!r}, which the architecture has not"
            continue
        if not slot and (wrong := contradiction(shapes, expected)):
            return wrong
        sizes = free_sizes(shapes, body) | ({CLASSES: head.num_classes} if head else {})
        changed = stem if (stem.channels, stem.small, stem.bias) != _plain_stem(stem_name, expected) else None
        return Match(arch, sizes, len(body), head, changed, tuple(left))
    assert reason is not None
    return reason


def _is_near(shapes: Fingerprint, expected: Fingerprint) -> bool:
    """Whether all is there but for stem and head, which is quick to say; of most architectures something is not."""
    stem = stem_tensor(expected)
    head = next((name for name, shape in reversed(expected.items()) if CLASSES in shape), "").partition(".")[0]
    return stem in shapes and all(
        name == stem or (name in shapes and shapes_agree(shapes[name], shape)) or name.partition(".")[0] == head
        for name, shape in expected.items()
    )


def is_under(name: str, slot: str) -> bool:
    """Whether a tensor belongs to the module `slot`; none does to the empty name."""
    return bool(slot) and name.startswith(slot + ".")


def _has(shapes: Fingerprint, body: Fingerprint, stem: str) -> bool:
    return all(name in shapes and (name == stem or shapes_agree(shapes[name], shape)) for name, shape in body.items())


def head_slots(expected: Fingerprint) -> list[tuple[str, int]]:
    """Modules that people replace, as (name, number of inputs): none at first, then the last layer and its parents."""
    last = next((name for name, shape in expected.items() if CLASSES in shape and len(shape) == 2), None)
    slots = [("", 0)]
    module = last.rpartition(".")[0] if last else ""
    while module:
        first = next(shape for name, shape in expected.items() if is_under(name, module))
        if len(first) > 2:  # a head of convolutions
            break
        slots.append((module, first[-1]))
        module = module.rpartition(".")[0]
    return slots


def stem_tensor(expected: Fingerprint) -> str:
    """The weight of the first convolution."""
    return next(name for name, shape in expected.items() if len(shape) >= 4)


def _plain_stem(name: str, expected: Fingerprint) -> tuple[int, bool, bool]:
    return expected[name][1], False, name.removesuffix("weight") + "bias" in expected


def _find_stem(shapes: Fingerprint, name: str, expected: Shape) -> Stem | None:
    shape = shapes.get(name, ())
    if len(shape) != len(expected) or shape[0] != expected[0] or shape[1] < 1:
        return None
    small = shape[2:] == (3, 3) and expected[2:] == (7, 7) and name in SMALL_STEMS
    bias = shapes.get(name.removesuffix("weight") + "bias")
    if (shape[2:] != expected[2:] and not small) or bias not in (None, shape[:1]):
        return None
    return Stem(name.rpartition(".")[0], shape[1], small, bias is not None)


def lies_beside(name: str, shapes: Fingerprint, expected: Fingerprint) -> bool:
    """Whether a tensor that the architecture has not is surely none of its layers.

    Args:
        name: of the tensor.
        shapes: of the file's tensors, by name.
        expected: shapes of the architecture's tensors, by name.
    """
    if COUNTERS.search(name) or name.startswith(AUXILIARY_HEADS):
        return True
    first = name.partition(".")[0]
    if first in {known.partition(".")[0] for known in expected}:
        return False
    size = math.prod(shapes[name])
    return bool(BESIDE.search(name.lower())) or size <= 1 or (size <= MAX_CHANNELS and bool(NORMALIZATION.search(name)))


def modern_name(name: str) -> str:
    """The present name of a tensor in one of torchvision's older files."""
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


# --- Differences in words ----------------------------------------------------------------------------------


def first_difference(shapes: Fingerprint, expected: Fingerprint) -> str | None:
    """The first difference between a checkpoint and an architecture, in words; None if it fits."""
    return tensor_difference(shapes, expected) or contradiction(shapes, expected)


def tensor_difference(shapes: Fingerprint, expected: Fingerprint) -> str | None:
    """The first name or shape that differs, in words; None if all are as expected."""
    for name in expected:
        if name not in shapes:
            return f"it lacks {name!r}"
    for name, shape in expected.items():
        if not shapes_agree(shapes[name], shape):
            return f"{name!r} has shape {show(shapes[name])} instead of {show(shape)}"
    for name in shapes:
        if name not in expected:
            return f"it has {name!r}, which the architecture has not"
    return None


def contradiction(shapes: Fingerprint, expected: Fingerprint) -> str | None:
    """Tensors that disagree on the class count, or tokens that fill no square, in words; None if all agree."""
    counts = {shapes[name][0] for name, shape in expected.items() if CLASSES in shape}
    if len(counts) > 1 or 0 in counts:
        return f"its last layer's tensors give the class counts {join_words(sorted(map(str, counts)))}"
    return tokens_fill_no_square(shapes, expected)


def tokens_fill_no_square(shapes: Fingerprint, expected: Fingerprint) -> str | None:
    """Whether a vision transformer's tokens fill no square, in words; None for other networks, or if they do."""
    if TOKENS in expected.get(TOKEN_TENSOR, ()):
        patches = shapes[TOKEN_TENSOR][1] - 1
        if patches < 1 or math.isqrt(patches) ** 2 != patches:
            return f"{TOKEN_TENSOR!r} has {patches} patches, which is not a square"
    return None


def shapes_agree(shape: Shape, expected: Shape) -> bool:
    """Whether the shapes are equal apart from free sizes."""
    return len(shape) == len(expected) and all(b < 0 or a == b for a, b in zip(shape, expected, strict=True))


def free_sizes(shapes: Fingerprint, expected: Fingerprint) -> dict[int, int]:
    """The values of CLASSES and TOKENS in a checkpoint that fits `expected`."""
    return {
        marker: size
        for name, shape in expected.items()
        for marker, size in zip(shape, shapes[name], strict=True)
        if marker < 0
    }


def nearest(shapes: Fingerprint, registry: dict[str, Fingerprint]) -> str:
    """The architecture that shares the largest part of its tensors with a checkpoint, and the first difference."""
    shares = {name: shared_part(shapes, expected) for name, expected in registry.items()}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] == 0:
        return "none of its tensors has a known name and shape"
    return f"the nearest is {best}, but {first_difference(shapes, registry[best])}"


def shared_part(shapes: Fingerprint, expected: Fingerprint) -> float:
    """Tensors equal in name and shape, as a share of all names on either side."""
    equal = sum(name in shapes and shapes_agree(shapes[name], shape) for name, shape in expected.items())
    return equal / len(shapes.keys() | expected.keys())


def show(shape: Shape) -> str:
    """A shape for messages."""
    words = {CLASSES: "classes", TOKENS: "tokens"}
    return "x".join(words.get(size, str(size)) for size in shape) or "scalar"
