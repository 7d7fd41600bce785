"""Small pieces of sentences."""

from collections.abc import Sequence

MAX_REASON_LENGTH = 200  # characters
PLURALS = {"is": "are", "was": "were"}


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
