"""Atomic writes, also on a full disk or a kill; output folders never contain files that could be lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import InputError
from compressor.files import check_folder, prepare_folder, replace_when_whole, write_text

ROOT = Path(__file__).parent.parent
OLD = "what was there before\n"


def run_python(program: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_written_as_utf8(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "file"
    write_text(path, "longer than what follows" * 9)
    write_text(path, text)
    assert path.read_bytes() == text.replace("\n", os.linesep).encode()


def test_a_file_is_invisible_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(OLD)
    with replace_when_whole(path) as partial:
        assert partial.parent == path.parent  # a move between disks would be a copy
        partial.write_text("half")
        assert path.read_text() == OLD
    assert contents(tmp_path) == {"file": "half"}


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_an_error_in_the_block_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], there_before: bool
) -> None:
    path = tmp_path / "file"
    if there_before:
        path.write_text(OLD)
    before = contents(tmp_path)

    def fail() -> None:
        with replace_when_whole(path) as partial:
            partial.write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert contents(tmp_path) == before


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(OLD)
    with pytest.raises(InputError, match="cannot write"), replace_when_whole(path):
        pass
    assert contents(tmp_path) == {"file": OLD}


LIMITED = """
import resource, sys
from pathlib import Path
from compressor.errors import InputError
from compressor.files import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(Path(sys.argv[1]), "x" * 100_000)
except InputError as error:
    print(error)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(OLD)
    result = run_python(LIMITED, path)
    assert (result.stdout, result.stderr) == (f"cannot write {path}: File too large\n", "")
    assert contents(tmp_path) == {"file": OLD}


KILLED = """
import os, signal, sys
from pathlib import Path
from compressor.files import replace_when_whole
with replace_when_whole(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(OLD)
    assert run_python(KILLED, path).returncode == -signal.SIGKILL
    assert path.read_text() == OLD
    write_text(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(InputError, match="already holds other files"):
        check_folder(tmp_path)
    check_folder(tmp_path, keep=["file"])  # a run that goes on is not stopped by what was left half written


def in_a_missing_folder(folder: Path) -> Path:
    return folder / "missing" / "file"


def onto_a_folder(folder: Path) -> Path:
    (folder / "file").mkdir()
    return folder / "file"


def under_a_file(folder: Path) -> Path:
    (folder / "file").write_text(OLD)
    return folder / "file" / "report.json"


def under_a_long_name(folder: Path) -> Path:
    return folder / ("n" * 250)


@pytest.mark.parametrize("place", [in_a_missing_folder, onto_a_folder, under_a_file, under_a_long_name])
def test_a_path_that_cannot_be_written_is_an_input_error(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="cannot write"):
        write_text(path, "new")
    assert sorted(tmp_path.rglob("*")) == before


# Folders


def test_a_new_or_empty_folder_is_fine_and_stays_as_it_is(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["report.json", ".hidden", "models/"])
def test_a_folder_that_contains_anything_is_refused(tmp_path: Path, name: str) -> None:
    entry = tmp_path / name
    entry.mkdir() if name.endswith("/") else entry.touch()
    with pytest.raises(InputError, match=f"already holds other files \\({entry.name}\\): choose another --out"):
        check_folder(tmp_path)
    check_folder(tmp_path, keep=[entry.name])


def test_the_sentence_names_three_files_and_no_kept_one(tmp_path: Path) -> None:
    for name in "edcba":
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"\(b, c, d, \.\.\.\)"):
        check_folder(tmp_path, keep=["a"])
    with pytest.raises(InputError, match=r"\(c, d, e\)"):
        check_folder(tmp_path, keep=["a", "b"])


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(OLD)
    with pytest.raises(InputError, match="is a file, not a folder"):
        check_folder(path)
    with pytest.raises(InputError, match=r"cannot create the folder .*: File exists"):
        prepare_folder(path)
    with pytest.raises(InputError, match=r"cannot create the folder .*: Not a directory"):
        prepare_folder(path / "out")
    assert path.read_text() == OLD


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        check_folder(tmp_path / ("n" * 300))


def test_folders_are_made_with_their_parents_and_kept_with_what_they_hold(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    prepare_folder(folder)
    (folder / "file").write_text(OLD)
    prepare_folder(folder)
    assert contents(folder) == {"file": OLD}
