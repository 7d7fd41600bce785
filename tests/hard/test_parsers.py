"""Generated files for everything that is read: each is refused in one sentence, or read as what it says."""

import io
import json
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from compressor.cli.commands import export
from compressor.data.boxes.coco import load_with_boxes
from compressor.data.folders import load_folder
from compressor.data.transforms import Transform
from compressor.errors import BocompressError, InputError
from compressor.factorization.choices import ChoiceJournal, ChoiceRow
from compressor.fidelity.losses import Losses
from compressor.files import append_line, read_lines, read_sealed, write_sealed
from compressor.files.tensors import read_tensors, write_tensors
from compressor.network.checkpoint import load_model
from compressor.pipeline.plan import Plan, read_plan
from compressor.pipeline.recipe import Recipe, load_recipe, recipe_text
from compressor.report.page import read_report, render_report
from compressor.search.evaluation.journal import Journal
from compressor.sweep.jobs import Job
from compressor.sweep.outputs import read_jobs
from compressor.text import printable
from compressor.version import VERSION
from exporters.feeding import class_names_of, transform_of
from tests.hard.mutations import VALUES, json_texts, mutate_bytes, mutate_lines, mutate_value
from tests.report.examples import make_report

FEW, CLASSES = 6, 4
Read = Callable[[Path], bool]  # whether what was read is right


def counts(many: int) -> pytest.MarkDecorator:
    """A few for every test run, many for `make test-hard`."""
    return pytest.mark.parametrize("count", [FEW, pytest.param(many, marks=pytest.mark.hard)])


def try_all(contents: Iterator[bytes], path: Path, read: Read) -> dict[str, int]:
    """How many were tried, refused in a sentence, and read right; all else is an error of the test."""
    tally = {"tried": 0, "refused": 0, "right": 0}
    for content in contents:
        path.write_bytes(content)
        tally["tried"] += 1
        try:
            is_right = read(path)
        except BocompressError as error:
            sentence = str(error)
            assert sentence == printable(sentence)
            tally["refused"] += 1
            continue
        assert is_right, content[:2000]
        tally["right"] += 1
    return tally


PLAN = {
    "version": 1,
    "arch": "x",
    "gamma": 0.5,
    "layers": [
        {"name": "4", "method": "spatial", "rank": 3, "break_even_rank": 48, "factors": "refit", "why": "chosen"},
        {"name": "fc", "method": "svd", "rank": None, "break_even_rank": 9},
    ],
}


@counts(400)
def test_plans(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    def read(path: Path) -> bool:
        plan = read_plan(path)
        return Plan.model_validate_json(plan.model_dump_json()).layers[0].break_even_rank >= 1

    tally("plans", **try_all(json_texts(PLAN, count, 1), tmp_path / "plan.json", read))


@counts(80)
def test_reports(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    def read(path: Path) -> bool:
        page = render_report(read_report(path))
        return page.startswith("<!doctype html>") and "<script" not in page

    report = json.loads(make_report().model_dump_json())
    tally("reports", **try_all(json_texts(report, count, 2), tmp_path / "report.json", read))


def recipes(count: int) -> Iterator[bytes]:
    rng, text = random.Random(3), recipe_text("vgg").encode()
    for number in range(count):
        yield b"a = " + b"[" * 5000 if number % 20 == 19 else mutate_lines(text, rng)


@counts(350)
def test_recipes(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    def read(path: Path) -> bool:
        return isinstance(load_recipe(str(path)), Recipe)

    tally("recipes", **try_all(recipes(count), tmp_path / "recipe.toml", read))


TOML_VALUES = (
    *("nan", "inf", "-1", "0", "1e400", "2024-01-01", "[]", "[[]]", "{}", "''", "true", "9" * 5000, "[1, 2, 3]"),
    *(r'"\u0000"', r'"\u001b[31m"', "'auto'", "1.5", "0x10", "['a', 'b']", "'" + "a" * 5000 + "'", "'\u0663'"),
)


@counts(300)
def test_configurations(count: int, tmp_path: Path, invoke: Callable[..., Any], tally: Callable[..., None]) -> None:
    """Options of a file that hold what nobody would type: printed as they are understood, or refused."""
    rng, path, found = random.Random(13), tmp_path / "run.toml", {0: 0, 2: 0}
    names = [max(option.opts, key=len).lstrip("-") for option in export.params]
    for _ in range(count):
        path.write_text("".join(f"{name} = {rng.choice(TOML_VALUES)}\n" for name in rng.sample(names, 2)))
        found[invoke("bocompress-export", "model.pt", "--config", path, "--print-config").exit_code] += 1
    tally("options in files", tried=count, refused=found[2], right=found[0])


COCO = {
    "images": [{"id": 0, "file_name": "0.png", "width": 40, "height": 30}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"image_id": 0, "category_id": 1, "bbox": [4, 3, 20, 9], "iscrowd": 0}],
}


@counts(200)
def test_annotations(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    Image.new("RGB", (40, 30), (9, 90, 200)).save(tmp_path / "0.png")

    def read(path: Path) -> bool:
        found = load_with_boxes(path.parent, Transform(16, 16), 4, 0, 3)
        return found.boxes is None or all(bool(each.isfinite().all()) for each in found.boxes)

    tally("annotations of boxes", **try_all(json_texts(COCO, count, 14), tmp_path / "instances.json", read))


JOBS = {"version": VERSION, "models": {"/a.pt": {"label": "a", "bytes": 9, "modified_ns": 9}}, "jobs": [
    {"name": "a-seed-0", "model": "a.pt", "arguments": ["--seed", "0"], "asked": "", "seed": 0},
]}  # fmt: skip


@counts(200)
def test_lists_of_jobs(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Altered by one who also makes the checksum anew."""
    rng = random.Random(15)

    def forged() -> Iterator[bytes]:
        for _ in range(count):
            changed = mutate_value(JOBS, rng)
            with suppress(RecursionError):  # deeper than JSON can be written
                write_sealed(tmp_path / "jobs.json", changed if isinstance(changed, dict) else {"jobs": changed})
            yield (tmp_path / "jobs.json").read_bytes()

    def read(path: Path) -> bool:
        return all("/" not in name and isinstance(job, Job) for name, job in read_jobs(path.parent).items())

    tally("lists of a sweep's jobs", **try_all(forged(), tmp_path / "jobs.json", read))


METADATA = {
    **{"input_height": "8", "input_width": "8", "resize_size": "9", "interpolation": "bilinear", "input_frames": "4"},
    **{"mean": "[0.5]", "std": "[0.5]", "value_range": "[0, 1]", "normalization": "outside", "class_names": '["a"]'},
}


@counts(300)
def test_metadata(count: int, tally: Callable[..., None]) -> None:
    """What an ONNX file says of its input: understood, or taken as if it said nothing."""
    rng, right = random.Random(16), 0
    for _ in range(count):
        key = rng.choice([*METADATA])
        value = mutate_bytes(METADATA[key].encode(), rng).decode("utf-8", errors="replace")
        found = transform_of({**METADATA, key: rng.choice((value, str(rng.choice(VALUES))))})
        assert found is None or (min(found.std) > 0 and min(found.shape) > 0)
        class_names_of({"class_names": value})
        right += found is not None
    tally("metadata of ONNX files", tried=count, refused=count - right, right=right)


HEADER = {"journal_version": 1, "weights": "abc", "layers": [["fc", "svd", 9]]}


def evaluations() -> list[tuple[np.ndarray, Losses]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(1, 9, 3), Losses(rng.permutation(20)[:5], rng.lognormal(size=5))) for _ in range(4)]


def altered_journals(path: Path, count: int) -> Iterator[bytes]:
    """Half altered as they lie, half altered by one who also makes the checksums anew."""
    whole, rng = path.read_bytes(), random.Random(4)
    rows = read_lines(path, "journal").rows
    for number in range(count):
        if number % 2:
            yield mutate_lines(whole, rng)
            continue
        forged, chosen = path.with_name("forged"), rng.randrange(len(rows))
        for place, row in enumerate(rows):
            changed = mutate_value(row, rng) if place == chosen else row
            with suppress(RecursionError):  # deeper than lines can be written
                append_line(forged, changed if isinstance(changed, dict) and changed else row, first=place == 0)
        yield forged.read_bytes()


@counts(400)
def test_search_journals(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    path = tmp_path / "search.jsonl"
    journal = Journal.open(path, HEADER)
    for ranks, losses in evaluations():
        journal.append("initial", ranks, losses, 0.5, -0.25)

    def read(path: Path) -> bool:
        again = Journal.open(path, HEADER, resume=True)
        for ranks, losses in evaluations():
            found = again.recall(ranks, losses.indices)
            if found is None:
                return True
            if found.values.shape != losses.values.shape or not np.isfinite(found.values).all():
                return False
        return True

    tally("search journals", **try_all(altered_journals(path, count), tmp_path / "altered.jsonl", read))


@counts(200)
def test_journals_of_factors(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    path, header = tmp_path / "factors.jsonl", {"factors_version": 1, "weights": "abc"}
    journal = ChoiceJournal.open(path, header)
    for name in "abc":
        journal.append(ChoiceRow(layer=name, method="svd", factors="refit", trials={"svd": [0.5, 0.25]}))

    def read(path: Path) -> bool:
        rows = ChoiceJournal.open(path, header, resume=True).rows
        return all(isinstance(row, ChoiceRow) for row in rows.values())

    tally("journals of factors", **try_all(altered_journals(path, count), tmp_path / "altered.jsonl", read))


@counts(300)
def test_sealed_files(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Stage files, caches, and plans that a run looks after: nothing altered is believed."""
    path, content = tmp_path / "sealed.json", {"name": "stage", "seconds": 0.1, "layers": {"fc": [1, 2, 3]}}
    write_sealed(path, content)
    texts = json_texts(json.loads(path.read_text()), count, 5)
    tally("stage files and caches", **try_all(texts, path, lambda path: read_sealed(path, "file") == content))


@counts(300)
def test_sealed_tensors(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Checkpoints of a fine-tuning, and networks of stages: nothing altered is believed."""
    path, rng = tmp_path / "network.safetensors", random.Random(6)
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    write_tensors(path, tensors, {"state": "{}"})
    whole = path.read_bytes()

    def read(path: Path) -> bool:
        found, texts = read_tensors(path, "network")
        return texts == {"state": "{}"} and all(torch.equal(found[name], tensors[name]) for name in tensors)

    contents = (mutate_bytes(whole, rng) for _ in range(count))
    tally("fine-tuning checkpoints and networks", **try_all(contents, path, read))


def checkpoints(count: int) -> Iterator[bytes]:
    rng = random.Random(7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = squeezenet1_1(num_classes=CLASSES).state_dict()
    files = []
    for content, options in (
        (weights, {}),
        ({"state_dict": weights, "epoch": 3, "classes": [*"abcd"]}, {}),
        (weights, {"_use_new_zipfile_serialization": False}),
    ):
        file = io.BytesIO()
        torch.save(content, file, **options)
        files.append(file.getvalue())
    for number in range(count):
        content = files[number % len(files)]
        if number % 4 == 0:  # tensors are most of a file: this changes what is not
            cut = min(len(content) - 1, 4000)
            yield mutate_bytes(content[:cut], rng) + content[cut:]
        elif number % 4 == 1:
            yield content[:-6000] + mutate_bytes(content[-6000:], rng)
        else:
            yield mutate_bytes(content, rng)


@counts(120)
def test_checkpoints(count: int, tmp_path: Path, registry: object, tally: Callable[..., None]) -> None:
    def read(path: Path) -> bool:
        loaded = load_model(path)
        weights = loaded.model.state_dict().values()
        return loaded.num_classes == CLASSES and all(bool(weight.isfinite().all()) for weight in weights)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally("checkpoints", **try_all(checkpoints(count), tmp_path / "model.pt", read))


FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}


def images(count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(8)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    for number in range(count):
        suffix = rng.choice([*FORMATS])
        size = rng.choice(((40, 24), (1, 9000), (9000, 1), (1, 1)))
        file = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(file, FORMATS[suffix])
        named = rng.choice([*FORMATS]) if number % 5 == 4 else suffix
        yield named, file.getvalue() if number % 7 == 6 else mutate_bytes(file.getvalue(), rng)


@counts(400)
def test_images(count: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    (tmp_path / "images").mkdir()
    for number, (suffix, content) in enumerate(images(count)):
        (tmp_path / "images" / f"{number}.{suffix}").write_bytes(content)
    found = load_folder(tmp_path / "images", Transform(16, 16), count, 0)
    assert found.data.shape == (len(found), 3, 16, 16)
    assert len(found) + found.unreadable == count
    tally("images", tried=count, refused=found.unreadable, right=len(found))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto 1 1 lineto stroke showpage\n"


def test_no_other_program_is_run_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    (tmp_path / "0.png").write_bytes(POSTSCRIPT)
    with pytest.raises(InputError, match="not an image that can be decoded"):
        load_folder(tmp_path, Transform(16, 16), 4, 0)
