"""Table 2 and Fig. 1: random search, Fabolas and the paper's search on ResNet-18.

    python -m benchmarks.studies.paper.table2 MODEL DATA --input-size 64 --runs 0:10

The paper does not say what the quality is; its gammas of 0.8 to 1.2 are those of Table 4, the top-1 error, and Fabolas
needs a loss over a data set. So L is the error. Random search and Fabolas get the image passes that the paper's search
spent with the same gamma and seed; so do this project's default and its peers, at gamma 1.
"""

import click

from benchmarks.studies.paper.report import tables
from benchmarks.studies.paper.rows import Results, table_command
from benchmarks.studies.paper.subject import Subject
from benchmarks.studies.paper.ways import OURS, PEERS, Job, choose_ways
from benchmarks.studies.search.baselines import DEFAULT
from compressor.cli.sweep.types import Several

GAMMAS = (0.8, 0.9, 1.0, 1.1, 1.2)
GAMMA_OF_PEERS = 1.0


@table_command("table2", tables.tables_2)
@click.option("--ways", default=f"{OURS},random,{DEFAULT}", show_default=True, help="Searches at every gamma.")
@click.option("--peers", default=",".join(("fabolas", *PEERS)), show_default=True, help="Searches at gamma 1 alone.")
@click.option("--gammas", type=Several(click.FLOAT), default=GAMMAS, show_default=True, help="Of the paper's, some.")
def main(
    subject: Subject, results: Results, runs: tuple[int, ...], ways: str, peers: str, gammas: tuple[float, ...]
) -> None:
    """Measure the rows of Table 2 for MODEL with the images in DATA. Fabolas at every gamma: name it in --ways."""
    everywhere, alone = choose_ways(ways), choose_ways(peers) if peers else []
    jobs = [Job(way, gamma, seed, "error") for seed in runs for way in everywhere for gamma in gammas]
    jobs += [Job(way, GAMMA_OF_PEERS, seed, "error") for seed in runs for way in alone if way not in everywhere]
    results.fill(subject, jobs)


if __name__ == "__main__":
    main()
