"""Checkpoints with random weights, and the sentences with which files are refused."""

import pytest
import torch

from compressor.errors import InputError
from compressor.network import architectures
from compressor.network.checkpoint import load_model


def random_state(arch, num_classes, image_size=None):
    """A state_dict of `arch` with small random weights."""
    torch.manual_seed(0)
    state = {}
    for name, tensor in architectures.build_model(arch, num_classes, image_size).state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
        elif name.endswith("running_var"):
            state[name] = torch.ones(tensor.shape)
        else:
            state[name] = torch.empty(tensor.shape).uniform_(-0.05, 0.05)
    return state


def save(content, path):
    torch.save(content, path)
    return path


def refusal(path, **options):
    """The sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        load_model(path, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence
