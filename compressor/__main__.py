"""`python -m compressor`: the command `bocompress`, where it is not on the path."""

import os
import sys

if not sys.flags.safe_path:  # Python has put the current folder first, where a `json.py` would be taken for the library
    folder = sys.path.pop(0)
    if os.path.samefile(folder, os.path.dirname(os.path.dirname(__file__))):  # a source tree that is not installed
        sys.path.append(folder)

from compressor.cli.commands import main

if __name__ == "__main__":
    main(prog_name="bocompress")
