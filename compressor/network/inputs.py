"""Whether a network takes inputs of a shape, said before long work and in one sentence."""

from torch import Tensor, inference_mode, nn

from compressor.errors import InputError
from compressor.failures import blaming


def require_input_fits(model: nn.Module, example: Tensor) -> None:
    """Run the network once.

    Args:
        model: in eval mode.
        example: one input (N, C, H, W) on its device.

    Raises:
        InputError: the network fails on it, or returns something else than a tensor.
    """
    what = f"the network cannot take inputs of shape {' x '.join(map(str, example.shape))}"
    with blaming(lambda reason: InputError(f"{what} ({reason}): see --input-size")), inference_mode():
        outputs = model(example)
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the network returns a {type(outputs).__name__} where one tensor of outputs is expected: give one that "
            "returns the classes' scores alone, for example by --arch module:function"
        )
