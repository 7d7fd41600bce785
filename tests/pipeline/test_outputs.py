"""--overwrite removes an earlier run of ours, and nothing that a user put there."""

import json
from pathlib import Path

import pytest

from compressor.errors import InputError
from compressor.files import write_sealed
from compressor.pipeline.outputs import (
    NETWORKS,
    OUTPUTS,
    PLANS,
    STAGES,
    holds_run,
    prepare_resumption,
    remove_outputs,
    require_replaceable,
)
from compressor.pipeline.plan import Plan, read_plan, write_plans
from compressor.search.evaluation.journal import VERSION_KEY

PLAN = {
    "version": 1,
    "arch": "x",
    "layers": [{"name": "4", "method": "spatial", "rank": 3, "break_even_rank": 48, "factors": None}],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with everything that a run may leave."""
    folder = tmp_path / "out"
    for name in (f"{PLANS}/01-ratio-0.1250.json", f"{STAGES}/recipe.json", f".{NETWORKS[1]}.17.tmp/{NETWORKS[1]}"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    stage = folder / STAGES / "1-convolutions"
    stage.mkdir()
    for name in ("stage.json", "network.safetensors", "plan.json", "search.jsonl", "finetune.safetensors"):
        (stage / name).touch()
    for name in OUTPUTS:
        if name not in (PLANS, STAGES):
            (folder / name).touch()
    (folder / ".report.html.17.tmp").touch()
    (folder / "plan.json").write_text(json.dumps(PLAN))
    return folder


def test_a_run_is_removed_and_its_folder_stays_empty(run: Path) -> None:
    remove_outputs(run)
    assert list(run.iterdir()) == []
    remove_outputs(run)
    remove_outputs(run.parent / "missing")


@pytest.mark.parametrize(
    "name",
    [
        "photo.jpg",
        ".hidden",
        ".notes.tmp",
        "plans/mine.json",
        "plans/deeper/01-ratio-0.1250.json",
        "stages/notes.txt",
        "stages/1-convolutions/photo.jpg",
        "stages/mine/plan.json",
        "photos/1.jpg",
        "model.onnx.bak",
    ],
)
def test_a_users_file_among_ours_stops_it_before_anything_is_removed(run: Path, name: str) -> None:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).touch()
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match="choose another --out"):
        remove_outputs(run)
    assert sorted(run.rglob("*")) == before


def test_files_with_our_names_alone_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "plan.json").write_text('{"plan": "holidays"}')
    assert not holds_run(tmp_path)
    with pytest.raises(InputError, match="holds no run that --overwrite could recognize"):
        require_replaceable(tmp_path)


def test_an_interrupted_search_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "search.jsonl").write_text(json.dumps({VERSION_KEY: 1}) + "\n")
    assert holds_run(tmp_path)
    require_replaceable(tmp_path)


def test_a_link_to_a_folder_elsewhere_is_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "01-ratio-0.5000.json").touch()
    (run / STAGES / "2-linear").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="2-linear"):
        remove_outputs(run)
    assert (tmp_path / "elsewhere" / "01-ratio-0.5000.json").exists()


def test_a_resumed_run_removes_what_was_half_written_and_nothing_of_the_user(run: Path) -> None:
    write_sealed(run / "plan.json", PLAN)
    for name in (f"{PLANS}/mine.json", f"{PLANS}/.mine.json.12ab.tmp", ".notes.12ab.tmp"):
        (run / name).touch()
    (run / f"{PLANS}/01-ratio-0.1250.json").unlink()
    before = set(run.rglob("*"))
    prepare_resumption(run)
    assert {path.relative_to(run).as_posix() for path in before - set(run.rglob("*"))} == {
        f".{NETWORKS[1]}.17.tmp",
        f".{NETWORKS[1]}.17.tmp/{NETWORKS[1]}",
        ".report.html.17.tmp",
    }


@pytest.mark.parametrize("name", ["plan.json", f"{PLANS}/01-ratio-0.1250.json"])
def test_an_edited_plan_is_not_replaced(run: Path, name: str) -> None:
    for path in (run / "plan.json", run / f"{PLANS}/01-ratio-0.1250.json"):
        write_sealed(path, PLAN)
    prepare_resumption(run)
    content = json.loads((run / name).read_text())
    content["layers"][0]["rank"] = 7
    (run / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match="was edited, or is of another version, and this run would replace it"):
        prepare_resumption(run)


def test_new_plans_replace_those_of_the_run_alone(tmp_path: Path) -> None:
    plan = Plan.model_validate(PLAN)
    write_plans(tmp_path, plan, {f"{PLANS}/01-ratio-0.5000.json": plan})
    (tmp_path / PLANS / "mine.json").touch()
    write_plans(tmp_path, plan, {f"{PLANS}/01-ratio-0.2500.json": plan})
    assert sorted(path.name for path in (tmp_path / PLANS).iterdir()) == ["01-ratio-0.2500.json", "mine.json"]
    assert read_plan(tmp_path / "plan.json") == plan
