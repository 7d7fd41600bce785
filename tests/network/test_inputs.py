"""A network is run once before long work."""

import pytest
import torch
from torch import nn

from compressor.errors import InputError
from compressor.network.inputs import require_input_fits


class Twice(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


@pytest.mark.parametrize(
    ("network", "words"),
    [(nn.Conv2d(1, 2, 3), "cannot take inputs of shape 1 x 3 x 8 x 8"), (Twice(), "returns a tuple where one tensor")],
)
def test_networks_that_do_not_fit(network, words):
    with pytest.raises(InputError, match=words):
        require_input_fits(network, torch.zeros(1, 3, 8, 8))
