"""The studies of the paper's tables on a tiny network: rows, resuming, tables, claims."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.studies.paper import rows as rows_module
from benchmarks.studies.paper import table1, table6
from benchmarks.studies.paper.norms import OUTPUTS, measure, random_plan
from benchmarks.studies.paper.report import claims, pictures, published, tables
from benchmarks.studies.paper.rows import Results
from benchmarks.studies.paper.samples import estimates
from benchmarks.studies.paper.subject import Subject, block_ratios, load_subject, paper_patterns
from benchmarks.studies.paper.ways import OURS, WAYS, Job, choose_ways, run
from benchmarks.studies.search.baselines import DEFAULT
from compressor.data.images import ImageSet
from compressor.errors import InputError
from compressor.network.layers import compressible, find_layers
from compressor.pipeline.stages.factorize import weight_factors

GAMMA = 0.005


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Three linear layers on random inputs, labelled by the network itself but for a tenth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    model.requires_grad_(False)
    inputs = torch.randn(300, 24)
    labels = model(inputs).argmax(1)
    labels[::10] = (labels[::10] + 1) % 10
    images = ImageSet(inputs, "random inputs", labels=labels)
    pool, test_images = images.subset(range(150)), images.subset(range(150, 300))
    layers = compressible(find_layers(model, inputs[:1], "spatial"))
    factors = {layer.name: weight_factors(layer) for layer in layers}
    return Subject("fc3", "fc3", model, layers, factors, pool, test_images, torch.device("cpu"))


@pytest.fixture(scope="module")
def study(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A results file with a few runs of each table's searches, as it is read again."""
    results = Results("paper-table6-tiny", subject.about(), tmp_path_factory.mktemp("results"))
    gammas = (GAMMA, 10 * GAMMA, 100 * GAMMA)
    results.fill(subject, [*(Job(OURS, gamma, 0) for gamma in gammas), Job(OURS, GAMMA, 1)])
    results.fill(subject, [Job(way, gamma, 0) for way in ("random", DEFAULT) for gamma in gammas[:2]])
    results.fill(subject, [Job(way, 1.0, 0, "error") for way in (OURS, "random")])
    content: dict[str, Any] = json.loads((results.folder / "paper-table6-tiny.json").read_text())
    return content


def test_rows_hold_the_papers_columns_and_what_a_run_cost(subject: Subject, study: dict[str, Any]) -> None:
    row = tables.runs_of(study, way=OURS, seed=0, paper_gamma=GAMMA)[0]
    ranks = np.array(row["ranks"])
    assert row["weights"] == round(row["ratio"] * subject.weights)
    assert row["top1"] == pytest.approx(subject.evaluate(ranks)["top1"], rel=1e-4)
    assert row["objective"] == pytest.approx(-GAMMA * row["function_norm"] - row["ratio"], rel=1e-4)
    assert row["passes"] == 50 * row["evaluations"]
    assert len(row["blocks"]) == 3
    assert list(block_ratios(subject, subject.space().break_even_ranks).values()) == [1.0, 1.0, 1.0]
    assert study["original"]["top1"] == pytest.approx(0.9)
    assert {"machine", "seconds", "layers", "evaluated_on", "output_energy"} <= study.keys()


def test_other_searches_get_the_image_passes_of_the_papers(subject: Subject, study: dict[str, Any]) -> None:
    for gamma in (GAMMA, 10 * GAMMA):
        (papers,) = tables.runs_of(study, way=OURS, seed=0, paper_gamma=gamma)
        for way in ("random", DEFAULT):
            (other,) = tables.runs_of(study, way=way, seed=0, paper_gamma=gamma)
            assert 0 < other["passes"] <= papers["passes"]
    with pytest.raises(InputError, match="first run `paper` with the same seeds"):
        run(subject, Job("random", GAMMA, 7), study["rows"])


def test_rows_that_are_there_are_kept_and_those_of_another_network_refused(subject: Subject, tmp_path: Path) -> None:
    first = Results("trial", subject.about(), tmp_path)
    first.fill(subject, [Job("random", GAMMA, 0)][:0])
    first.add({"way": OURS, "paper_gamma": GAMMA, "seed": 0, "fidelity": "norm", "samples": 50, "passes": 100})
    again = Results("trial", subject.about(), tmp_path)
    again.fill(subject, [Job(OURS, GAMMA, 0), Job("random", GAMMA, 0)])
    assert [row["way"] for row in again.rows] == [OURS, "random"]
    assert again.rows[1]["passes"] == 100
    with pytest.raises(InputError, match="measured with other weights"):
        Results("trial", {**subject.about(), "weights": 1}, tmp_path)


def test_rows_of_another_training_are_put_aside(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Results("trial", subject.about(), tmp_path)
    for number in (1, 2):
        first.add({"way": OURS, "number": number})
        trained_again = Results("trial", {**subject.about(), "output_energy": number}, tmp_path)
        assert trained_again.rows == []
        assert f"kept as trial.earlier-{number}, measured anew" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["trial.earlier-1", "trial.earlier-2"]
    assert [row["number"] for row in json.loads((tmp_path / "trial.earlier-2").read_text())["rows"]] == [1, 2]


def test_gammas_are_scaled_by_the_output_energy_unless_the_paper_means_them(subject: Subject) -> None:
    other = replace(subject, name="another")
    assert subject.gamma(0.001, "norm") == other.gamma(0.001, "error") == 0.001
    assert other.gamma(0.001, "norm") == pytest.approx(0.001 * 9171 / subject.norm.output_energy)


def test_searches_are_named_and_asked_for_by_name() -> None:
    assert choose_ways("paper,random") == ["paper", "random"]
    with pytest.raises(InputError, match="no search is called 'papers'"):
        choose_ways("papers")
    assert all(way.search.about for way in WAYS.values())


@pytest.mark.hard
def test_fabolas_proposes_plans_within_its_budget(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    if not WAYS["fabolas"].search.is_installed:
        pytest.skip("GPy is not installed")
    from benchmarks.studies.paper import fabolas

    monkeypatch.setattr(fabolas, "NUM_START", 4)
    monkeypatch.setattr(fabolas, "MAX_STEPS", 1)
    monkeypatch.setattr(fabolas, "NUM_POINTS", 3)
    papers = {**Job(OURS, 1.0, 0, "error").key, "passes": 400}
    row = run(subject, Job("fabolas", 1.0, 0, "error"), [papers])
    assert row["evaluations"] == 5
    assert row["passes"] <= 400
    assert row["stopped_because"] == "1 steps"


def test_table_1_counts_eight_layers_and_no_ninth_gives_the_papers_weights() -> None:
    row = table1.count(*table1.NETWORKS["ResNet18"])
    assert row["parameters"] == 8
    assert f"{row['weights'] / 1e6:.2f}" == "6.27"
    assert all(weights > row["weights"] + 5000 for weights in row["with_one_more"].values())
    assert table1.count(*table1.NETWORKS["FC3"])["weights"] == 1_794_000


def test_tables_show_the_papers_figures_beside_ours(study: dict[str, Any]) -> None:
    shown = tables.table_of_gammas(study, {GAMMA: published.TABLE_3[0.005]}, published.ORIGINALS["fc3"])
    lines = shown.splitlines()
    assert lines[0].startswith("| γ | paper: #W | paper: ratio | paper: top-1 | paper: time | here: #W")
    assert lines[2].startswith("| 0.005 | 0.06M | 3.09 | 76.22 | 13.73 | 0.00")
    assert lines[-1].startswith("| original | 1.79M | 100 | 98.2 |  | 0.00M | 100 | 90.00 |")
    assert "2 (" in lines[2]
    assert "bocompress's default" in tables.others(study)
    two = tables.table_2({**study, "rows": tables.runs_of(study, fidelity="error")})
    assert "| 1 | paper | 34.9 | 58.2 | 1126 | 10 | 32.7 | 61.8 | 46876 | 10 | 34.3 | 62.9 | 1378 | 10 |" in two
    assert two.splitlines()[-1].startswith("| 1 | here | ")


def test_claims_have_a_verdict_and_a_figure(subject: Subject, study: dict[str, Any]) -> None:
    found = [*claims.of_gammas(study), *claims.of_fidelities(study), *claims.of_certificates(study, "norm")]
    found += claims.of_methods({**study, "rows": tables.runs_of(study, fidelity="error")})
    assert {"the ratio grows with γ (Tables 3, 6, 7)", "Pareto-dominates random search (Fig. 1)"} <= {
        claim.text for claim in found
    }
    assert all(any(figure.isdigit() for figure in claim.figure) for claim in found)
    assert claims.verdict_of(True, True) == "holds"
    assert claims.verdict_of(False, True) == "holds in part"
    assert claims.verdict_of(False, False) == "does not hold here"


def test_norms_grow_with_the_error_and_bound_the_risk(subject: Subject) -> None:
    rows = [measure(subject, number) for number in range(12)]
    study = {**subject.about(), "study": "paper-norms-tiny", "rows": rows}
    assert list(rows[0]["norms"]) == [*(layer.name for layer in subject.layers), OUTPUTS]
    plan = random_plan(subject, 3)
    assert rows[3]["ranks"] == plan.tolist()
    every = np.arange(len(subject.pool))
    norm = subject.norm.losses(subject.network(plan), every).mean
    assert rows[3]["norms"][OUTPUTS] == pytest.approx(norm, rel=1e-5)
    monotone, bound = claims.of_norms(study)
    assert bound.verdict == "holds"
    assert "rank correlation" in monotone.figure
    assert "| outputs |" in tables.correlations(study)
    assert pictures.norm_against_error(study).startswith("<?xml")
    assert "√2 · √L" in pictures.gap_against_bound(study)


def test_estimates_get_closer_and_more_gaussian_with_more_images(subject: Subject) -> None:
    few, many = (estimates(subject, samples) for samples in (10, 100))
    assert many["deviation"] == pytest.approx(few["deviation"] / 10**0.5, rel=0.1)
    assert many["skewness"] < few["skewness"]


def test_pictures_have_a_box_per_gamma_and_block(study: dict[str, Any]) -> None:
    boxes = pictures.boxes_by_gamma(study)
    assert "ratio in %" in boxes
    assert "top-5 in %" in boxes
    assert "block, by depth" in pictures.boxes_by_block(study)
    assert "ratio in %" in pictures.ratio_against_top1({**study, "rows": tables.runs_of(study, fidelity="error")})


def test_a_command_prints_its_table_and_refuses_in_one_sentence(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rows_module, "load_subject", lambda *_: subject)
    monkeypatch.setattr(rows_module, "Results", lambda name, about: Results(name, about, tmp_path))
    monkeypatch.setattr(table6, "GAMMAS", (0.001, 0.01))
    shown = CliRunner().invoke(table6.main, ["any.pth", "--runs", "0:1", "--ways", "paper"])
    assert shown.exit_code == 0, shown.output
    assert "| original |" in shown.stdout
    refused = CliRunner().invoke(table6.main, ["any.pth", "--runs", "0:1", "--ways", "pappier"])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: no search is called 'pappier'; there are paper, random")


def test_a_checkpoint_without_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"net\.pth needs DATA"):
        load_subject("net.pth", None, None, "paper", 10, "cpu")
    assert paper_patterns("paper", "mobilenet_v2") == "*"
    assert paper_patterns("paper", "resnet18") == "paper"
