"""Tables 6 and 7 with Figs. 4 and 5: gamma against size, accuracy and time, ten runs each.

    python -m benchmarks.studies.paper.table6 MODEL DATA --input-size 64 --runs 0:10

The paper's five gammas are scaled by the output energy where the network has other than a thousand classes. Rows that
the results file holds already are kept.
"""

import click

from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results, table_command
from benchmarks.studies.paper.subject import Subject
from benchmarks.studies.paper.ways import OURS, Job, choose_ways
from benchmarks.studies.search.baselines import DEFAULT

GAMMAS = (0.00006, 0.00008, 0.0001, 0.0003, 0.0005)


@table_command("table6", tables.tables_6, "demo/resnet18-digits.pt")
@click.option("--ways", default=f"{OURS},random,{DEFAULT},default-to-its-end", show_default=True, help="Searches.")
def main(subject: Subject, results: Results, runs: tuple[int, ...], ways: str) -> None:
    """Measure the rows of Table 6, or 7, for MODEL with the images in DATA."""
    jobs = [Job(way, gamma, seed) for way in choose_ways(ways) for seed in runs for gamma in GAMMAS]
    results.fill(subject, jobs)


if __name__ == "__main__":
    main()
