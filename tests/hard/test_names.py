"""Names of strangers, in files, folders and checkpoints: no terminal acts on them, and nothing is lost by them."""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.listing import scan
from compressor.errors import InputError
from compressor.pipeline.plan import Plan
from compressor.schema import Record
from compressor.text import UNPRINTABLE, printable, well_formed
from tests.hard.test_parsers import FEW

PIECES = (
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\r",
    "\n",
    "\t",
    "\x08",
    "'",
    '"',
    "$(touch x)",
    "%s",
    "{x}",
    "[red]",
    "é",
    "☃",
)
PIECES += (
    "[red]",
    "-",
    "--out",
    "\u202e",
    "\x7f",
    "\x9b",
    "\udcff",
    "\udc80\udcfe",
    " ",
    "a" * 100,
    "<script>",
    "&amp;",
    "|",
)


def make_name(rng: random.Random) -> str:
    """A name that a file can have."""
    name = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 5))).replace("/", "")
    return os.fsdecode(os.fsencode(name)[:200].strip(b" .")) or "x"


@pytest.mark.parametrize("count", [FEW, pytest.param(150, marks=pytest.mark.hard)])
def test_names_of_files_are_shown_and_not_acted_upon(
    count: int, tmp_path: Path, invoke: Callable[..., Any], tally: Callable[..., None]
) -> None:
    rng, refused = random.Random(11), 0
    for number in range(count):
        path = tmp_path / str(number) / make_name(rng)
        path.parent.mkdir()
        path.write_bytes(b"no checkpoint")
        result = invoke("bocompress", "inspect", "--", path)
        assert result.exit_code == 2
        assert not UNPRINTABLE.search(result.stderr.rstrip("\n")), result.stderr
        refused += 1
    tally("names of files", tried=count, refused=refused, right=0)


@pytest.mark.parametrize("count", [FEW, pytest.param(150, marks=pytest.mark.hard)])
def test_names_in_plans_and_records_can_be_written(count: int, tally: Callable[..., None]) -> None:
    rng = random.Random(12)
    for _ in range(count):
        name = make_name(rng)
        layer = {"name": name, "method": "svd", "rank": 1, "break_even_rank": 2, "why": "\ud800"}
        text = Plan.model_validate({"arch": name, "layers": [layer]}).model_dump_json()
        assert Plan.model_validate_json(text.encode()).arch == well_formed(name)
    tally("names in records", tried=count, refused=0, right=count)


class Inner(Record):
    names: list[str]
    by_name: dict[str, str]


def test_every_text_in_a_record_is_made_well_formed() -> None:
    record = Inner(names=["a", "b\udcff"], by_name={"\ud800": "c"})
    assert record.model_dump_json() == '{"names":["a","b\\\\xff"],"by_name":{"\\\\ud800":"c"}}'
    assert Inner(names=["é"], by_name={}).model_dump_json() == '{"names":["é"],"by_name":{}}'


def test_what_is_printable_stays() -> None:
    assert printable("Zwölf Größen ☃ 日本") == "Zwölf Größen ☃ 日本"
    assert printable("a\x1b[31mb\r\n\udcff\ud800") == "a\\x1b[31mb\\r\\n\\xff\\ud800"


def test_names_in_a_checkpoint_are_shown_and_not_acted_upon(tmp_path: Path, invoke: Callable[..., Any]) -> None:
    torch.save({"\x1b[31mred\r": 1, "\x1b]0;x\x07": 2}, tmp_path / "a.pt")
    result = invoke("bocompress", "inspect", tmp_path / "a.pt")
    assert result.exit_code == 2
    assert "\\x1b[31mred" in result.stderr
    assert not UNPRINTABLE.search(result.stderr.rstrip("\n"))


# --- folders ---


def fill(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("count", [2, 9, 40])
def test_folders_that_link_to_one_another_are_each_read_once(tmp_path: Path, count: int) -> None:
    folders = [fill(tmp_path / "data" / str(number)) for number in range(count)]
    for folder in folders:
        for other in folders:
            if other != folder:
                (folder / f"to {other.name}").symlink_to(other)
    tree = scan(tmp_path / "data")
    assert tree.count == 2 * count
    assert [one.name for one in tree.folders] == sorted(folder.name for folder in folders)


def test_links_in_circles_and_to_nothing_are_left_out(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data")
    for name, target in (("self", "self"), ("up", ".."), ("here", "."), ("gone", "nowhere"), ("0 again.png", "0.png")):
        (folder / name).symlink_to(target)
    os.link(folder / "1.png", folder / "1 again.png")
    assert [path.name for path in scan(folder).walk()] == ["0.png", "1 again.png"]


def test_a_class_that_lies_elsewhere_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "cat")
    (tmp_path / "data" / "ant").symlink_to(fill(tmp_path / "elsewhere"))
    assert [(one.name, one.count) for one in scan(tmp_path / "data").folders] == [("ant", 2), ("cat", 2)]


@pytest.mark.parametrize("levels", [101, 1200])
def test_folders_too_deep_are_refused(tmp_path: Path, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for _ in range(levels):
        os.mkdir("d")
        os.chdir("d")
    try:
        with pytest.raises(InputError, match="more than 100 levels deep"):
            scan(tmp_path / "data")
    finally:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["rm", "-r", "data"], check=True)  # shutil, by which pytest clears up, recurses level by level
