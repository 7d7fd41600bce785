"""Sweeps of a tiny network: the same as the export command alone, one failure, going on, and careless input."""

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from compressor.cli.commands import export
from compressor.files import write_sealed
from compressor.sweep import run_job as run_job_module
from compressor.sweep.jobs import Job
from compressor.sweep.outputs import read_jobs
from compressor.sweep.run_job import Order, run_job
from compressor.version import VERSION
from tests.unmeasured import without_measuring

SAME = ("plan.json", "compressed.safetensors", "search.jsonl", "factors.jsonl")
OPTIONS = ("--trust-pickle", "--input-size", "16", "--max-images", "40", "--max-evaluations", "6", "--samples", "4")
Invoke = Callable[..., Result]


class Swept(NamedTuple):
    """A sweep of two models at one gamma, of which one cannot be read."""

    folder: Path
    models: tuple[Path, Path]
    result: Result


def wait_within(command: list[str], order: Order, log: Path) -> int:
    """Run a job's command in this process: a new one would load torch for seconds (hard tests do that)."""
    arguments = command[command.index(order.program) + 1 :]
    with without_measuring():
        result = CliRunner().invoke(export, arguments)
    log.write_text(result.stdout + result.stderr)
    return result.exit_code


@contextmanager
def within_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_job_module, "_wait", wait_within)
        yield


@pytest.fixture(scope="module")
def swept(tiny_checkpoint: Path, invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    broken = folder / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    arguments = [tiny_checkpoint, broken, *OPTIONS, "--gammas", "0.5", "--seeds", "1:2"]
    with within_this_process():
        result = invoke("bocompress", "sweep", *arguments, "--out", folder / "out")
    return Swept(folder / "out", (tiny_checkpoint, broken), result)


@pytest.mark.slow
def test_a_job_is_what_the_export_command_gives_alone(swept: Swept, invoke: Invoke, tmp_path: Path) -> None:
    arguments = [swept.models[0], *OPTIONS, "--gamma", "0.5", "--seed", 1, "--out", tmp_path / "alone"]
    with without_measuring():
        alone = invoke("bocompress-export", *arguments)
    assert alone.exit_code in (0, 3)
    for name in SAME:
        job = swept.folder / "tiny-gamma-0.5-seed-1"
        assert (job / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_one_job_fails_and_the_other_is_in_the_table(swept: Swept) -> None:
    assert swept.result.exit_code == 1, swept.result.output
    last = swept.result.stderr.splitlines()[-1]
    assert last.startswith("error: broken-gamma-0.5-seed-1: ")
    assert "is no " in last or "not a" in last
    rows = list(csv.DictReader((swept.folder / "sweep.csv").open()))
    assert {row["job"]: row["state"] != "failed" for row in rows} == {
        "tiny-gamma-0.5-seed-1": True,
        "broken-gamma-0.5-seed-1": False,
    }
    assert "broken-gamma-0.5-seed-1" in (swept.folder / "sweep.html").read_text()
    assert swept.result.stdout.splitlines()[-1] == f"page: {swept.folder / 'sweep.html'}"
    assert (swept.folder / "logs" / "tiny-gamma-0.5-seed-1.log").stat().st_size
    assert {job.asked for job in read_jobs(swept.folder).values()} == {"gamma 0.5"}


def test_going_on_repeats_no_finished_job(swept: Swept, invoke: Invoke) -> None:
    job = swept.folder / "tiny-gamma-0.5-seed-1"
    before = {path: path.stat().st_mtime_ns for path in job.iterdir()}
    arguments = [*swept.models, *OPTIONS, "--gammas", "0.5", "--seeds", 1, "--resume", "--out", swept.folder]
    with within_this_process():
        result = invoke("bocompress", "sweep", *arguments)
    assert result.exit_code == 1
    assert "1 of 2 jobs were finished before" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in job.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--gammas", "0.5"], "--resume goes on with the sweep there, --overwrite replaces it"),
        (["--resume", "--gammas", "0.5", "--skip", "0"], r"was begun with other options \(--skip, 0\)"),
        (["--resume", "--overwrite"], "--resume and --overwrite contradict each other"),
        (["--gammas", "0.5", "--max-drop", "1"], "--gammas and --max-drop contradict each other"),
        (["--target-ratio", "0.5,1.5"], r"'--target-ratio': 1\.5 is not in the range"),
        (["--seeds", "9" * 5000], "is neither a seed nor a range of them"),
        (["--seeds", "5:5"], "'5:5' is neither a seed nor a range of them"),
        (["--seeds", "0:99999", "--gammas", "1,2"], "199,998 jobs are more than 100,000"),
        (["--gammas", ""], "'' is neither a positive number nor 'auto'"),
        (["--cluster", "auto"], "--cluster auto needs --backend ray or dask"),
        (["--finetune", "1"], "--finetune needs images of the task"),
        (["--recipe", "vgg", "--gammas", "1"], "contradict each other|needs images"),
        (["nowhere.pt"], "nowhere.pt does not exist"),
        (["/tmp"], "/tmp is a folder: name its checkpoints"),
        (["--gamma", "1"], "no such option"),
    ],
)
def test_careless_input_is_one_sentence_and_changes_nothing(
    more: list[str], sentence: str, swept: Swept, invoke: Invoke
) -> None:
    before = sorted(path.stat().st_mtime_ns for path in swept.folder.rglob("*"))
    result = invoke("bocompress", "sweep", swept.models[0], *OPTIONS, "--seeds", 1, "--out", swept.folder, *more)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, line), line
    assert sorted(path.stat().st_mtime_ns for path in swept.folder.rglob("*")) == before


def test_a_folder_with_other_files_is_refused(swept: Swept, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for more in ([], ["--resume"], ["--overwrite"]):
        result = invoke("bocompress", "sweep", swept.models[0], *OPTIONS, *more, "--out", tmp_path)
        assert result.exit_code == 2, more
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_that_changed_is_refused(swept: Swept, invoke: Invoke) -> None:
    broken = swept.models[1]
    broken.write_bytes(b"another")
    result = invoke("bocompress", "sweep", broken, *OPTIONS, "--gammas", "0.5", "--resume", "--out", swept.folder)
    broken.write_bytes(b"no checkpoint")
    assert result.exit_code == 2
    assert "broken.pt has changed since the sweep in" in result.stderr


def test_a_list_of_jobs_that_leads_elsewhere_is_refused(swept: Swept, invoke: Invoke, tmp_path: Path) -> None:
    """Whoever makes a checksum anew may name any folder, which --overwrite would empty."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "plan.json").write_bytes(
        (swept.folder / "tiny-gamma-0.5-seed-1" / "plan.json").read_bytes()
    )
    (tmp_path / "out").mkdir()
    job = {"name": "../precious", "model": "a.pt", "arguments": [], "asked": "", "seed": 0}
    for changes in (
        {"jobs": [job]},
        {"jobs": [{**job, "name": "logs"}]},
        {"jobs": [7]},
        {"jobs": None},
        {"models": []},
    ):
        write_sealed(tmp_path / "out" / "jobs.json", {"version": VERSION, "models": {}, "jobs": [], **changes})
        for more in ("--resume", "--overwrite"):
            result = invoke("bocompress", "sweep", swept.models[0], *OPTIONS, more, "--out", tmp_path / "out")
            assert result.exit_code == 2
            assert "jobs.json is not a list of a sweep's jobs: " in result.stderr
    assert (tmp_path / "precious" / "plan.json").exists()


def test_options_of_the_file_and_of_the_line_reach_the_jobs(
    swept: Swept, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text('max-drop = [1, 2]\nprecision = "int8"\nrecalibrate = false\ndelta = "3%"\n')
    taken: list[Job] = []
    monkeypatch.setattr("compressor.sweep.driver.run_sweep", lambda jobs, *_: taken.extend(jobs) or exit(0))
    arguments = ["--config", tmp_path / "run.toml", "--skip", "0,2", "--seeds", "3,0:2", "--out", tmp_path / "out"]
    invoke("bocompress", "sweep", swept.models[0], *arguments)
    assert [job.name for job in taken] == [f"tiny-max-drop-{drop}-seed-{seed}" for drop in (1, 2) for seed in (3, 0, 1)]
    assert sorted(taken[0].arguments) == sorted(
        ["--skip", "0,2", "--no-recalibrate", "--precision", "int8", "--delta", "3%", "--max-drop", "1", "--seed", "3"]
    )
    (tmp_path / "run.toml").write_text('gammas = "0.01,0.03"\nrefine = true\nmethod = "auto"\n')
    arguments = ["--preset", "paper", "--config", tmp_path / "run.toml", "--max-drop", "1", "--out", tmp_path / "out"]
    taken.clear()
    invoke("bocompress", "sweep", swept.models[0], *arguments)
    assert [job.asked for job in taken] == ["max-drop 1"]  # what is typed replaces the file's
    assert {"--refine", "--preset", "paper"} <= set(taken[0].arguments)  # the file's replaces the preset's
    assert taken[0].arguments[taken[0].arguments.index("--method") + 1] == "auto"
    printed = invoke("bocompress", "sweep", "--gammas", "0.1,auto", "--seeds", "0:3", "--print-config").stdout
    assert 'gammas = [0.1, "auto"]' in printed
    assert "seeds = [0, 1, 2]" in printed
    (tmp_path / "again.toml").write_text(printed)
    assert invoke("bocompress", "sweep", "--config", tmp_path / "again.toml", "--print-config").stdout == printed


def test_a_worker_with_another_version_or_without_the_folder_says_so(tmp_path: Path) -> None:
    order = Order("job", "tests.unmeasured", (), str(tmp_path / "job"), str(tmp_path / "log"), ".", version="0")
    outcome = run_job(order)
    assert (outcome.code, outcome.sentence[:22]) == (1, "the worker has bocompr")
    outcome = run_job(replace(order, version=VERSION))
    assert outcome.sentence.endswith("jobs.json: the sweep's folder must be shared with it")
    assert not (tmp_path / "job").exists()
