"""`python -m tests.hard.sweeping ARGUMENTS`: `bocompress sweep`, whose jobs measure nothing."""

from compressor.cli.sweep import command

if __name__ == "__main__":
    command.PROGRAM = "tests.unmeasured"
    command.sweep(prog_name="bocompress sweep")
