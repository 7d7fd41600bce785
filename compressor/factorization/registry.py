"""One factorization method per file; this table names them.

Every method gives `factor_params`, whose sum must not fall with the rank, `max_rank` and a `Factors` class. A new
method is a new file and a new row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.factorization import cp, interpolative, spatial, svd, tucker
from compressor.factorization.base import Factors, Layer
from compressor.factorization.records import Method
from compressor.factorization.two_factor import SplitFactors

__all__ = ["METHODS", "SPLIT_METHODS", "Factors", "Layer", "find_break_even_rank", "num_params_table"]


@dataclass(frozen=True)
class FactorMethod:
    """A method's cost at a rank, its full rank, and its factors."""

    factor_params: Callable[[Sequence[int], int, int], tuple[int, ...]]
    max_rank: Callable[[Sequence[int], int], int]
    factorize: Callable[..., Factors]

    def num_params(self, shape: Sequence[int], groups: int, rank: int) -> int:
        """Parameters of all factors of a weight of `shape` (Co, Ci/groups, ...) at `rank`."""
        return sum(self.factor_params(shape, groups, rank))


METHODS: dict[Method, FactorMethod] = {
    "svd": FactorMethod(svd.factor_params, svd.max_rank, svd.SvdFactors),
    "spatial": FactorMethod(spatial.factor_params, spatial.max_rank, spatial.SpatialFactors),
    "tucker": FactorMethod(tucker.factor_params, tucker.max_rank, tucker.TuckerFactors),
    "cp": FactorMethod(cp.factor_params, cp.max_rank, cp.CpFactors),
    "interpolative": FactorMethod(
        interpolative.factor_params, interpolative.max_rank, interpolative.InterpolativeFactors
    ),
}

# The methods of two factors, which can be refitted in turn.
SPLIT_METHODS: dict[Method, type[SplitFactors]] = {"svd": svd.SvdFactors, "spatial": spatial.SpatialFactors}


def find_break_even_rank(method: Method, shape: Sequence[int], groups: int, dense_params: int) -> int:
    """Largest rank at which the factors hold no more than `dense_params` parameters (Sec. 3.3); 0 if none."""
    rows = METHODS[method]
    ranks = range(1, rows.max_rank(shape, groups) + 1)
    return max((rank for rank in ranks if rows.num_params(shape, groups, rank) <= dense_params), default=0)


def num_params_table(
    method: Method, shape: Sequence[int], groups: int, break_even_rank: int, dense_params: int
) -> list[int]:
    """Parameters at every choice for a layer: the ranks that make it smaller, and last the layer as it was.

    The last choice is rank cap + 1, or the cap itself where factors of that rank are exactly as large as the layer.
    """
    counts = [METHODS[method].num_params(shape, groups, rank) for rank in range(1, break_even_rank + 1)]
    return [*(count for count in counts if count < dense_params), dense_params]
