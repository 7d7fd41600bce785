"""Clusters, and counts of what was tried, which `tests.plugins.counting` collects."""

from collections.abc import Callable

import pytest

from tests.hard.clusters import dask_cluster, ray_cluster
from tests.plugins.counting import COUNTS

__all__ = ["dask_cluster", "ray_cluster"]


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Call it with a kind of input, and how many were tried, refused in a sentence, and right."""

    def add(kind: str, tried: int, refused: int, right: int) -> None:
        assert refused + right == tried
        record_property(COUNTS, (kind, {"tried": tried, "refused": refused, "right": right}))

    return add
