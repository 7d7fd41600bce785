"""Types of the arrays that pass between packages, and the size of their numbers in files."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Single = NDArray[np.float32]
Ranks = NDArray[np.int64]
"""One rank per layer, (d,) or (n, d)."""
Thetas = NDArray[np.float64]
"""Ranks scaled to [0, 1]."""

FLOAT_BYTES = 4  # of a number in single precision
