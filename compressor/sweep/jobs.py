"""The jobs of a sweep: what each asks of `bocompress-export`, and the folder that it gets."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIST = "jobs.json"  # in the sweep's folder
MAX_LABEL = 80  # characters
STRANGE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name: of its folder below the sweep's.
        model: the checkpoint, as given.
        arguments: of `bocompress-export`, without the checkpoint, --out and --resume.
        asked: what size or loss was asked for, such as "gamma 0.01"; empty for the default.
        seed: of everything random.
    """

    name: str
    model: str
    arguments: tuple[str, ...]
    asked: str
    seed: int


def name_job(label: str, asked: str, seed: int) -> str:
    """'resnet18-gamma-0.01-seed-0': the name of a folder.

    Args:
        label: of the model.
        asked: see `Job`.
        seed: see `Job`.
    """
    return "-".join([label, *asked.split(), "seed", str(seed)])


def label_models(models: Sequence[Path], known: Mapping[str, str] | None = None) -> dict[Path, str]:
    """A label for each model: its file's name, with the names of its folders before it where another
    before it has the same.

    Args:
        models: different files.
        known: labels that files (absolute paths) have already, in a sweep that is gone on with.
    """
    labels = {model: (known or {}).get(str(model.absolute()), "") for model in models}
    taken = set(labels.values())
    for model in models:
        depths = range(1, len(model.absolute().parts))
        ways = [_label(model, depth) for depth in depths]
        ways += [f"{ways[0]}-{number}" for number in range(2, len(models) + 2)]
        if not labels[model]:
            labels[model] = next(way for way in ways if way not in taken)
            taken.add(labels[model])
    return labels


def _label(model: Path, depth: int) -> str:
    """The last `depth` parts of a path, without the ending, as the name of a folder."""
    parts = [*model.absolute().parts[-depth:-1], model.stem]
    return STRANGE.sub("_", "-".join(parts)).lstrip(".-")[-MAX_LABEL:] or "model"
