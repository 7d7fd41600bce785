"""Layers around existing tensors, and how a layer's geometry is divided between its factors."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compressor.factorization.layers.kinds import Convolution, Layer, adjoint

PLAIN: dict[int, type[Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NEUTRAL = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
Geometry = dict[str, Any]
MARK = "is_chain_of_factors"  # an attribute: a class of ours would be needed wherever a pickled network is read


class _Empty:
    """A layer without initial values, whose weights follow at once.

    To initialize them, even on the meta device, takes four times as long as all the rest, and a candidate network has
    dozens.
    """

    def reset_parameters(self) -> None:
        """Nothing to initialize."""


EMPTY: dict[type[Layer], type[Layer]] = {
    kind: type(f"Empty{kind.__name__}", (_Empty, kind), {})
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
}


def make_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer around existing tensors: weight (Co, Ci) and bias (Co,), if there is one."""
    return _make(nn.Linear, weight, bias, in_features=weight.shape[1], out_features=weight.shape[0])


def make_conv(weight: Tensor, bias: Tensor | None, like: Convolution, groups: int, **geometry: Any) -> Convolution:
    """A convolution around existing tensors; a transposed one where the geometry is that of one.

    Args:
        weight: (Co, Ci/groups, ...), which multiplies a patch.
        bias: (Co,), None for none.
        like: the convolution whose padding mode and number of axes it takes.
        groups: its groups.
        geometry: as `geometry_of`, `part_of_geometry` or `untouched_geometry` give it.
    """
    kind: type[Convolution] = nn.ConvTranspose2d if "output_padding" in geometry else PLAIN[like.weight.dim() - 2]
    return _make(
        kind,
        adjoint(weight, groups) if kind is nn.ConvTranspose2d else weight,
        bias,
        in_channels=weight.shape[1] * groups,
        out_channels=weight.shape[0],
        kernel_size=tuple(weight.shape[2:]),
        groups=groups,
        padding_mode=like.padding_mode,
        **geometry,
    )


def _make(kind: type[Any], weight: Tensor, bias: Tensor | None, **arguments: Any) -> Any:
    layer = EMPTY[kind](**arguments, bias=bias is not None, device="meta")
    layer.__class__ = kind
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()


def make_pointwise(weight: Tensor, bias: Tensor | None, like: Layer) -> Layer:
    """A layer on the channels of single positions.

    Args:
        weight: (Co, Ci).
        bias: (Co,), None for none.
        like: a linear layer, or the convolution whose number of axes it takes.
    """
    if isinstance(like, nn.Linear):
        return make_linear(weight, bias)
    kernel = weight.reshape(*weight.shape, *[1] * (like.weight.dim() - 2))
    return make_conv(kernel, bias, like, 1, **untouched_geometry())


def make_like(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """The layer with other rows: weight (Co, Ci, ...), which multiplies a patch, and bias (Co,), if there is one."""
    if isinstance(layer, nn.Linear):
        return make_linear(weight, bias)
    return make_conv(weight, bias, layer, 1, **geometry_of(layer))


def chain(*layers: nn.Module) -> nn.Sequential:
    """The factors in order, in eval mode as a whole."""
    made = nn.Sequential(*layers).eval()
    setattr(made, MARK, True)
    return made


def is_chain(module: nn.Module) -> bool:
    """Whether a module is factors in order: each reads what the one before gives, and nothing else does.

    Of a network's own sequences that is not known: a forward of theirs may come between, or call a part alone.
    """
    return isinstance(module, nn.Sequential) and getattr(module, MARK, False)


def untouched_geometry() -> Geometry:
    """Stride, padding and dilation of a convolution by a kernel of one pixel that keeps all positions."""
    return {"stride": 1, "padding": 0, "dilation": 1}


def geometry_of(layer: Convolution) -> Geometry:
    """Stride, padding and dilation, and of a transposed convolution the output's padding."""
    names = [name for name in NEUTRAL if name != "output_padding" or isinstance(layer, nn.ConvTranspose2d)]
    return {name: getattr(layer, name) for name in names}


def part_of_geometry(layer: Convolution, axes: Sequence[int]) -> Geometry:
    """The layer's geometry along some axes of its images (0 is the first), and none along the others."""
    whole: Mapping[str, Any] = geometry_of(layer)
    return {
        name: values
        if isinstance(values, str)
        else tuple(value if axis in axes else NEUTRAL[name] for axis, value in enumerate(values))
        for name, values in whole.items()
    }
