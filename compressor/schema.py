"""Base classes of all records, which are read from and written to JSON."""

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

Number = TypeVar("Number", int, float)


class Record(BaseModel):
    """Base of all records: immutable, without unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Pair(Record, Generic[Number]):
    """The same number for the original and the compressed network."""

    original: Number
    compressed: Number
