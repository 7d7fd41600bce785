"""What must hold of the house as a whole: import order, sizes, and what loads without torch."""

import ast
import functools
import io
import keyword
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import compressor

ROOT = Path(__file__).parent.parent
PACKAGES = ("compressor", "exporters", "benchmarks")
STUDIES = ("benchmarks.studies", "benchmarks.datasets")  # one file may be one study
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MODULES = 400, 50, 13
WITHOUT_TORCH = (
    "compressor",
    "compressor.errors",
    "compressor.files",
    "compressor.progress",
    "compressor.cli.commands",
    "compressor.report.console",
    "compressor.report.warnings",
    "compressor.report.page",
    "compressor.search.space",
    "compressor.search.optimizer",
    "benchmarks.cli",
    "benchmarks.demo.cli",
)
# Words of an earlier dialect: evaluation, evaluate, posterior, baseline, incumbent, divide, break-even rank are meant.
OLD_WORDS = re.compile(r"looks?|judges?|judged|beliefs?|glances?|rivals?|champions?|partings?|caps?", re.IGNORECASE)
BRITISH = re.compile(
    r"\b\w*(quanti|factori|optimi|normali|regulari|initiali|recogni|minimi|maximi|summari)s(e|ed|es|ing|ers?|ation)\b"
)
PROSE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")] + sorted(ROOT.glob("docs/**/*.md"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
HOUSE = [name for name in FILES if not name.startswith(STUDIES)]
TESTS = {module_name(path): path for path in sorted((ROOT / "tests").rglob("*.py"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in TESTS.items()} | {
    name: SOURCES[name] for name in HOUSE
}
FOLDERS = sorted({path.parent for path in (*FILES.values(), *TESTS.values())})


parse = functools.cache(ast.parse)


def functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield node.name, node.end_lineno - node.lineno + 1


def test_imports_run_downwards() -> None:
    """The order is in pyproject.toml, under tool.importlinter."""
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_imports_are_absolute() -> None:
    """Relative imports hide what is imported."""
    relative = [
        name
        for name, source in SOURCES.items()
        for node in ast.walk(parse(source))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_no_folder_is_too_full() -> None:
    counts = [(str(folder), len({*folder.glob("*.py")} - {folder / "__init__.py"})) for folder in FOLDERS]
    assert [row for row in counts if row[-1] > MAX_MODULES] == []


def test_no_file_is_too_long() -> None:
    lines = {name: len(text.splitlines()) for name, text in TEXTS.items()}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    lines = [(name, *found) for name, text in TEXTS.items() for found in functions(text)]
    assert [row for row in lines if row[-1] > MAX_FUNCTION_LINES] == []


def test_what_needs_no_torch_does_not_load_it() -> None:
    """`--help` must answer at once, and torch takes seconds."""
    program = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(f'{name} loads torch')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_public_face_comes_when_asked_for() -> None:
    for name in compressor.__all__:
        assert getattr(compressor, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        compressor.decompress  # noqa: B018


def names_in(source: str) -> set[str]:
    """Parts of the identifiers of a source."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME and not keyword.iskeyword(token.string)}
    return {part for name in names for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def test_names_are_the_fields_own() -> None:
    found = {name: [part for part in names_in(source) if OLD_WORDS.fullmatch(part)] for name, source in SOURCES.items()}
    assert {name: parts for name, parts in found.items() if parts} == {}


def test_spelling_is_one() -> None:
    texts = SOURCES | {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PROSE}
    found = {name: [word.group() for word in BRITISH.finditer(text)] for name, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_the_makefile_speaks_as_the_docs_do() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [word for word in re.findall(r"[a-z]+", text) if OLD_WORDS.fullmatch(word)] == []
