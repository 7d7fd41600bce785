"""Base classes of all records, which are read from and written to JSON."""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError

from compressor.text import well_formed

Number = TypeVar("Number", int, float)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of all records: immutable, without unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_dump_json(self, **options: Any) -> str:
        """See pydantic; names of files that UTF-8 cannot hold are written with escapes."""
        try:
            return super().model_dump_json(**options)
        except PydanticSerializationError:
            return BaseModel.model_dump_json(_well_formed(self), **options)


def _well_formed(value: Any) -> Any:
    """The same value with all texts in it as UTF-8 can hold them."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _well_formed(inner) for name, inner in value})
    if isinstance(value, Mapping):
        return {_well_formed(key): _well_formed(inner) for key, inner in value.items()}
    return [*map(_well_formed, value)] if isinstance(value, list | tuple) else value


class Pair(Record, Generic[Number]):
    """The same number for the original and the compressed network."""

    original: Number
    compressed: Number

    @property
    def both(self) -> tuple[Number, Number]:
        """The original's, then the compressed network's."""
        return self.original, self.compressed
