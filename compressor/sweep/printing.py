"""The table of a sweep in the terminal."""

from compressor.report.console import print_cells
from compressor.sweep.page import Line, line_of
from compressor.sweep.records import SweepRecord


def print_table(record: SweepRecord, max_rows: int) -> None:
    """Print the files, or where there are many those on a front.

    Args:
        record: the table.
        max_rows: above which the fronts alone are printed.
    """
    files = [row for row in record.rows if row.file]
    shown = files if len(files) <= max_rows else [row for row in files if row.on_size_front or row.on_time_front]
    if not shown:
        return
    title = "files" if shown is files else f"{len(shown)} of {len(files)} files, on a front"
    header = ("job", "precision", "size", "time", "top-1" if record.labelled else "norm", "best in")
    print_cells(title, header, [_cells(line_of(row, record.labelled)) for row in shown], (0, 1, len(header) - 1))


def _cells(line: Line) -> list[str]:
    """The job, and figures with what they are of the original's."""
    job = f"{line.job} ({line.note})" if line.note else line.job
    quality = f"{line.quality} ({line.change})" if line.change else line.quality
    size, time = f"{line.size} ({line.size_share})", f"{line.time} ({line.time_share})"
    return [job, line.precision, size, time, quality, line.fronts]
