"""The errors a user meets: each is one clear sentence, printed without a traceback."""


class BocompressError(Exception):
    """Work that failed; the command line prints the sentence and exits with `exit_code`."""

    exit_code = 1


class InputError(BocompressError):
    """Bad usage or bad input: nothing was changed, and the sentence says what to do instead."""

    exit_code = 2


class VerificationError(BocompressError):
    """An exported file does not compute what the torch network computes."""


def first_line(error: BaseException) -> str:
    """The first line of an error's words, or its type where it has none: libraries add pages of advice."""
    return str(error).strip().partition("\n")[0].rstrip() or type(error).__name__
