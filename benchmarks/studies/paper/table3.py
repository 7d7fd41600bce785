"""Tables 3 and 4: FC3 by the function norm and by the top-1 error.

    python -m benchmarks.studies.paper.table3 --runs 0:10

The paper's FC3 is trained on MNIST, this one on Fashion-MNIST, with the same layers and as many classes; so the
paper's gammas are taken as they are. Another MODEL with DATA works as well: gammas of the norm are then scaled.
"""

import click

from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results, table_command
from benchmarks.studies.paper.subject import Subject
from benchmarks.studies.paper.ways import OURS, Job, choose_ways
from benchmarks.studies.search.baselines import DEFAULT
from compressor.fidelity.records import Fidelity

GAMMAS: dict[Fidelity, tuple[float, ...]] = {"norm": (0.001, 0.002, 0.005, 0.01, 0.02), "error": (0.9, 1.0, 1.1)}


@table_command("table3", tables.tables_3_and_4)
@click.option("--ways", default=f"{OURS},random,{DEFAULT},default-to-its-end", show_default=True, help="Searches.")
def main(subject: Subject, results: Results, runs: tuple[int, ...], ways: str) -> None:
    """Measure the rows of Tables 3 and 4, by default for FC3 on Fashion-MNIST."""
    chosen = choose_ways(ways)
    jobs = [
        Job(way, gamma, seed, kind)
        for kind, gammas in GAMMAS.items()
        for way in chosen
        for seed in runs
        for gamma in gammas
    ]
    results.fill(subject, jobs)


if __name__ == "__main__":
    main()
