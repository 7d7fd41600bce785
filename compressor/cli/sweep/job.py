"""`python -m compressor.cli.sweep.job`: `bocompress-export` in a process of a sweep, which ends with the sweep."""

import sys

from compressor.cli.commands import export
from compressor.process.children import end_with_parent


def main() -> None:
    """Do what the arguments say, and exit as the command does."""
    end_with_parent()
    sys.argv[0] = "bocompress-export"  # reports quote the command
    export.main(prog_name="bocompress-export")


if __name__ == "__main__":
    main()
