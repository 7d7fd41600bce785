"""Types of the command line's options: numbers, lists and amounts, checked as they are read."""

import math
from pathlib import Path
from typing import Any

import click

PROVIDER_NAMES = ("cpu", "cuda", "tensorrt")
PRECISION_NAMES = ("fp32", "fp16", "int8")
MAX_INPUT = 4096
MAX_FRAMES = 1024
MAX_BATCH = 1024
MAX_THREADS = 1024
MAX_SEED = 2**32 - 1
MAX_MULTIPLE = 256
MAX_DIGITS = 20  # Python refuses to read thousands
MIN_GAMMA, MAX_GAMMA = 1e-12, 1e12


class AnyPath(click.Path):
    """A path; one with a zero byte, which a file can hold, is refused rather than handed to the system."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        if "\0" in str(value):
            self.fail(f"{value!r} is no path: it holds a zero byte", param, ctx)
        return super().convert(value, param, ctx)


PATH = AnyPath()


class OrAuto(click.ParamType):
    """A base for types that read "auto" as None."""

    def spell(self, value: Any) -> Any:
        """The value as a person would type it."""
        return "auto" if value is None else value


class Gamma(OrAuto):
    """A positive number, or "auto"."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """See `click.ParamType.convert`."""
        if value == "auto":
            return None
        number = _parse_float(value)
        if number is None or not number > 0 or math.isinf(number):
            self.fail(f"{value!r} is neither a positive number nor 'auto'", param, ctx)
        if not MIN_GAMMA <= number <= MAX_GAMMA:
            self.fail(f"{value} lies outside {MIN_GAMMA:g} to {MAX_GAMMA:g}", param, ctx)
        return number


class RankMultiple(OrAuto):
    """A positive whole number, or "auto"."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """See `click.ParamType.convert`."""
        if value == "auto":
            return None
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = 0
        if not 1 <= number <= MAX_MULTIPLE:
            self.fail(f"{value!r} is neither a whole number from 1 to {MAX_MULTIPLE} nor 'auto'", param, ctx)
        return number


class Delta(click.ParamType):
    """A positive number, or a percentage of the best objective."""

    name = "number|percent%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, bool]:
        """See `click.ParamType.convert`."""
        if isinstance(value, tuple):
            return value
        relative = str(value).endswith("%")
        number = _parse_float(str(value).removesuffix("%"))
        if number is None or not (math.isfinite(number) and number > 0):
            self.fail(f"{value!r} is neither a positive number nor a percentage", param, ctx)
        return (number / 100 if relative else number), relative

    def spell(self, value: tuple[float, bool]) -> str | float:
        """The value as a person would type it."""
        delta, is_relative = value
        return f"{100 * delta:.12g}%" if is_relative else delta


class Fraction(OrAuto):
    """A share from 0 to below 1, "none", or "auto"."""

    name = "none|auto|fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """See `click.ParamType.convert`."""
        if value == "auto":
            return None
        number = 0.0 if value == "none" else _parse_float(value)
        if number is None or not 0 <= number < 1:
            self.fail(f"{value!r} is neither 'none', 'auto' nor a fraction from 0 to below 1", param, ctx)
        return number


class Channels(click.ParamType):
    """One finite number per colour channel, separated by commas."""

    name = "r,g,b|grey|..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """See `click.ParamType.convert`."""
        if isinstance(value, tuple):
            return value
        numbers = [_parse_float(part) for part in str(value).split(",")]
        known = [number for number in numbers if number is not None and math.isfinite(number)]
        if len(known) < len(numbers):
            self.fail(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406, one per channel", param, ctx)
        return tuple(known)


class Weights(click.ParamType):
    """Weights of outputs by name, separated by commas."""

    name = "name=weight,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, float], ...]:
        """See `click.ParamType.convert`."""
        if not isinstance(value, str):
            return tuple(value)
        weights: dict[str, float] = {}
        for part in filter(None, value.split(",")):
            name, _, number = part.rpartition("=")
            weight = _parse_float(number)
            if not name or weight is None or not math.isfinite(weight) or weight < 0:
                self.fail(f"{part!r} is not a name and a weight of at least 0, such as aux=0.5", param, ctx)
            weights[name.strip()] = weight
        return tuple(weights.items())

    def spell(self, value: tuple[tuple[str, float], ...] | None) -> str | None:
        """The value as it is typed; None for none."""
        return None if value is None else ",".join(f"{name}={weight!r}" for name, weight in value)


class Precisions(click.ParamType):
    """Names of precisions, separated by commas."""

    name = "fp32|fp16|int8"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """See `click.ParamType.convert`."""
        names = value if isinstance(value, tuple) else tuple(part for part in str(value).split(",") if part)
        unknown = [name for name in names if name not in PRECISION_NAMES]
        if unknown or not names:
            self.fail(f"{value!r} is not one or more of {', '.join(PRECISION_NAMES)}", param, ctx)
        return names


class Amount(click.ParamType):
    """A positive number with an optional unit after it."""

    def __init__(self, name: str, example: str, units: dict[str, float]) -> None:
        self.name = name
        self._example = example
        self._units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType.convert`."""
        text = str(value).strip().lower()
        # The longest unit first: "mib" ends in "b", too.
        unit = next((unit for unit in sorted(self._units, key=len, reverse=True) if text.endswith(unit)), "")
        number = _parse_float(text.removesuffix(unit))
        if number is None or not (math.isfinite(number) and number > 0):
            self.fail(f"{value!r} is not a positive number such as {self._example}", param, ctx)
        return number * self._units.get(unit, 1.0)


FILE_BYTES = Amount("bytes", "4MB", {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30})
MACS = Amount("macs", "300M", {"k": 1e3, "m": 1e6, "g": 1e9})


class FiniteRange(click.FloatRange):
    """A range of floats that refuses `nan`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType.convert`."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Numbers(click.ParamType):
    """Whole numbers from 1 to `largest`, separated by commas, without repeats."""

    name = "number,..."

    def __init__(self, largest: int) -> None:
        self._largest = largest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """See `click.ParamType.convert`."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        numbers = [number for part in parts if 1 <= (number := parse_whole(part)) <= self._largest]
        if len(numbers) < len(parts):
            self.fail(f"{value!r} is not a list of whole numbers from 1 to {self._largest:,}, such as 1,8", param, ctx)
        return tuple(dict.fromkeys(numbers))


class Words(click.ParamType):
    """Some of the words offered, separated by commas, without repeats."""

    name = "word,..."

    def __init__(self, *offered: str) -> None:
        self._offered = offered

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return ",".join(self._offered[:-1]) + f"|{self._offered[-1]}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """See `click.ParamType.convert`."""
        if isinstance(value, tuple):
            return value
        words = [word.strip().lower() for word in str(value).split(",")]
        if not set(words) <= set(self._offered):
            self.fail(f"{value!r} is not a list of these: {', '.join(self._offered)}", param, ctx)
        return tuple(dict.fromkeys(words))


def parse_whole(text: str) -> int:
    """A whole number in decimal digits; -1 for all else, and for more digits than any number here has."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else -1


def _parse_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
