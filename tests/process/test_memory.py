"""Peak memory is what the system says it is."""

import subprocess
import sys

import pytest

from compressor.errors import InputError
from compressor.process.memory import at_once, limited_memory

HOLDING = """
import numpy as np
from compressor.process.memory import own_peak_bytes, release_memory
before = own_peak_bytes()
held = np.ones(before // 8 + 10**7)  # more than the process ever held, and written to
during = own_peak_bytes()
del held
release_memory()
print(before, during, own_peak_bytes())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
@pytest.mark.slow
def test_peak_memory_grows_with_what_is_held_and_stays() -> None:
    """In a process of its own: the tests' has held gigabytes."""
    done = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split())
    assert during > before + 8 * 10**7
    assert after >= during - 10**6  # Linux counts pages of several threads now and then


LIMITED = """
import sys
import numpy as np
from compressor.process.memory import at_once, limited_memory
weights, images, limit = 10**7, 10**8, 10**9 + 3 * 10**8
with limited_memory(limit, weights, images):
    print(at_once(1000), at_once(1))
    try:
        np.ones(limit // 8 + 10**8 // 4)
    except MemoryError:
        print("refused")
np.ones(limit // 8)
print(at_once(1000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse nothing")
def test_a_limit_makes_pieces_smaller_and_is_the_systems_until_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["500", "1", "refused", "1000"]  # (1.3 - 0.85 - 5 * 0.01 - 0.1) GB of 0.6 GB


def test_without_a_limit_and_with_much_everything_has_its_full_size() -> None:
    for limit in (None, 1e12):
        with limited_memory(limit, 10**7, 10**8):
            assert at_once(1000) == 1000


def test_too_little_is_refused_with_what_would_do() -> None:
    with pytest.raises(InputError, match=r"--max-memory 0.50GB is too little: .* takes 1.08GB at least"):
        limited_memory(5e8, 10**7, 10**8).__enter__()
