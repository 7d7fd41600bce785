"""Types of options that a sweep takes lists of."""

from typing import Any

import click

from compressor.cli.types import MAX_SEED, parse_whole

MAX_JOBS = 100_000


class Several(click.ParamType):
    """Values of another type, separated by commas, without repeats.

    Args:
        inner: the type of each.
    """

    def __init__(self, inner: click.ParamType) -> None:
        self._inner = inner
        self.name = f"{inner.name},..."

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"{(self._inner.get_metavar(param, ctx) or self._inner.name).upper()},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """See `click.ParamType.convert`."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return tuple(dict.fromkeys(self._inner.convert(part, param, ctx) for part in parts))

    def spell(self, values: tuple[Any, ...] | None) -> list[Any] | None:
        """The values as a person would type them; None for none."""
        if values is None:
            return None
        return [self._inner.spell(value) if hasattr(self._inner, "spell") else value for value in values]


class Seeds(click.ParamType):
    """Whole numbers, and ranges of them as Python has them: 0:5 is 0, 1, 2, 3, 4."""

    name = "number|from:to,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """See `click.ParamType.convert`."""
        if isinstance(value, tuple):
            return value
        seeds: list[int] = []
        for part in str(value).split(","):
            first, colon, end = (piece.strip() for piece in part.partition(":"))
            numbers = [parse_whole(piece) for piece in (first, end if colon else first)]
            last = numbers[1] - 1 if colon else numbers[1]
            if min(numbers) < 0 or last < numbers[0] or last > MAX_SEED or last - numbers[0] >= MAX_JOBS:
                self.fail(f"{part.strip()!r} is neither a seed nor a range of them such as 0:5", param, ctx)
            seeds += range(numbers[0], last + 1)
        return tuple(dict.fromkeys(seeds))
