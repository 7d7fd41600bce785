"""`python -m compressor`: the command `bocompress`, where it is not on the path."""

from compressor.cli.commands import main

if __name__ == "__main__":
    main(prog_name="bocompress")
