"""Errors as one sentence on stderr with an exit code."""

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compressor.cli.process import Interrupted, guarded_process
from compressor.failures import explain

NO_SUCCESS = 3  # files are written, but the network is destroyed or its target missed
INTERRUPTED = 130  # the shell's code for Ctrl-C
Command = Callable[..., Any]


def explain_errors(command: Command) -> Command:
    """Turn what `explain` has words for, and signals, into one sentence on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(**options: Any) -> Any:
        try:
            with guarded_process():
                return command(**options)
        except BrokenPipeError:
            raise  # the reader of stdout has left; click ends quietly
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise
            click.echo(f"error: {sentence}", err=True)
            sys.exit(sentence.exit_code)
        except KeyboardInterrupt as error:
            click.echo(_describe_interruption(options), err=True)
            sys.exit(error.exit_code if isinstance(error, Interrupted) else INTERRUPTED)

    return wrapped


def _describe_interruption(options: dict[str, Any]) -> str:
    """What is kept, and the command that goes on with it."""
    if "resume" not in options:
        return "stopped"
    from compressor.pipeline.outputs import CHECKPOINT, FACTORS, JOURNAL, STAGES
    from compressor.sweep.jobs import LIST

    for kept in (output_folder(options) / name for name in (LIST, STAGES, CHECKPOINT, JOURNAL, FACTORS)):
        if kept.exists():
            return f"stopped; {kept} is kept, go on with:\n{_resuming_command()}"
    return "stopped before there was anything to keep"


def _resuming_command() -> str:
    """The command as typed, with --resume."""
    from compressor.cli.inputs import typed_command

    words = [word for word in shlex.split(typed_command()) if word not in ("--resume", "--overwrite")]
    end = words.index("--") if "--" in words else len(words)
    return shlex.join([*words[:end], "--resume", *words[end:]])


def output_folder(options: dict[str, Any]) -> Path:
    """--out, or a folder named after the checkpoint; of a sweep, which has many, one of its own."""
    if "models" in options:
        return options["out"] or Path("sweep")
    return options["out"] or Path(f"{options['model'].stem}-compressed")
