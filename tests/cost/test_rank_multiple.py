"""The fastest multiple of the rank: the arithmetic on simulated kernels, and one real measurement."""

import numpy as np
import onnxruntime as ort
import pytest

from compressor.cost import rank_multiple
from compressor.cost.rank_multiple import (
    RANKS,
    measure_rank_multiple,
    measure_ranks,
    pair_of_convolutions,
    shares_of_multiples,
)


def blocks_of(size: int) -> dict[int, float]:
    """A kernel that pays for whole blocks of `size` channels."""
    return {rank: 1.0 + 0.1 * -(-rank // size) * size for rank in RANKS}


@pytest.mark.parametrize("size", [4, 8, 16])
def test_the_size_of_a_kernels_blocks_is_found(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_multiple, "measure_ranks", lambda *_: blocks_of(size))
    multiple, shares = measure_rank_multiple()
    assert multiple == size
    assert shares[size] < shares[1]


def test_where_all_ranks_are_alike_the_multiple_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_multiple, "measure_ranks", lambda *_: {rank: 1.0 + 0.1 * rank for rank in RANKS})
    multiple, shares = measure_rank_multiple()
    assert multiple == 1
    assert all(share == pytest.approx(1.0) for share in shares.values())


def test_shares_are_of_a_straight_line() -> None:
    latencies = {rank: 2.0 * rank for rank in RANKS} | {16: 16.0, 32: 32.0, 48: 48.0}  # half the line's
    assert shares_of_multiples(latencies)[16] < 0.6


def test_ranks_are_measured_in_onnx_runtime() -> None:
    session = ort.InferenceSession(pair_of_convolutions(8, 6, 5), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": np.ones((1, 8, 6, 6), dtype=np.float32)})
    assert output.shape == (1, 8, 6, 6)
    latencies = measure_ranks(8, 6, (3, 4), threads=1)
    assert set(latencies) == {3, 4}
    assert all(value > 0 for value in latencies.values())
