"""Errors as one sentence on stderr with an exit code."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compressor.errors import BocompressError

NO_SUCCESS = 3  # files are written, but the network is destroyed or its target missed
INTERRUPTED = 130  # the shell's code for Ctrl-C
Command = Callable[..., Any]


def explain_errors(command: Command) -> Command:
    """Turn our errors, a full output device and Ctrl-C into one sentence on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(**options: Any) -> Any:
        try:
            return command(**options)
        except BocompressError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            raise  # the reader of stdout has left; click ends quietly
        except OSError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo(_describe_interruption(options), err=True)
            sys.exit(INTERRUPTED)

    return wrapped


def _describe_interruption(options: dict[str, Any]) -> str:
    if "resume" in options:
        from compressor.pipeline.outputs import CHECKPOINT, JOURNAL, STAGES

        for kept in (output_folder(options) / name for name in (STAGES, CHECKPOINT, JOURNAL)):
            if kept.exists():
                return f"stopped; {kept} is kept: the same command with --resume continues from there"
    return "stopped"


def output_folder(options: dict[str, Any]) -> Path:
    """--out, or a folder named after the checkpoint."""
    return options["out"] or Path(f"{options['model'].stem}-compressed")
