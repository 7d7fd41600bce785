"""TODO docstring."""

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

Number = TypeVar("Number", int, float)


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Pair(Record, Generic[Number]):
    """One figure of the original network and the same figure of the compressed one."""

    original: Number
    compressed: Number
