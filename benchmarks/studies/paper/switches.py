"""What each departure of `--preset paper` from the paper's text does: one gamma, everything else the same.

python -m benchmarks.studies.paper.switches MODEL DATA --input-size 64 --runs 0:10
"""

import click

from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results, table_command
from benchmarks.studies.paper.subject import Subject
from benchmarks.studies.paper.ways import OURS, Job, choose_ways
from compressor.fidelity.records import Fidelity

SWITCHES = (OURS, "rate", "pooled-noise", "no-excess-noise", "no-remeasure", "literal")


@table_command("switches", tables.table_of_switches)
@click.option("--gamma", type=float, help="One of the paper's, scaled as its tables are; left out: a middle one.")
@click.option("--fidelity", type=click.Choice(["norm", "risk", "error"]), default="norm", show_default=True)
def main(subject: Subject, results: Results, runs: tuple[int, ...], gamma: float | None, fidelity: Fidelity) -> None:
    """Measure the paper's search with each of its switches for MODEL with the images in DATA."""
    gamma, ways = gamma or subject.middle_gamma, choose_ways(",".join(SWITCHES))
    results.fill(subject, [Job(way, gamma, seed, fidelity) for seed in runs for way in ways])


if __name__ == "__main__":
    main()
