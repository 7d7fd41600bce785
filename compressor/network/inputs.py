"""What a network takes and gives: one input, so many channels, so many outputs."""

from pathlib import Path

import torch
from torch import nn

from compressor.data.transforms import Transform
from compressor.errors import InputError
from compressor.factorization.layers.kinds import KINDS
from compressor.failures import explain_shortage
from compressor.network.clips.flow import flow_network
from compressor.network.detection.raw import RawDetector, is_detector
from compressor.outputs.structure import named_tensors


def of_one_input(network: nn.Module) -> nn.Module:
    """A detector as the network of its raw outputs, RAFT as the one of clips of two frames, any other as it is."""
    return RawDetector(network) if is_detector(network) else flow_network(network) or network


def first_channels(model: nn.Module) -> int:
    """How many channels the first convolution takes; 3 for networks without one."""
    conv = first_convolution(model)
    return 3 if conv is None else conv.in_channels


def first_convolution(model: nn.Module) -> nn.Conv2d | nn.Conv3d | None:
    """The first convolution of images or clips in order of definition; None for networks without one."""
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)


def run_outputs(model: nn.Module, transform: Transform, path: Path) -> int:
    """The number of outputs for one image; where the network does not take it, that of its last layer.

    `transform` has the size and channels of the image; `path` is for errors.

    Raises:
        InputError: it has no linear or convolutional layer.
    """
    example = torch.zeros(1, *transform.shape)
    try:
        with torch.inference_mode():
            outputs = model(example)
    except Exception as error:  # the user's own code; the size is checked once it is known
        if shortage := explain_shortage(error):
            raise shortage from error
        return count_outputs(model, path)
    first = next(iter(named_tensors(outputs).values()), None)
    if first is None or not first.ndim:
        return count_outputs(model, path)
    return first.shape[1] if first.ndim > 3 else first.shape[-1]


def count_outputs(module: nn.Module, path: Path) -> int:
    """The width of a network's last conv or linear layer.

    Raises:
        InputError: it has none.
    """
    widths = [
        layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for layer in module.modules()
        if isinstance(layer, KINDS)
    ]
    if not widths:
        raise InputError(f"{path} holds a {type(module).__name__} without a linear or convolutional layer")
    return widths[-1]
