"""Errors for users: each is one sentence, printed without a traceback."""


class BocompressError(Exception):
    """A run that failed; the command line prints the sentence and exits with `exit_code`."""

    exit_code = 1


class InputError(BocompressError):
    """Wrong usage or bad input: nothing was changed, and the sentence says what to do."""

    exit_code = 2


class VerificationError(BocompressError):
    """An exported file does not compute what the torch network computes."""
