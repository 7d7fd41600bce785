"""`bocompress demo`, registered as an entry point in pyproject.toml."""

import shlex
import sys
from pathlib import Path

import click

from compressor.cli.errors import explain_errors
from compressor.cli.types import PATH


@click.command()
@click.argument("folder", type=PATH)
@explain_errors
def demo(folder: Path) -> None:
    """Train a small network on handwritten digits in FOLDER, new or empty, and compress it.

    Takes a few minutes on two cores and downloads nothing. FOLDER/compressed/report.html shows what came out.
    """
    from benchmarks.demo import digits
    from compressor.cli.commands import export
    from compressor.files import check_folder, prepare_folder

    check_folder(folder)
    prepare_folder(folder)
    digits.main(folder)
    arguments = [str(folder / digits.CHECKPOINT), "--data", str(folder / digits.IMAGES)]
    arguments += ["--input-size", str(digits.SIZE), "--out", str(folder / "compressed")]
    click.echo(f"$ {shlex.join(['bocompress-export', *arguments])}", err=True)
    sys.argv = ["bocompress-export", *arguments]  # what goes on with an interrupted run
    export.main(arguments, prog_name="bocompress-export", standalone_mode=False)
