"""What a command left and what it said."""

from pathlib import Path

SMALL = ("--input-size", 32, "--max-evaluations", 1, "--samples", 4)
ALL_FILES = {
    "plans",
    "compressed.safetensors",
    "model.onnx",
    "original.onnx",
    "plan.json",
    "report.html",
    "report.json",
    "factors.jsonl",
    "infer.py",
    "measure.py",
    "search.jsonl",
}


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def the_sentence(stderr: str) -> str:
    """The one error on stderr, the last line; whatever stands before it is progress."""
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1, stderr
    assert stderr.splitlines()[-1] == errors[0]
    return errors[0]
