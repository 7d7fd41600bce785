"""The house rules: who may import whom, how long a file and a function may be, and what loads without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compressor

ROOT = Path(__file__).parent.parent
PACKAGES = ("compressor", "exporters", "benchmarks")
STUDIES = ("benchmarks.paper", "benchmarks.peers")  # these may import anything
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

# Modules of compressor, earlier stages first. A module imports from the lines above its own only.
STAGES = [
    "errors records balance",
    "files progress macs attention",
    "architectures",
    "checkpoint factors.base factors.metric",
    "images factors.refit",
    "labels",
    "capture factors.split factors.tucker factors.cp factors.interpolative",
    "factors.svd factors.spatial factors.alternate",
    "factors",
    "layers network",
    "prune structure",
    "fidelity objective training hashing",
    "plan advice calibrate costs risk",
    "decompose recalibrate finetune",
    "search",
    "search.space search.gp",
    "search.linear_model",
    "search.state search.belief search.start search.journal search.workers",
    "search.refine search.energies search.settings search.acquisition search.paths search.norms search.sparsity",
    "search.refinement linearise search.improvement search.certificate search.target",
    "search.drop_target",
    "search.stopping",
    "search.recording search.looks",
    "search.posterior search.race",
    "search.aim",
    "search.beginning",
    "search.loop",
    "tables option_types job",
    "options",
    "summary precision formats recipe",
    "choices",
    "rank_search realise",
    "drops",
    "targets",
    "tuning",
    "pipeline",
    "staged",
    "cli",
]
STAGE_OF = {f"compressor.{name}": number for number, line in enumerate(STAGES) for name in line.split()}
SHARED_WITH_ALL = {"compressor.records", "compressor.errors", "compressor.files"}
WITHOUT_TORCH = (
    "compressor",
    "compressor.records",
    "compressor.errors",
    "compressor.files",
    "compressor.progress",
    "compressor.cli",
    "compressor.tables",
    "compressor.advice",
    "compressor.search.space",
    "compressor.search.gp",
    "benchmarks.report",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
HOUSE = [name for name in FILES if not name.startswith(STUDIES)]


def imported_names(node: ast.AST) -> list[str]:
    """`import a.b` gives a.b; `from a import b` gives a.b, be b a module or not."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide what is imported"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def our_module(name: str) -> str | None:
    """The longest prefix of `name` that is one of our modules."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in FILES), None)


def our_imports(source: str) -> set[str]:
    """Our modules imported anywhere in the source: at the top, in functions and under TYPE_CHECKING."""
    found = (our_module(name) for node in ast.walk(ast.parse(source)) for name in imported_names(node))
    return {name for name in found if name}


def imports_when_loaded(tree: ast.AST) -> Iterator[str]:
    """Our modules that are imported as soon as the module is, those in functions left out."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from filter(None, map(our_module, imported_names(node)))
            yield from imports_when_loaded(node)


def functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield node.name, node.end_lineno - node.lineno + 1


def test_the_walker_sees_every_form_of_import() -> None:
    source = (
        "from typing import TYPE_CHECKING\nimport torch, compressor.plan as p\n"
        "from compressor import advice\nfrom compressor.errors import InputError\n"
        "if TYPE_CHECKING:\n    from compressor.search import gp\n"
        "def f():\n    def g():\n        import exporters.onnx\n"
    )
    always = {"compressor.plan", "compressor.advice", "compressor.errors", "compressor.search.gp"}
    assert our_imports(source) == {*always, "exporters.onnx"}
    assert set(imports_when_loaded(ast.parse(source))) == always


def test_every_module_has_its_stage() -> None:
    modules = {name for name in FILES if name.startswith("compressor.")}
    assert modules == set(STAGE_OF), "give new modules their line in STAGES, take lost ones out"


@pytest.mark.parametrize("name", sorted(STAGE_OF))
def test_modules_import_earlier_stages_only(name: str) -> None:
    ours = {other for other in our_imports(SOURCES[name]) if other.startswith("compressor.")}
    assert [other for other in sorted(ours) if STAGE_OF[other] >= STAGE_OF[name]] == []


def test_records_and_errors_import_nothing_of_ours_and_files_only_errors() -> None:
    assert our_imports(SOURCES["compressor.records"]) == set()
    assert our_imports(SOURCES["compressor.errors"]) == set()
    assert our_imports(SOURCES["compressor.files"]) <= {"compressor.errors"}


def test_the_package_itself_loads_nothing_and_offers_the_driver_alone() -> None:
    source = SOURCES["compressor"]
    assert list(imports_when_loaded(ast.parse(source))) == []
    assert our_imports(source) <= {"compressor.pipeline"}


def test_only_the_driver_and_the_command_line_read_the_package_for_its_version() -> None:
    readers = {name for name in HOUSE if "compressor" in our_imports(SOURCES[name])}
    assert readers <= {"compressor.pipeline", "compressor.summary", "compressor.cli"}


@pytest.mark.parametrize("name", [name for name in HOUSE if name.startswith(("exporters", "benchmarks"))])
def test_exporters_and_benchmarks_know_only_records_errors_and_files(name: str) -> None:
    package = name.partition(".")[0]
    foreign = {other for other in our_imports(SOURCES[name]) if other.partition(".")[0] != package}
    assert foreign <= SHARED_WITH_ALL


def test_nobody_imports_the_command_line() -> None:
    assert [name for name in FILES if "compressor.cli" in our_imports(SOURCES[name])] == []


def test_only_the_driver_and_the_command_line_import_the_other_rooms() -> None:
    importers = {
        name
        for name in HOUSE
        if name.startswith("compressor")
        and any(other.startswith(("exporters", "benchmarks")) for other in our_imports(SOURCES[name]))
    }
    drivers = ("pipeline", "rank_search", "targets", "precision", "formats", "summary", "cli")
    assert importers <= {f"compressor.{name}" for name in drivers}


@pytest.mark.parametrize("name", sorted(HOUSE))
def test_no_file_is_too_long(name: str) -> None:
    assert len(SOURCES[name].splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("name", sorted(HOUSE))
def test_no_function_is_too_long(name: str) -> None:
    too_long = {function: lines for function, lines in functions(SOURCES[name]) if lines > MAX_FUNCTION_LINES}
    assert too_long == {}


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


def test_the_driver_comes_when_asked_for() -> None:
    assert {name for name in compressor.__all__ if callable(getattr(compressor, name))} == {"apply_plan", "compress"}
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        compressor.decompress  # noqa: B018
