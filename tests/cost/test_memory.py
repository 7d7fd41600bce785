"""Peak memory is what the system says it is."""

import subprocess
import sys

import pytest

HOLDING = """
import numpy as np
from compressor.cost.memory import own_peak_bytes, release_memory
before = own_peak_bytes()
held = np.ones(before // 8 + 10**7)  # more than the process ever held, and written to
during = own_peak_bytes()
del held
release_memory()
print(before, during, own_peak_bytes())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_peak_memory_grows_with_what_is_held_and_stays() -> None:
    """In a process of its own: the tests' has held gigabytes."""
    done = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split())
    assert during > before + 8 * 10**7
    assert after >= during
