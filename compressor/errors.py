"""Errors for users: each is one sentence, printed without a traceback."""

from compressor.text import printable


class BocompressError(Exception):
    """A run that failed; the command line prints the sentence and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, sentence: str = "") -> None:
        """Names of strangers may be in the sentence: what a terminal would act upon is escaped."""
        super().__init__(printable(sentence))


class InputError(BocompressError):
    """Wrong usage or bad input: nothing was changed, and the sentence says what to do."""

    exit_code = 2


class ShortageError(BocompressError):
    """The machine has too little memory, or too few threads or processes, for what was asked; the input may be fine."""


class VerificationError(BocompressError):
    """An exported file does not compute what the torch network computes."""
