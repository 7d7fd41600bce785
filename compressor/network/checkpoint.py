"""From a checkpoint file to a network ready for inference; `checkpoints` reads the file and finds the network in it."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.factorization.layers.kinds import KINDS
from compressor.failures import blaming
from compressor.network.architectures import FLOW_TRANSFORM, known_architecture, published_transform, shapes_of
from compressor.network.checkpoints.beside import describe_rest
from compressor.network.checkpoints.building import build_matched, fit_channels, image_size
from compressor.network.checkpoints.class_names import find_class_names
from compressor.network.checkpoints.contents import PARALLEL_PART, WRAPPER_PARTS, Contents, lay_out, without_parts
from compressor.network.checkpoints.copies import (
    Copy,
    choose_copy,
    explain_misfit,
    find_copies,
    make_copy,
    recognizer,
)
from compressor.network.checkpoints.custom import find_own_copies, is_custom, make_network, transform_of
from compressor.network.checkpoints.folding import (
    fold,
    refuse_fake_quantized,
    refuse_quantized,
    refuse_quantized_code,
    refuse_unseen,
)
from compressor.network.checkpoints.inert import Inert, children
from compressor.network.checkpoints.pickled import (
    WRAPPERS,
    describe_code,
    describe_unknown,
    find_unknown_code,
    pickled_name,
    submodules,
    without_wrappers,
)
from compressor.network.checkpoints.reading import read_checkpoint
from compressor.network.clips.flow import NUM_CHANNELS, FlowNetwork
from compressor.network.detection.building import transform_of as detector_transform
from compressor.network.detection.raw import is_detector
from compressor.network.detection.recognition import detector_options
from compressor.network.inputs import count_outputs, first_channels, of_one_input, run_outputs
from compressor.text import first_line, join_words

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for inference: eval mode, float32, on the CPU, no gradients.

    Attributes:
        arch: torchvision's name of it, or what --arch says.
        num_classes: width of its output.
        model: the network.
        transform: how images are prepared: as for the published weights of `arch`, with as many channels as it takes.
        notes: one-line remarks for the user.
        class_names: of the outputs in order, where the checkpoint or a file beside it has them.
    """

    arch: str
    num_classes: int
    model: nn.Module
    transform: Transform
    notes: list[str]
    class_names: list[str] | None = None


def load_model(
    path: Path, arch: str | None = None, trust_pickle: bool = False, weights: str | None = None
) -> LoadedModel:
    """Load a classifier from a `.pt`, `.pth`, `.ckpt` or `.safetensors` file.

    Args:
        path: a file with a state_dict anywhere in it, or a pickled module.
        arch: torchvision's name of the architecture, recognized from the weights if not given; or
            `package.module:function` or `timm:NAME`, which give the empty network.
        trust_pickle: allow a file to run code while it is loaded.
        weights: which of several networks in the file: "model", "ema", or the keys that lead to it, joined by dots.

    Raises:
        InputError: the file cannot be read or has no weights; the weights are not finite, or fit no architecture or
            more than one; several networks are alike; or torchvision cannot be imported.
    """
    path = Path(path)
    if arch is not None and not is_custom(arch):
        arch = known_architecture(arch)
    content = read_checkpoint(path, trust_pickle)
    with blaming(lambda reason: InputError(f"{path} holds what cannot be made a network ({reason})")):
        return load_content(content, path, arch, weights)


def load_content(content: object, path: Path, arch: str | None, weights: str | None) -> LoadedModel:
    """The network in what a file holds; parameters and errors are those of `load_model`."""
    contents = lay_out(content)
    notes: list[str] = []
    if arch is not None and is_custom(arch):
        loaded = load_own(contents, path, arch, weights, notes)
    elif any(has_layers(module) for module in contents.trusted.values()):
        loaded = adopt_module(choose_module(contents, path, weights, notes), path, arch, notes)
    else:
        loaded = load_weights(content, contents, path, arch, weights, notes)
    found = find_class_names(content, path, loaded.num_classes)
    if found is None:
        return loaded
    return replace(loaded, class_names=found[0], notes=[*loaded.notes, f"class names taken from {found[1]}"])


def load_weights(
    content: object, contents: Contents, path: Path, arch: str | None, weights: str | None, notes: list[str]
) -> LoadedModel:
    """One of torchvision's networks from tensors; `path`, `arch` and `weights` as of `load_model`.

    Args:
        content: what the file holds, as it was read.
        contents: the same, its tensors and modules by name.
        notes: what was inferred so far; gets more.

    Raises:
        InputError: no network, or no single one, is in the file.
    """
    refuse_quantized_code((module.origin for module in contents.modules.values()), str(path))
    if not contents.tensors or isinstance(content, Tensor):
        raise InputError(f"{path} holds {describe_weightless(content, contents)}")
    tensors = fold(contents.tensors, notes)
    tensors, modules, copies = find_named(tensors, contents, arch, str(path))
    if not copies:
        refuse_quantized(tensors, str(path))
        refuse_fake_quantized(tensors, str(path))
        refuse_unseen(tensors, str(path))
        if contents.modules and arch is None:
            raise InputError(f"{path} holds {describe_code(next(iter(contents.modules.values())).origin)}")
        raise InputError(explain_misfit(tensors, arch, str(path)))
    chosen = choose_copy(copies, weights, str(path))
    assert chosen.match is not None
    refuse_quantized(chosen.tensors, str(path))
    notes += describe_rest(chosen, copies, tensors)
    check_finite({name: t for name, t in chosen.tensors.items() if name not in chosen.match.left}, path)
    if unknown := find_unknown_code(modules, chosen.prefix):
        raise InputError(f"{path} depends on {describe_unknown(unknown)}")
    pickled = submodules(modules, chosen.prefix)
    if chosen.prefix.rpartition(".")[2].isdecimal() and not pickled:
        notes.append(
            f"the network lies under {chosen.prefix!r}, as in a Sequential: parts of it without weights, such as a "
            "normalization or a softmax, are not in the file and not seen"
        )
    model, transform = build_matched(chosen.match, chosen.tensors, pickled, str(path), notes)
    fill(model, chosen.tensors, path, notes)
    arch, num_classes = chosen.match.arch, chosen.match.num_classes
    set_transform_input(model, arch, num_classes, pickled.get(""), notes)
    if pickled:
        notes.append(f"rebuilt as torchvision's {arch} from the tensors of a pickled {pickled_name(pickled)}")
    return LoadedModel(arch, num_classes, freeze(model), transform, notes)


def find_named(
    tensors: dict[str, Tensor], contents: Contents, arch: str | None, source: str
) -> tuple[dict[str, Tensor], dict[str, Inert], list[Copy]]:
    """The networks in a file, with its tensors and pickled modules by names without what wrappers put into them.

    The arguments are those of `load_weights`; `source` names the file in errors.
    """
    for parts in (WRAPPER_PARTS, (*WRAPPER_PARTS, PARALLEL_PART)):  # "module" tells copies apart, too: only at need
        named, modules = without_parts(tensors, parts), without_wrappers(contents.modules, parts)
        if copies := find_copies(named, arch, source):
            break
    return named, modules, copies


def load_own(contents: Contents, path: Path, arch: str, weights: str | None, notes: list[str]) -> LoadedModel:
    """The network that the user's function or timm makes, with the weights of the file.

    The arguments are those of `load_weights`.

    Raises:
        InputError: there is no such network, or the weights do not fit it.
    """
    stored = dict(contents.tensors)
    for name, module in contents.trusted.items():
        stored |= {f"{name}.{key}".lstrip("."): tensor for key, tensor in module.state_dict().items()}
    model = make_network(arch, stored)
    if not any(f".{part}." in f".{name}" for part in WRAPPER_PARTS for name in model.state_dict()):
        stored = without_parts(stored, WRAPPER_PARTS)
    remarks: list[str] = []
    folded = fold(stored, remarks)
    uses_parts = stored.keys() & set(model.state_dict()) - folded.keys()  # the network has masks or norms of its own
    tensors = stored if uses_parts else folded
    copies = find_own_copies(tensors, model, str(path))
    chosen = choose_copy(copies, weights, str(path))
    notes += [*([] if uses_parts else remarks), *describe_rest(chosen, copies, tensors)]
    check_finite({name: chosen.tensors[name] for name in model.state_dict() if name in chosen.tensors}, path)
    fill(model, chosen.tensors, path, notes)
    if (adopted := adopt_wrapped(model, path, arch, notes)) is not None:
        return adopted
    transform = fit_channels(transform_of(model, notes), first_channels(model), notes)
    model = freeze(model.float())
    return LoadedModel(arch, run_outputs(model, transform, path), model, transform, notes)


def describe_weightless(content: object, contents: Contents) -> str:
    """What a file without weights contains, for a message."""
    if contents.trusted:
        return f"a {type(next(iter(contents.trusted.values()))).__name__} without a linear or convolutional layer"
    if contents.modules:
        return describe_code(next(iter(contents.modules.values())).origin)
    if contents.optimizers:
        return "an optimizer's state and no network weights"
    if contents.classes:
        return f"pickled code ({next(iter(contents.classes))}), which is not run, and no network weights"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}, not a state_dict"
    if not content:
        return "an empty dict and no network weights"
    return f"the entries {join_words([str(key) for key in list(children(content))[:4]])} and no network weights"


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinity, including float64 values that overflow in float32.

    Raises:
        InputError: a weight is not finite.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and is_plain(tensor) and not bool(tensor.float().isfinite().all()):
            raise InputError(f"{path} has NaN or infinite weights in {name!r}")


def is_plain(tensor: Tensor) -> bool:
    """Whether this is an ordinary dense tensor."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path, notes: list[str]) -> None:
    """Load `weights` into a network from `build_model`, as float32.

    The arguments are those of `load_weights`.

    Raises:
        InputError: a tensor cannot be a weight, for example because it is quantized.
    """
    expected = model.state_dict()
    cast = {str(weights[name].dtype) for name in expected if is_cast(weights.get(name), expected[name])}
    # Batch norm's counters, which a checkpoint may lack, keep their initial values.
    state = OrderedDict(
        (name, convert(name, weights.get(name, tensor), tensor, path)) for name, tensor in expected.items()
    )
    # MNASNet refuses a state_dict without its version, which safetensors files do not store.
    state._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path} could not be loaded into its network: {first_line(error)}") from error
    if cast:
        notes.append(f"weights stored as {join_words(sorted(cast)).replace('torch.', '')} were cast to float32")


def is_cast(tensor: Tensor | None, expected: Tensor) -> bool:
    """Whether a weight is converted to float32 from another type."""
    return tensor is not None and expected.is_floating_point() and tensor.dtype != torch.float32


def convert(name: str, tensor: Tensor, expected: Tensor, path: Path) -> Tensor:
    """A tensor of the checkpoint in the type of `expected`, the network's under the same name; `path` is for errors.

    Raises:
        InputError: it is no plain floating-point tensor where the network has one.
    """
    same_kind = tensor.is_floating_point() == expected.is_floating_point() or name.endswith("num_batches_tracked")
    if not is_plain(tensor) or not same_kind:
        raise InputError(f"{path} stores {name!r} {describe_strange(tensor)}, not as plain floating-point weights")
    return tensor.to(torch.float32 if expected.is_floating_point() else expected.dtype).contiguous()


def describe_strange(tensor: Tensor) -> str:
    """How a tensor that cannot be a weight is stored, for a message."""
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.layout != torch.strided:
        return "as a sparse tensor (to_dense() before saving makes it a plain one)"
    return f"as {str(tensor.dtype).removeprefix('torch.')} values"


def set_transform_input(model: nn.Module, arch: str, num_classes: int, pickled: Inert | None, notes: list[str]) -> None:
    """Guess GoogLeNet's and Inception's `transform_input`, which is not in a state_dict, but in a pickled module.

    `arch`, `num_classes` and `pickled`, the module if there is one, are what is known of `model`; `notes` gets a guess.
    """
    if not hasattr(model, "transform_input"):
        return
    in_colour = first_channels(model) == 3
    if pickled is not None and isinstance(stored := pickled.attributes.get("transform_input"), bool):
        vars(model)["transform_input"] = stored and in_colour
        return
    chosen = num_classes == IMAGENET_CLASSES and in_colour
    vars(model)["transform_input"] = chosen  # setattr would not pass type checks
    guess = "on is a guess, as" if chosen else "off is a guess, as only"
    notes.append(
        f"{arch}: a state_dict does not say whether transform_input was set; {guess} torchvision's own weights of "
        f"{IMAGENET_CLASSES} classes need it"
    )


def freeze(model: nn.Module) -> nn.Module:
    """The network in eval mode and without gradients."""
    return model.eval().requires_grad_(False)


def has_layers(module: nn.Module) -> bool:
    """Whether there is a layer that could be compressed."""
    return any(isinstance(layer, KINDS) for layer in module.modules())


def choose_module(contents: Contents, path: Path, weights: str | None, notes: list[str]) -> nn.Module:
    """The trusted module to compress, outside the wrappers of parallel training and of torch.compile.

    The arguments are those of `load_weights`.

    Raises:
        InputError: several are alike, or there is none such.
    """
    modules = {name: unwrap_module(module) for name, module in contents.trusted.items() if has_layers(module)}
    tensors = {
        f"{name}.{key}".lstrip("."): t for name, module in modules.items() for key, t in state_of(module).items()
    }
    copies: list[Copy] = [make_copy(tensors, name, None) for name in modules]
    chosen = choose_copy(copies, weights, str(path))
    notes += describe_rest(chosen, copies, tensors)
    return modules[chosen.prefix]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a module, of tensors alone."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def unwrap_module(module: nn.Module) -> nn.Module:
    """The network inside the wrappers of parallel training, averaging and torch.compile, which only call it."""
    while f"{type(module).__module__}.{type(module).__qualname__}" in WRAPPERS:
        (module,) = module.children()
    return module


def adopt_wrapped(module: nn.Module, path: Path, arch: str | None, notes: list[str]) -> LoadedModel | None:
    """A detector or RAFT as its network of one input, by the name `arch` or its own; None for other networks.

    The arguments are those of `load_weights`.
    """
    transform = detector_transform(module) if is_detector(module) else None  # wrapping removes what it is read from
    model = freeze(of_one_input(module.float()))
    if isinstance(model, FlowNetwork):
        return LoadedModel(arch or "raft", NUM_CHANNELS, model, FLOW_TRANSFORM, [])
    if transform is None:
        return None
    classes = detector_options(shapes_of(state_of(model)))
    count = count_outputs(model, path) if classes is None else classes["num_classes"]
    return LoadedModel(arch or type(module).__name__.lower(), count, model, transform, notes)


def adopt_module(module: nn.Module, path: Path, arch: str | None, notes: list[str]) -> LoadedModel:
    """A whole network from a trusted pickle, unchanged.

    The arguments are those of `load_weights`.

    Raises:
        InputError: it does not fit `arch`, its weights are not finite, or it has no conv or linear layer.
    """
    refuse_quantized_code((f"{type(part).__module__}.{type(part).__name__}" for part in module.modules()), str(path))
    weights = state_of(module)
    check_finite(weights, path)
    if (adopted := adopt_wrapped(module, path, arch, notes)) is not None:
        return adopted
    model = freeze(module.float())
    matches = recognizer(arch)[0](shapes_of(weights))
    if arch is not None and not matches:
        raise InputError(explain_misfit(weights, arch, str(path)))
    if len(matches) == 1:
        match = matches[0]
        transform = published_transform(match.arch, image_size(match, weights))
        transform = fit_channels(transform, first_channels(model), notes)
        return LoadedModel(match.arch, match.num_classes, model, transform, notes)
    name = type(module).__name__
    notes.append(f"{name} is no classifier of torchvision: 224-pixel images, unless --input-size says otherwise")
    transform = fit_channels(Transform(), first_channels(model), notes)
    return LoadedModel(name.lower(), count_outputs(module, path), model, transform, notes)
