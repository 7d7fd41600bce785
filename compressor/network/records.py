"""The record of a layer."""

from typing import Literal

from pydantic import Field

from compressor.factorization.records import FactorKind, Method
from compressor.schema import Record

Kind = Literal["conv", "linear"]


class LayerRecord(Record):
    """One conv or linear layer as found in the network, and what was done with it.

    Attributes:
        name: its name in the network.
        kind: "conv" or "linear".
        shape: of the weight, (Co, Ci/groups, kh, kw) or (Co, Ci).
        method: how it is factorized; null where it cannot be.
        factors: what its factors are fitted to.
        break_even_rank: the largest rank at which the factors have no more parameters than the layer (Sec. 3.3); where
            hidden channels are removed, the largest number of them that is less than all.
        rank: null where the layer stays dense; where hidden channels are removed, how many are left, in units.
        shape_compressed: of the weight where channels were removed.
        groups: names of the groups of layers with which it shares hidden channels that can be removed, or are.
        params: of the weight.
        params_compressed: of the factors, or of the weight where it stays dense.
        macs: multiply-accumulates for one image.
        macs_compressed: the same after compression.
        skipped: why it cannot be compressed; null where it can.
    """

    name: str
    kind: Kind
    shape: list[int]
    method: Method | None = None
    factors: FactorKind | None = None
    break_even_rank: int | None = None
    rank: int | None = None
    shape_compressed: list[int] | None = None
    groups: list[str] = Field(default_factory=list)
    params: int
    params_compressed: int | None = None
    macs: int
    macs_compressed: int | None = None
    skipped: str | None = None
