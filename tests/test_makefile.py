"""What the Makefile's targets would run: images go with the network they belong to."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EDGES = ["edge-cpu", "edge-int8", "edge-ort", "edge-smallest", "edge-fastest"]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def dry_run(*arguments: str) -> str:
    """The commands, with the environment taken as made."""
    command = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.ready", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("target", EDGES)
def test_an_edge_target_runs_with_the_demo_and_with_a_network_of_ones_own(target: str) -> None:
    demo = dry_run(target)
    assert f'rm -rf "build/{target}"' in demo
    assert (
        'bocompress-export "demo/resnet18-digits.pt" --data "demo/images" --input-size 32 '
        f'--out "build/{target}"' in " ".join(demo.split())
    )
    own = " ".join(dry_run(target, "MODEL=my model.pt", "OUT=out", "ARGS=--gamma 0.03").split())
    assert 'bocompress-export "my model.pt" --out "out" --' in own
    assert own.endswith("--gamma 0.03")
    assert "demo" not in own
    assert "rm -rf" not in own
    given = " ".join(dry_run(target, "MODEL=m.pt", "DATA=photos", "SIZE=64").split())
    assert '--data "photos" --input-size 64' in given


def test_the_demos_network_is_trained_where_it_is_missing() -> None:
    trains = "-m benchmarks.demo.digits demo" in dry_run("edge-int8")
    assert trains == (not (ROOT / "demo" / "resnet18-digits.pt").exists())
    assert "benchmarks.demo.digits" not in dry_run("edge-int8", "MODEL=m.pt")


def test_report_writes_a_page_anew_or_makes_the_run_first(tmp_path: Path) -> None:
    commands = dry_run("report", f"OUT={tmp_path}", "MODEL=m.pt")
    assert f'bocompress report "{tmp_path}"' in commands
    assert f'bocompress-export "m.pt" --out "{tmp_path}" --rank-multiple auto' in " ".join(commands.split())


def test_a_network_of_ones_own_is_benchmarked_after_it_is_compressed() -> None:
    own = " ".join(dry_run("bench", "MODEL=m.pt", "OUT=out").split())
    assert 'bocompress-export "m.pt" --out "out"' in own
    assert 'bocompress benchmark "out/original.onnx" "out/model.onnx"' in own
    files = dry_run("bench", f"FILES={__file__}", "MODEL=m.pt")
    assert f"bocompress benchmark {__file__} " in files
    assert "bocompress-export" not in files


def test_the_website_is_built_strictly_and_installs_only_what_is_missing() -> None:
    commands = dry_run("site")
    assert "mkdocs build --strict" in commands
    assert "--site-dir build/site" in commands
    assert "mkdocstrings_handlers.python' 2>/dev/null || " in commands


def test_help_names_every_target_that_is_for_users() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in [*EDGES, "report", "demo", "test", "site"]:
        assert f"  make {target} " in listed
