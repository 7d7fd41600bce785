"""Peak memory is what the system says it is."""

import sys

import numpy as np
import pytest

from compressor.cost.memory import own_peak_bytes, release_memory


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_peak_memory_grows_with_what_is_held_and_stays() -> None:
    release_memory()
    before = own_peak_bytes()
    assert before is not None
    held = np.ones(before // 8 + 10**7)  # more than the process ever held, and written to
    during = own_peak_bytes()
    del held
    release_memory()
    after = own_peak_bytes()
    assert during is not None
    assert after is not None
    assert during > before + 8 * 10**7
    assert after >= during
