"""TODO docstring."""

from typing import Literal

from compressor.factorization.records import FactorKind, Method
from compressor.schema import Record

Kind = Literal["conv", "linear"]


class LayerRecord(Record):
    """One conv or linear layer as found in the network, and what was done with it.

    `shape` is the weight's shape: (Co, Ci/groups, kh, kw) or (Co, Ci). `skipped` says why a layer cannot be
    compressed; it is null for compressible layers. `rank` is null where the layer stays dense; `cap` is the
    rank at which the factors would hold as many parameters as the layer (break-even, Sec. 3.3).
    """

    name: str
    kind: Kind
    shape: list[int]
    method: Method | None = None
    factors: FactorKind | None = None
    break_even_rank: int | None = None
    rank: int | None = None
    params: int
    params_compressed: int | None = None
    macs: int
    macs_compressed: int | None = None
    skipped: str | None = None
