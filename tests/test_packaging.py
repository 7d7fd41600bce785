"""What a wheel holds and says: built from a copy of the tree, without network."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("compressor", "exporters", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy, since a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(source / "out"), str(source)], check=True)
    (built,) = (source / "out").glob("*.whl")
    return zipfile.ZipFile(built)


def read(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(read(wheel, "METADATA"))


def test_all_sources_are_there_but_studies_and_data_sets(wheel: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for suffix in ("*.py", "*.jinja", "*.toml", "py.typed")
        for path in (ROOT / package).rglob(suffix)
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    left_out = sources - shipped
    assert shipped <= sources
    assert left_out
    assert all(name.startswith(("benchmarks/studies/", "benchmarks/datasets/")) for name in left_out), left_out


def test_nothing_shipped_imports_what_is_left_out(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        if name.endswith(".py"):
            assert not re.search(
                r"(?:from|import) (?:benchmarks\.(?:studies|datasets)|tests|docs)\b", wheel.read(name).decode()
            )


def test_programs_and_commands_are_registered(wheel: zipfile.ZipFile) -> None:
    entry_points = read(wheel, "entry_points.txt")
    for line in ("bocompress = compressor", "bocompress-export = compressor", "benchmark = bench", "demo = bench"):
        assert f"\n{line}" in entry_points


def test_the_package_page_has_licence_links_and_a_readme(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert "MIT License" in read(wheel, "licenses/LICENSE")
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL", [])} >= {"Homepage", "Issues", "Documentation"}
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    readme = metadata.get_payload()
    assert isinstance(readme, str)
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets), targets


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert "10.1109/ICCV.2019.01037" in citation
    assert PROJECT["urls"]["Homepage"] in citation
