"""Weights that are stored as two: pruned ones with their masks, and weight and spectral norm in closed form."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from compressor.errors import InputError
from compressor.text import join_words

QUANTIZED_ENDINGS = ("._packed_params._packed_params", "._packed_params.dtype", ".SCB", ".qweight", ".qzeros")
QUANTIZED_CODE = ".quantized."  # in the names of torch's packages of quantized layers
FAKE_QUANTIZED = ("weight_fake_quant.", "activation_post_process.", "fake_quant_enabled")
UNSEEN = "parametrizations."


def fold(tensors: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The tensors with every weight whole.

    Args:
        tensors: by name; `X_orig` with `X_mask` is pruned, `X_g` with `X_v` or `parametrizations.X.original0` and
            `original1` under weight norm, `X_orig` with `X_u` or `parametrizations.X.original` with `X.0._u` under
            spectral norm.
        notes: gets a remark for each kind that was found.
    """
    folded = dict(tensors)
    found: dict[str, int] = {}
    for name in tensors:
        for ending, others, kind, combine in FORMS:
            stem = name.removesuffix(ending)
            if stem != name and all(stem + other in folded for other in (ending, *others)):
                parts = [folded[stem + part].float() for part in (ending, *others)]
                with suppress(RuntimeError):  # of other shapes: names by chance
                    folded[stem.replace(UNSEEN, "")] = combine(*parts)
                    for part in (ending, *others):
                        del folded[stem + part]
                    found[kind] = found.get(kind, 0) + 1
    notes.extend(f"{kind} applied to {count} weight{'s' * (count > 1)}" for kind, count in found.items())
    return folded


def refuse_quantized(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that were quantized.

    Raises:
        InputError: there are some.
    """
    signs = [name for name, tensor in tensors.items() if tensor.is_quantized or name.endswith(QUANTIZED_ENDINGS)]
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    signs += [f"{module}.zero_point" for module in modules if _is_scaled(module, tensors)]
    whole = (torch.int8, torch.uint8)
    signs += [name for name, tensor in tensors.items() if name.endswith("weight") and tensor.dtype in whole]
    if signs:
        raise InputError(
            f"{source} is a quantized state_dict ({join_words(signs[:2])}): low-rank factors need floating-point "
            "weights, so give the checkpoint from before quantization"
        )


def refuse_quantized_code(origins: Iterable[str], source: str) -> None:
    """Refuse modules of torch's packages of quantized layers.

    Args:
        origins: module and name of the classes in the file.
        source: the checkpoint, for the message.

    Raises:
        InputError: there are some.
    """
    for origin in origins:
        if QUANTIZED_CODE in origin:
            raise InputError(
                f"{source} is a quantized network ({origin}): low-rank factors need floating-point weights, so give "
                "the checkpoint from before quantization"
            )


def refuse_fake_quantized(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with the observers of quantization-aware training, where they are not a network as it was before.

    Raises:
        InputError: there are some.
    """
    for name in tensors:
        if any(part in name for part in FAKE_QUANTIZED):
            raise InputError(
                f"{source} comes from quantization-aware training ({name!r}), which fuses and renames layers: give the "
                "checkpoint from before prepare_qat, or the prepared network by --arch module:function"
            )


def refuse_unseen(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that the code of a parametrization computes.

    Raises:
        InputError: there are some.
    """
    for name in tensors:
        if UNSEEN in name:
            raise InputError(
                f"{source} holds {name!r}, from which code outside the file computes a weight: call "
                "torch.nn.utils.parametrize.remove_parametrizations before saving"
            )


def _is_scaled(module: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a module has the output scale of quantized layers; observers of training have ranges as well."""
    names = {f"{module}.scale", f"{module}.zero_point"}
    return names <= tensors.keys() and f"{module}.fake_quant_enabled" not in tensors


def _multiply(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor:
    """g v / ||v||, the norm being over all dimensions in which g has one entry."""
    kept = [axis for axis in range(direction.ndim) if length.ndim == direction.ndim and length.shape[axis] > 1]
    summed = [axis for axis in range(direction.ndim) if axis not in kept]
    return direction * (length / direction.square().sum(summed, keepdim=True).sqrt())


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """W / (u^T W v), as in eval mode."""
    matrix = weight.reshape(weight.shape[0], -1)
    return weight / (left @ matrix @ right)


FORMS: tuple[tuple[str, tuple[str, ...], str, Callable[..., Tensor]], ...] = (
    ("_orig", ("_mask",), "pruning masks", _multiply),
    ("_orig", ("_u", "_v"), "spectral norm", _spectral_norm),
    ("_g", ("_v",), "weight norm", _weight_norm),
    (".original0", (".original1",), "weight norm", _weight_norm),
    (".original", (".0._u", ".0._v"), "spectral norm", _spectral_norm),
)
