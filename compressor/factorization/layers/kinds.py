"""What is known of each kind of layer: its weight as that of a convolution, its groups, and the axes of its images.

A transposed convolution is the convolution, by the flipped kernel, of its input with zeros between the pixels. Seen so,
its factors are those of that convolution, and each of them is transposed in turn: the adjoint of a chain.
"""

import torch
from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d
KINDS: tuple[type[Layer], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
OTHERS = (nn.ConvTranspose1d, nn.ConvTranspose3d)  # that have weights, and are left as they are


def computes_as_its_kind(layer: nn.Module) -> bool:
    """Whether a layer is one of KINDS, or of a class that only makes one, with a weight that is a plain parameter."""
    kind = next((kind for kind in KINDS if isinstance(layer, kind)), None)
    names = ("forward", "_conv_forward")
    same = kind is not None and all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in names)
    return same and isinstance(layer._parameters.get("weight"), nn.Parameter)


def axes_of(layer: nn.Module) -> int:
    """Axes of the images that a convolution takes: 1, 2 or 3; 0 for a layer that acts on the last axis."""
    return layer.weight.dim() - 2 if isinstance(layer, Convolution) else 0


def groups_of(layer: nn.Module) -> int:
    """Groups of a convolution, 1 for any other layer."""
    return layer.groups if isinstance(layer, Convolution) else 1


def weight_of(layer: nn.Module) -> Tensor:
    """The weight (Co, Ci/groups, ...) that multiplies a patch; of a transposed convolution a copy."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return adjoint(weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else weight


def set_weight(layer: nn.Module, weight: Tensor) -> None:
    """Give a layer the weight that multiplies a patch; it takes the type and the device of the present one.

    Args:
        layer: any of KINDS.
        weight: (Co, Ci/groups, ...), as `weight_of` gives it.
    """
    present = layer.weight
    assert isinstance(present, Tensor)
    own = adjoint(weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else weight
    layer.weight = nn.Parameter(own.to(present).contiguous(), requires_grad=present.requires_grad)


def adjoint(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (Ci, Co/groups, kh, kw) as a convolution's (Co, Ci/groups, kh, kw), or back."""
    by_group = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return torch.flip(by_group.flatten(0, 1), dims=(-2, -1))
