"""One forward pass that follows channels from the layers that compute them to those that mix them.

Every call of a torch function goes through a `TorchFunctionMode`, so the network runs as it always does: control flow,
in-place operations and modules of any kind need no symbolic tracing. A function that is not known to keep channels
apart blocks those of its arguments.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressor.channels.bundle import Bundle, Tag, flattened_axis


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IDENTITIES = _words(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout clone contiguous detach to "
    "float double half type requires_grad_ "
)
ELEMENTWISE = _words(
    "relu relu6 hardtanh silu gelu sigmoid logsigmoid hardsigmoid hardswish elu celu selu leaky_relu rrelu "
    "mish softplus softsign tanh tanhshrink hardshrink softshrink threshold clamp clip clamp_min clamp_max "
    "abs neg exp log sqrt rsqrt square pow erf sin cos "
)
POOLING = _words(
    "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool1d avg_pool1d adaptive_avg_pool1d "
    "max_pool2d_with_indices lp_pool2d boolean_dispatch interpolate upsample "
)
RESHAPING = frozenset(["flatten", "view", "reshape", "squeeze", "unsqueeze", "view_as", "reshape_as"])
ADDITIONS = frozenset(["add", "sub"])
PRODUCTS = frozenset(["mul", "div", "multiply", "divide"])


def plain_name(function: Callable[..., Any]) -> str:
    """A torch function's name without the marks of operators and in-place variants: `__iadd__` and `add_` are `add`."""
    name = getattr(function, "__name__", "")
    if name.startswith("__") and name.endswith("__"):
        inner = name[2:-2]
        return inner[1:] if inner[:1] in "ir" and inner[1:] in ADDITIONS | PRODUCTS | {"truediv"} else inner
    name = name.rstrip("_").lstrip("_")
    return "div" if name in ("truediv", "true_divide") else name


def trace(model: nn.Module, example: Tensor) -> list[Bundle]:
    """The bundles of all layers' outputs in order of use; see `Bundle` for what is known of each.

    Args:
        model: the network, in eval mode.
        example: one input batch.
    """
    tracer = Tracer(model)
    with torch.no_grad(), tracer:
        outputs = model(example)
    tracer.block(tensors_in(outputs))
    return tracer.bundles()


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def in_order(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Any]:
    """Arguments as if none were given by keyword: tensors first, since alpha may be named before other."""
    named = (kwargs or {}).values()
    return [*args, *sorted(named, key=lambda value: not isinstance(value, Tensor))]


class Tracer(TorchFunctionMode):
    """Follows bundles through the functions called within a with-block.

    Args:
        model: the network whose layers are known by their weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules = dict(model.named_modules())
        owned = [
            (id(tensor), name)
            for name, module in model.named_modules(remove_duplicate=False)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        ]
        uses = Counter(key for key, _ in owned)
        self._shared = {name for key, name in owned if uses[key] > 1}
        self._owner = dict(owned)
        self._calls: Counter[str] = Counter()
        self._tags: dict[int, Tag] = {}
        self._born: dict[int, tuple[Tensor, int]] = {}  # results and their time; they are held, so that ids stay theirs
        self._clock = 0
        self._created: list[Bundle] = []
        self._touched: dict[str, list[Bundle]] = {}
        self._num_additions = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in([list(args), kwargs]))
        tags = [tag for tensor in given if (tag := self.tag(tensor)) is not None]
        result = func(*args, **kwargs)
        if any(True for _ in tensors_in(result)):
            self._follow(plain_name(func), in_order(args, kwargs), tags, result)
        elif plain_name(func) == "setitem":  # channels are changed by their place
            self.block(given)
        return result

    def tag(self, tensor: Tensor) -> Tag | None:
        """Where the tensor has which channels; None where nothing is known of them."""
        known = self._tags.get(id(tensor))
        return None if known is None else Tag(known.bundle.root(), known.axis)

    def block(self, tensors: Iterable[Tensor]) -> None:
        """Keep all channels of these tensors."""
        for tensor in tensors:
            if (tag := self.tag(tensor)) is not None:
                tag.bundle.blocked = True

    def bundles(self) -> list[Bundle]:
        """All bundles found; those of layers that are called twice or share their weights are blocked.

        What follows on a reader is not refitted through a batch norm that others use as well.
        """
        for name, touched in self._touched.items():
            if self._calls[name] > 1 or name in self._shared:
                for bundle in touched:
                    bundle.root().blocked = True
                    bundle.root().is_plain &= name not in bundle.root().norms
        return [bundle for bundle in self._created if bundle.root() is bundle]

    def _follow(self, name: str, args: list[Any], tags: list[Tag], result: Any) -> None:
        self._clock += 1
        self._born.update((id(tensor), (tensor, self._clock)) for tensor in tensors_in(result))
        handler = HANDLERS.get(name)
        if handler is None or not isinstance(result, Tensor):
            self.block(tensors_in(args))
            return
        tag = handler(self, name, args, result)
        if tag is None:
            self.block(tensors_in(args))
            self._tags.pop(id(result), None)
        else:
            self._tags[id(result)] = tag

    def _time(self, tensor: Tensor) -> int:
        return self._born[id(tensor)][1] if id(tensor) in self._born else 0

    def _touch(self, weight: Any, bundles: Iterable[Bundle]) -> str:
        name = self._owner.get(id(weight), "")
        self._touched.setdefault(name, []).extend(bundles)
        self._calls[name] += 1
        return name

    # What each kind of function does: the tag of its result, or None where it mixes channels in an unknown way.

    def identity(self, _name: str, args: list[Any], _result: Tensor) -> Tag | None:
        """Channels stay where they are, and so do their values.

        Args:
            _name: of the function that was called.
            args: what it was called with; the first is the tensor with the channels.
            _result: what it returned.

        Returns:
            The channels of the result and their axis; None where no bundle goes on.
        """
        return self.tag(args[0])

    def elementwise(self, _name: str, args: list[Any], _result: Tensor) -> Tag | None:
        """A function of every number by itself; arguments and result as of `identity`."""
        tag = self.tag(args[0])
        if tag is not None:
            tag.bundle.is_plain = False
        return tag

    def pool(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """Pooling or resizing behind the channel axis; arguments and result as of `identity`."""
        tag = self.elementwise(_name, args, result)
        return tag if (tag is not None and tag.axis == result.dim() - 3) or _is_pool_1d(_name, tag, result) else None

    def mean(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """A mean over axes other than the channels'; arguments and result as of `identity`."""
        tag = self.elementwise(_name, args, result)
        axes = args[1] if len(args) > 1 else None
        if tag is None or axes is None:
            return None
        dim = args[0].dim()
        axes = {axis % dim for axis in ([axes] if isinstance(axes, int) else axes)}
        if tag.axis in axes:
            return None
        return tag if result.dim() == dim else tag.moved(tag.axis - sum(axis < tag.axis for axis in axes))

    def pad(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """Padding behind the channel axis; arguments and result as of `identity`."""
        tag = self.elementwise(_name, args, result)
        return tag if tag is not None and result.shape[: tag.axis + 1] == args[0].shape[: tag.axis + 1] else None

    def reshape(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """Another shape, where channels come first in what is flattened; arguments and result as of `identity`."""
        tag = self.elementwise(_name, args, result)
        axis = None if tag is None else flattened_axis(tag, args[0], result)
        return None if tag is None or axis is None else tag.moved(axis)

    def permute(self, name: str, args: list[Any], result: Tensor) -> Tag | None:
        """Axes in another order; arguments and result as of `identity`."""
        tag = self.elementwise(name, args, result)
        if tag is None:
            return None
        dim = args[0].dim()
        order = list(range(dim))
        if name == "permute":
            given = args[1] if isinstance(args[1], list | tuple) else args[1:]
            order = [axis % dim for axis in given]
        else:
            first, second = (axis % dim for axis in args[1:3])
            order[first], order[second] = order[second], order[first]
        return tag.moved(order.index(tag.axis))

    def add(self, name: str, args: list[Any], result: Tensor) -> Tag | None:
        """A sum of a bundle with itself or with what is the same for all channels; a residual sum keeps all.

        Arguments and result as of `identity`; either of the first two arguments may have the channels.
        """
        tags = [self.tag(value) if isinstance(value, Tensor) else None for value in args[:2]]
        found = self._broadcast(args, result)
        if name == "add":
            number, self._num_additions = self._num_additions, self._num_additions + 1
            is_plain = all(value == 1 for value in args[2:] if isinstance(value, int | float))  # alpha
            for position, tag in enumerate(tags):
                other = args[1 - position]
                earlier = isinstance(other, Tensor) and self._time(other) < (tag.bundle.created if tag else 0)
                if found is None and tag is not None and tag.bundle.addition is None and earlier and is_plain:
                    tag.bundle.addition = (number, position == 1)
        return found

    def multiply(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """A product: channels that gate others come and go with them.

        Arguments and result as of `identity`; either of the first two arguments may have the channels.
        """
        tags = [tag for value in args[:2] if isinstance(value, Tensor) and (tag := self.tag(value)) is not None]
        if len(tags) == 2 and tags[0].bundle is not tags[1].bundle:
            first, second = sorted(tags, key=lambda tag: self._created.index(tag.bundle))
            if result.shape[first.axis] != args[0].shape[first.axis] or first.axis != second.axis:
                return None
            first.bundle.merge(second.bundle)
            return Tag(first.bundle, first.axis)
        return self._broadcast(args, result)

    def _broadcast(self, args: list[Any], result: Tensor) -> Tag | None:
        """The tag of an elementwise function of two operands, of which each has the channels or one value for all."""
        found = None
        for value in args[:2]:
            if not isinstance(value, Tensor):
                continue
            tag = self.tag(value)
            if tag is not None:
                axis = tag.axis + result.dim() - value.dim()
                if found is not None and (found.axis != axis or found.bundle is not tag.bundle):
                    return None
                found = tag.moved(axis)
        if found is None:
            return None
        others = [value for value in args[:2] if isinstance(value, Tensor) and self.tag(value) is None]
        back = result.dim() - found.axis
        if any(value.dim() >= back and value.shape[-back] > 1 for value in others):
            return None
        found.bundle.is_plain = False
        return found

    def normalize(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """Batch norm by running statistics; arguments and result as of `identity`."""
        tag = self.tag(args[0])
        if tag is None or tag.axis != 1:
            return None
        tag.bundle.is_plain &= not tag.bundle.norms
        name = self._touch(args[1], [tag.bundle])
        if not isinstance(self._modules.get(name), nn.BatchNorm1d | nn.BatchNorm2d):
            return None
        tag.bundle.norms.append(name)
        tag.bundle.between.append(name)
        return tag

    def prelu(self, name: str, args: list[Any], result: Tensor) -> Tag | None:
        """PReLU with one slope for all, or one for every channel; arguments and result as of `identity`."""
        tag = self.elementwise(name, args, result)
        if tag is None or args[1].numel() == 1:
            return tag
        owner = self._touch(args[1], [tag.bundle])
        if tag.axis != 1 or not isinstance(self._modules.get(owner), nn.PReLU):
            return None
        tag.bundle.between.append(owner)
        return tag

    def convolve(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """A convolution: it mixes its inputs, or where it has groups, those of each.

        Arguments and result as of `identity`.
        """
        tag, module = self.tag(args[0]), self._layer(args, nn.Conv2d)
        axis = result.dim() - 3
        if module is None or (tag is not None and tag.axis != axis):
            return None
        if module.groups == 1:
            return self._mix(args, tag, module.out_channels, axis)
        if tag is None:
            return None
        tag.bundle.is_plain = False
        tag.bundle.coarsen(module.groups)
        tag.bundle.between.append(self._touch(args[1], [tag.bundle]))
        return tag

    def multiply_matrix(self, _name: str, args: list[Any], result: Tensor) -> Tag | None:
        """A linear layer; arguments and result as of `identity`."""
        tag, module = self.tag(args[0]), self._layer(args, nn.Linear)
        axis = result.dim() - 1
        if module is None or (tag is not None and tag.axis != axis):
            return None
        return self._mix(args, tag, module.out_features, axis)

    def _layer(self, args: list[Any], kind: type[Any]) -> Any:
        module = self._modules.get(self._owner.get(id(args[1]), ""))
        return module if type(module) is kind else None

    def _mix(self, args: list[Any], tag: Tag | None, num_outputs: int, axis: int) -> Tag:
        name = self._owner[id(args[1])]
        produced = Bundle(num_outputs, [name], created=self._clock)
        self._created.append(produced)
        self._touch(args[1], [produced] if tag is None else [tag.bundle, produced])
        if tag is not None:
            tag.bundle.readers.append(name)
            tag.bundle.outputs[name] = produced
        return Tag(produced, axis)


def _is_pool_1d(name: str, tag: Tag | None, result: Tensor) -> bool:
    return name.endswith("1d") and tag is not None and tag.axis == result.dim() - 2


Handler = Callable[[Tracer, str, list[Any], Tensor], Tag | None]
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(IDENTITIES, Tracer.identity),
    **dict.fromkeys(ELEMENTWISE, Tracer.elementwise),
    **dict.fromkeys(POOLING, Tracer.pool),
    **dict.fromkeys(RESHAPING, Tracer.reshape),
    **dict.fromkeys(ADDITIONS, Tracer.add),
    **dict.fromkeys(PRODUCTS, Tracer.multiply),
    **dict.fromkeys(("permute", "transpose", "swapaxes"), Tracer.permute),
    "mean": Tracer.mean,
    "pad": Tracer.pad,
    "batch_norm": Tracer.normalize,
    "prelu": Tracer.prelu,
    "conv2d": Tracer.convolve,
    "linear": Tracer.multiply_matrix,
}
