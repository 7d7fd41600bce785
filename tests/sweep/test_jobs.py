"""Names of jobs: readable, different, and the same when a sweep goes on."""

import os
from pathlib import Path

import pytest

from compressor.sweep.jobs import Job, label_models, name_job
from compressor.sweep.outputs import read_jobs, read_models, write_jobs


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a/one.pt", "two.v2.pt"], ["one", "two.v2"]),
        (["a/net.pt", "b/net.pt"], ["net", "b-net"]),
        (["a/net.pt", "a/net.pth"], ["net", "a-net"]),
        (["my net.pt", "my_net.pt", "=x;rm.pt"], ["my_net", None, "_x_rm"]),
        ([".pt", "..."], ["pt", None]),
        (["\udcff.pt", "x" * 300 + ".pt"], ["_", "x" * 80]),
    ],
)
def test_labels_are_short_names_of_files_that_differ(paths: list[str], labels: list[str | None]) -> None:
    found = label_models([Path(path) for path in paths])
    assert list(map(str, found)) == paths
    assert len(set(found.values())) == len(paths)
    for label, expected in zip(found.values(), labels, strict=True):
        assert expected is None or label == expected
        assert label.replace("_", "").replace("-", "").replace(".", "").isalnum() or label == "_"


def test_a_label_stays_when_another_model_joins() -> None:
    first = label_models([Path("b/net.pt")])
    known = {str(path.absolute()): label for path, label in first.items()}
    assert label_models([Path("a/net.pt"), Path("b/net.pt")], known) == {
        Path("a/net.pt"): "a-net",
        Path("b/net.pt"): "net",
    }


def test_names_say_what_was_asked() -> None:
    assert name_job("resnet18", "gamma 0.01", 3) == "resnet18-gamma-0.01-seed-3"
    assert name_job("resnet18", "", 0) == "resnet18-seed-0"


def test_models_whose_names_are_no_utf8_are_found_again(tmp_path: Path) -> None:
    model = tmp_path / os.fsdecode(b"m\xff.pt")
    model.touch()
    job = Job("m_-seed-0", str(model), ("--seed", "0"), "", 0)
    for _ in range(2):
        write_jobs(tmp_path / "out", {job.name: job}, {model: "m_"})
        assert read_jobs(tmp_path / "out") == {job.name: job}
        assert [*read_models(tmp_path / "out")] == [str(model)]
