"""Help texts, docs and options agree, and the website builds."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median

import click
import pytest

from compressor.cli.commands import export, main
from docs.generate import options_page, paper_page, results_page
from docs.generate.formatting import load

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/bocompress/bocompress/blob/main/"
PICTURES = "https://raw.githubusercontent.com/bocompress/bocompress/main/"
GENERATED = {"docs/options.md", "docs/results.md", "docs/licences.md", "docs/paper.md"}
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(
        page for path in (ROOT / "docs").rglob("*.md") if (page := path.relative_to(ROOT).as_posix()) not in GENERATED
    ),
]


def test_the_options_page_is_what_the_commands_say() -> None:
    assert (ROOT / "docs/options.md").read_text() == options_page()


def test_every_dependency_is_listed_with_its_licence() -> None:
    rows = dict(re.findall(r"^\| ([\w-]+) \| yes \| (.+) \|$", (ROOT / "docs/licences.md").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(rows) == {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert all(rows.values())


def test_the_results_page_is_what_the_studies_measured() -> None:
    assert (ROOT / "docs/results.md").read_text() == results_page()


def test_the_paper_page_is_what_the_studies_measured() -> None:
    assert (ROOT / "docs/paper.md").read_text() == paper_page()


def test_results_begin_with_a_line_for_each_kind_of_study() -> None:
    summary = results_page().split("\n## ")[0]
    lines = [line for line in summary.splitlines() if line.startswith("- **")]
    assert 10 <= len(lines) <= 18
    assert all(re.search(r"\d", line) for line in lines)


def test_every_method_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, page


def test_every_package_has_its_place_in_the_method() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs/method").rglob("*.md"))
    packages = [path.parent.name for path in (ROOT / "compressor").glob("*/__init__.py")]
    for package in {*packages} - {"cli"}:
        assert f"`compressor/{package}/" in text, package


def all_options() -> set[str]:
    context = click.Context(main)
    commands = [export, *(main.get_command(context, name) for name in main.list_commands(context))]
    names = {
        name
        for command in commands
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return names | {"--help"}


def test_the_readmes_figures_are_what_the_studies_measured() -> None:
    """Each row's figures come from the study that the row is of, with all options that it ran with."""
    names = ("edge", "targets", "edge-mobilenet")
    studies = {name: load(ROOT / f"benchmarks/results/{name}.json")["rows"] for name in names}
    rows = [_of_target([row for row in studies["targets"] if row["kind"] == "drop"])]
    edge = {row["gamma"]: row for row in studies["edge"] if row["side"] == 64}
    rows += [_of_file(edge[gamma]) for gamma in (0.1, 0.03, 0.0005)]
    rows += [_of_file(edge[0.03], "int8_", " --precision int8")]
    text = (ROOT / "README.md").read_text()
    for row in rows:
        assert f"\n| {row}" in text
    flowing = " ".join(text.split())
    assert f"left {100 * edge[0.0005]['bytes']:.1f} % of the file" in flowing
    mobile = [row for row in studies["edge-mobilenet"] if row["operations"] == 0.9]
    lost = 100 * (_mean(mobile, "top1_original") - _mean(mobile, "top1"))
    assert f"loses {lost:.1f} points of top-1, mean of {len(mobile)} seeds" in flowing
    assert f"its int8 file has {_mean(mobile, 'int8_bytes'):.2f} of the bytes" in flowing


def _mean(rows: list[dict[str, float]], name: str) -> float:
    return fmean(row[name] for row in rows)


def _of_target(rows: list[dict[str, float]]) -> str:
    ratio, drop = (median(row[name] for row in rows) for name in ("ratio", "drop_outside"))
    within = sum(row["drop_outside"] <= 1 for row in rows)
    lost = f"{drop:.1f} points lost, {within} of {len(rows)} runs within the point |"
    return f"`--max-drop 1 --no-recalibrate` | {1 / ratio:.1f}x (parameters) | | {lost}"


def _of_file(row: dict[str, float], precision: str = "", more: str = "") -> str:
    smaller = 1 / row[f"{precision}bytes"]
    tops = f"{100 * row['top1_original']:.1f} → {100 * row[f'{precision}top1']:.1f}"
    options = f"`--gamma {row['gamma']:g} --rank-multiple auto{more}`"
    faster = f"{1 / row[f'{precision}latency']:.1f}x"
    return f"{options} | {smaller:.{0 if smaller > 100 else 1}f}x | {faster} | {tops}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_options_that_exist(page: str) -> None:
    text = re.sub(r"^    (?:ray|dask) .*$", "", (ROOT / page).read_text(), flags=re.MULTILINE)  # others' commands
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    of_scripts = {"--masks", "--flow", "--output", "--seconds", "--side"}  # beside a model
    of_others = {"--torch-backend", "--minimal", "--include"}  # of uv, and of ONNX Runtime's build
    assert named - of_scripts - of_others <= all_options()


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_files_and_targets_that_exist(page: str) -> None:
    text = (ROOT / page).read_text().replace(REPOSITORY, "/").replace(PICTURES, "/")
    links = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    for link in links:
        place = ROOT / link[1:] if link.startswith("/") else (ROOT / page).parent / link
        assert place.exists(), link
    for source in re.findall(
        r"`((?:compressor|exporters|benchmarks|tests|docs)/[\w/.]*)`", text.replace("NAME.json", "")
    ):
        assert (ROOT / source).exists(), source
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|    )make ([a-z0-9-]+)", text)) <= targets


def test_every_option_has_help_and_every_command_says_what_it_does() -> None:
    for command in [export, *main.commands.values()]:
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (command.name, parameter.name)


@pytest.mark.skipif(
    find_spec("material") is None or find_spec("mkdocstrings") is None,
    reason="no mkdocs-material with mkdocstrings here: pip install '.[docs]'",
)
@pytest.mark.slow
def test_the_website_builds_without_warnings_and_documents_the_public_face(tmp_path: Path) -> None:
    site = tmp_path / "site"
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    api = (site / "api.html").read_text()
    names = (
        "compress",
        "apply_plan",
        "Settings",
        "Target",
        "Plan",
        "Recipe",
        "ImageSet",
        "CompressedModel",
        "InputError",
    )
    for name in names:
        assert f'id="compressor.{name}"' in api, name
    for page in site.rglob("*.html"):
        outside = re.findall(r'(?:<script[^>]*src|<link[^>]*href)="(?:https?:)?//[^"]*', page.read_text())
        assert not outside, (page, outside)
