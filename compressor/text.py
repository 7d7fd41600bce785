"""Small pieces of sentences, and names of strangers as files and terminals can hold them."""

import re
from collections.abc import Sequence

MAX_REASON_LENGTH = 200  # characters
CLIP_AXES = 4
PLURALS = {"is": "are", "was": "were", "has": "have"}
SURROGATES = re.compile("[\ud800-\udfff]")
# Control characters, and those that turn the direction of what follows.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def well_formed(text: str) -> str:
    """Text that UTF-8 can hold: bytes of file names that are not UTF-8, and lone surrogates, become escapes."""
    return SURROGATES.sub(_escape, text)


def printable(text: str) -> str:
    """Text that only shows: what a terminal would act upon becomes escapes, line breaks among it."""
    return UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    is_byte = 0xDC80 <= code <= 0xDCFF  # as Python decodes what is not UTF-8
    return f"\\x{code - 0xDC00:02x}" if is_byte else ascii(match[0])[1:-1]


def first_line(error: BaseException) -> str:
    """The first line of an error's innermost cause without its closing punctuation, or its type where it has none.

    Exporters and runtimes wrap errors in others, and add pages of advice.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(filter(None, map(str.strip, str(error).splitlines())), "")
    return line.rstrip(" .:")[:MAX_REASON_LENGTH] or type(error).__name__


def join_words(words: Sequence[str], conjunction: str = "and") -> str:
    """['a', 'b', 'c'] -> 'a, b and c'."""
    return f" {conjunction} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def count_of(count: int, noun: str, verb: str = "") -> str:
    """'1 image', '2 images'; with a verb '1 image was', '2 images were'.

    Args:
        count: 1 takes the singular.
        noun: the singular; an s makes the plural.
        verb: the singular; empty for none.
    """
    words = [str(count), noun, verb] if count == 1 else [str(count), f"{noun}s", PLURALS.get(verb, verb)]
    return " ".join(filter(None, words))


def input_noun(shape: Sequence[int]) -> str:
    """What an input of this shape is called: a clip has channels, frames, height and width."""
    return "clip" if len(shape) == CLIP_AXES else "image"
