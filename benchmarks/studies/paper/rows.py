"""Results files of the paper's tables, row by row: what is there already is not measured again."""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.datasets.fashion import FC3
from benchmarks.studies.paper.subject import Subject, load_subject
from benchmarks.studies.paper.ways import Job, run
from benchmarks.studies.study import RESULTS, changed, read_results, write_results
from compressor.cli.sweep.types import Seeds
from compressor.errors import InputError

OF_WEIGHTS = {"output_energy", "original"}  # what another training of the same network changes, and no setting
Row = dict[str, Any]


@dataclass
class Results:
    """One results file, written anew after every row.

    Attributes:
        name: of the file.
        about: what holds for all rows.
        folder: where it lies.
        rows: those so far, of earlier runs, too.
    """

    name: str
    about: dict[str, Any]
    folder: Path = RESULTS
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = time.perf_counter()
        if not (self.folder / f"{self.name}.json").exists():
            return
        earlier = read_results(self.name, self.folder)
        different = changed(self.about, earlier)
        if set(different) - OF_WEIGHTS:
            raise InputError(f"{self.name} was measured with other {', '.join(different)}: choose another --name")
        if different:
            self._begin_anew()
        else:
            self.rows, self._began = earlier["rows"], self._began - earlier["seconds"]

    def _begin_anew(self) -> None:
        """Put the earlier file aside: networks that are trained here come out otherwise on every kind of machine."""
        path = self.folder / f"{self.name}.json"
        aside = next(
            other for number in itertools.count(1) if not (other := path.with_suffix(f".earlier-{number}")).exists()
        )
        path.rename(aside)
        click.echo(f"{self.name} was measured on other weights: kept as {aside.name}, measured anew", err=True)

    def has(self, key: Row) -> bool:
        """Whether there is a row with these values."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        """Append a row, say it on stderr, and write the file."""
        self.rows.append(row)
        shown = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
        click.echo(f"{self.name}: " + ", ".join(f"{key} {value}" for key, value in shown.items()), err=True)
        self.save()

    def save(self) -> None:
        """Write the file."""
        write_results(self.name, self.about, self.rows, self._began, self.folder)

    def fill(self, subject: Subject, jobs: Sequence[Job]) -> None:
        """Run the searches that have no row yet."""
        missing = [job for job in jobs if not self.has(job.key)]
        for number, job in enumerate(missing, 1):
            click.echo(f"{self.name}: {number} of {len(missing)}, {len(jobs) - len(missing)} were there", err=True)
            self.add(run(subject, job, self.rows))


def table_command(
    table: str, show: Callable[[Row], str], model: str = FC3
) -> Callable[[Callable[..., None]], click.Command]:
    """A command that measures one table: MODEL, DATA and the options that all have in common.

    The function gets the subject, the results and the runs, and its own options.

    Args:
        table: part of the name of the results file, paper-TABLE-MODEL.json.
        show: what is printed of the file at the end, beside the paper's figures.
        model: the default for MODEL; FC3 brings its own images.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def command(
            model: str,
            data: Path | None,
            input_size: int | None,
            patterns: str,
            num_test: int,
            device: str,
            runs: tuple[int, ...],
            name: str | None,
            **options: Any,
        ) -> None:
            try:
                subject = load_subject(model, data, input_size, patterns, num_test, device)
                results = Results(name or f"paper-{table}-{subject.name}", subject.about())
                function(subject, results, runs, **options)
                click.echo(show(read_results(results.name, results.folder)))
            except InputError as error:
                raise click.ClickException(str(error)) from error

        for option in reversed(_common_options(model)):
            command = option(command)
        return click.command()(command)

    return decorate


def _common_options(model: str) -> list[Callable[..., Any]]:
    return [
        click.argument("model", default=model),
        click.argument("data", type=click.Path(path_type=Path), required=False),
        click.option("--input-size", type=int, help="Side of the input; left out: the published transform."),
        click.option("--layers", "patterns", default="paper", show_default=True, help="Name patterns."),
        click.option("--test-images", "num_test", default=10_000, show_default=True),
        click.option("--device", default="cpu", show_default=True),
        click.option("--runs", type=Seeds(), default="0:10", show_default=True, help="Seeds, such as 0:3."),
        click.option("--name", help="Of the results file; left out: paper-TABLE-MODEL."),
    ]
