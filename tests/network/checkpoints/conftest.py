"""Two small networks of one architecture."""

import pytest

from tests.network.saved import random_state


@pytest.fixture(scope="module")
def small():
    """The smallest of torchvision's state_dicts with a linear head."""
    return random_state("mnasnet0_5", 5)


@pytest.fixture(scope="module")
def other(small):
    """A second copy with other weights."""
    return {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in small.items()}
