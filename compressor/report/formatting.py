"""Numbers for readers: megabytes, millions, milliseconds, percent.

Gaps are no-break spaces, so that no line ends between a number and its unit.
"""

import math

GAP = "\u202f"  # narrow no-break space
TIMES = "×"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MIN_PROBABILITY = 0.0001


def format_bytes(size_bytes: float) -> str:
    """46 800 000 -> '46.8 MB' (decimal megabytes, as file managers and app stores count them)."""
    if size_bytes >= 100_000:
        return f"{size_bytes / 1e6:.1f}{GAP}MB"
    return f"{size_bytes / 1e3:.1f}{GAP}kB" if size_bytes >= 1000 else f"{size_bytes:.0f}{GAP}B"


def format_count(value: float) -> str:
    """Three digits and a scale: 11 689 512 -> '11.7 M', 1.8e9 -> '1.80 G', 512 -> '512'."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # 999 950 is 1.00 M, not 1000 k
            return f"{_three_digits(value / size)}{GAP}{letter}"
    return f"{value:.0f}"


def format_ms(value_ms: float) -> str:
    """Three digits: '12.3 ms', '0.084 ms', '1 240 ms'."""
    if value_ms >= 1000:
        return f"{value_ms:,.0f}{GAP}ms".replace(",", GAP)
    return f"{_three_digits(value_ms) if value_ms >= 0.1 else f'{value_ms:.3f}'}{GAP}ms"


def format_ratio(value: float) -> str:
    """'0.19×'; two significant digits at any size: '0.064×', '2.1×', '12×'."""
    return f"{_two_digits(value)}{TIMES}"


def format_factor(ratio: float, less: str, more: str) -> str:
    """A ratio of new to old as how many times less or more: 0.045, 'smaller', 'larger' -> '22× smaller'.

    Args:
        ratio: new over old.
        less: the word for ratios below 1.
        more: the word for ratios above 1.
    """
    if ratio <= 0:
        return "—"
    if 0.995 <= ratio < 1.005:
        return "the same"
    return f"{format_ratio(1 / ratio)} {less}" if ratio < 1 else f"{format_ratio(ratio)} {more}"


def format_points(change: float) -> str:
    """A change of a share in points: -0.016 -> '−1.6'."""
    points = f"{100 * change:+.1f}"
    return "0.0" if points in ("+0.0", "-0.0") else points.replace("-", "−")


def format_interval(low: float, high: float) -> str:
    """'0.47 to 0.49×'."""
    decimals = max(2, 2 - math.floor(math.log10(high))) if 0 < high < 10 else 0
    return f"{low:.{decimals}f} to {high:.{decimals}f}{TIMES}"


def format_percent(share: float) -> str:
    """0.984 -> '98.4 %'; a share just short of all or nothing is never rounded to it."""
    percent = 100 * share
    if 99.95 <= percent < 100:
        return f"more than 99.9{GAP}%"
    if 0 < percent < 0.05:
        return f"less than 0.1{GAP}%"
    return f"{percent:.0f}{GAP}%" if percent in (0, 100) else f"{percent:.1f}{GAP}%"


def format_number(value: float) -> str:
    """Three significant digits, with a power of ten where plain decimals would be hard to read."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}{GAP}{TIMES}{GAP}10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", GAP)
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def format_probability(probability: float) -> str:
    """'0.0031'; below what a fitted model can resolve, 'less than 0.0001'."""
    if probability < _MIN_PROBABILITY:
        return f"less than {_MIN_PROBABILITY}"
    return f"{probability:.{max(2, 1 - math.floor(math.log10(probability)))}f}"


def format_duration(seconds: float) -> str:
    """'4.2 s', '3 min 12 s', '2 h 05 min'."""
    if seconds < 59.5:
        return f"{seconds:.1f}{GAP}s" if seconds < 10 else f"{seconds:.0f}{GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{GAP}min {rest:02d}{GAP}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{GAP}h {minutes:02d}{GAP}min"


def format_shape(shape: list[int]) -> str:
    """[64, 64, 3, 3] -> '64 × 64 × 3 × 3'."""
    return f"{GAP}{TIMES}{GAP}".join(str(size) for size in shape)


def format_provider(name: str) -> str:
    """ONNX Runtime's 'CPUExecutionProvider' -> 'CPU'."""
    return name.removesuffix("ExecutionProvider") or name


def format_plural(count: int, noun: str, plural: str = "") -> str:
    """'1 image', '500 images', '2 entries'.

    Args:
        count: 1 takes the singular.
        noun: the singular.
        plural: of the noun; empty where an s makes it.
    """
    digits = f"{count:,}".replace(",", GAP)
    return f"{digits} {noun if count == 1 else plural or noun + 's'}"


def _three_digits(value: float) -> str:
    """Three digits for figures from 0.1 to 999: 1.23, 12.3, 123."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _two_digits(value: float) -> str:
    """Two significant digits, and at least two decimals below one."""
    if value <= 0:
        return "0"
    decimals = 1 - math.floor(math.log10(value))
    return f"{value:.{max(0, max(2, decimals) if value < 0.995 else min(decimals, 1))}f}"
