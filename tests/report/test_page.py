"""The page: its sentences, in their order, and what is said where something is missing."""

import json
import re
from pathlib import Path

import pytest

from compressor.fidelity.intervals import paired_change
from compressor.report import formatting, wording
from compressor.report.console import print_report
from compressor.report.page import read_report, render_report
from compressor.report.records import PrecisionRecord, Report, VerdictRecord
from compressor.schema import Pair
from compressor.search.records import CertificateRecord
from tests.report.examples import TextOf, make_latency, make_sparse_report


def test_headline_has_size_speed_and_agreement(report: Report) -> None:
    sentence = wording.describe_result(report).replace(formatting.GAP, " ")
    assert sentence == (
        "resnet18: 46.8 MB → 9.1 MB (5.1× smaller), 2.1× faster on CPU, 98.4 % of top-1 decisions unchanged"
    )


def test_headline_says_first_where_there_was_little_to_gain(report: Report) -> None:
    (name, latency), *_ = report.latency.items()
    slow = {name: latency.model_copy(update={"ratio": 0.996})}
    macs = report.macs.model_copy(update={"compressed": round(0.97 * report.macs.original)})
    little = report.model_copy(update={"latency": slow, "macs": macs})
    assert wording.describe_result(little).startswith(
        "Low rank gives this network little: 97.0 % of the operations are left, 99.6 % of the time. --precision int8"
    )
    assert wording.describe_result(little.model_copy(update={"search": None})).startswith("resnet18")
    assert wording.describe_result(report.model_copy(update={"macs": macs})).startswith("resnet18")


def test_headline_names_the_other_precisions_after_float32(report: Report) -> None:
    fidelity = report.fidelity.model_copy(update={"top1_agreement": 0.975})
    int8 = PrecisionRecord(
        precision="int8",
        file="model.int8.onnx",
        onnx_bytes=2_300_000,
        gzip_bytes=2_000_000,
        fidelity=fidelity,
        norm_to_float32=0.01,
        latency={"CPUExecutionProvider": make_latency(12, 0.25, 1)},
        latency_to_float32={},
    )
    sentence = wording.describe_result(report.model_copy(update={"precisions": [int8]})).replace(formatting.GAP, " ")
    assert sentence == (
        "resnet18: 46.8 MB → 9.1 MB (5.1× smaller), 2.1× faster on CPU, 98.4 % of top-1 decisions unchanged; "
        "int8: 2.3 MB (20× smaller), 4.0× faster on CPU, 97.5 % unchanged"
    )


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [
        (0.5, 0.48, 0.52, "2.0× faster on CPU"),
        (1.5, 1.4, 1.6, "1.5× slower on CPU"),
        (0.99, 0.97, 1.01, "no measurable difference in speed on CPU"),
    ],
)
def test_speed_is_called_what_it_is(ratio: float, low: float, high: float, words: str) -> None:
    record = make_latency(10, ratio, 1).model_copy(update={"ratio_low": low, "ratio_high": high})
    assert wording.describe_speed("CPUExecutionProvider", record).startswith(words)


@pytest.mark.parametrize(
    "words",
    [
        "Before and after",
        "On 500 test images, which neither calibration nor the search used, the squared distance",
        "L = 0.771 on average (the function norm), with a standard error of 0.0419",
        "0.171 % of the energy of the original outputs, E‖f*‖² = 451",
        "14 layers were factorized, 3 kept dense",
        "4 layers skipped, and why",
        "Method Factors Shape",
        "layer1.0.conv2 spatial refit 64 × 64 × 3 × 3",
        "layer4.1.conv2 spatial activation 512 × 512 × 3 × 3",
        "fc svd weight 1000 × 512",
        "layer1.0.conv1 kept dense — 64",
        "spatial a k × k convolution in two, one along columns and one along rows",
        "weight factors the best approximation of the weight itself",
        "The layers were refitted front to back on 400 calibration images: on 100 check images, which took no part "
        "in the fit, the function norm fell from L = 1.61 to 0.741; 19 of 29 steps were kept, in 2 min 34 s.",
        "The search and its certificate are about the network before this.",
        "29 steps in order",
        "layer1.0.conv2 last factor 1.61 1.55 yes",
        "layer1.1.conv1 last factor 1.48 1.51 no",
        "whole network batch-norm statistics 0.741 2.97 no",
        "photographs (labelled); 400 images for calibration, 1000 for the search, 500 for the test, 1 unreadable",
        "only 3 input channels",
        "largest probability found that a given other plan is better by more than 0.05 is "
        "0.0031. The probability that any plan at all is better by that much is 0.0059, at most 0.031 with "
        "confidence more than 99.9 %, from 512 sample paths of the posterior (asked: at most ε = 0.05): met.",
        "The first probability is about single plans (Ma et al. 2019, Eq. 12), the second about all plans at once",
        "It stopped because of this: the certificate was met.",
        "images at batch sizes 1, 2 and 8",
        "1.4 × 10⁻⁶ of the largest output",
        "AMD EPYC 7763, 8 cores",
        "onnxruntime 1.22.0",
        "--gamma 0.03 --seed 7 --out small",
        "Seed 7",
        "−0.6 points",
    ],
)
def test_page_says(page: str, words: str) -> None:
    assert words in TextOf(page).text


def test_parts_come_in_order(page: str) -> None:
    found = re.findall(r'<h2 id="(\w+)">', page)
    assert found == [
        "figures",
        "tradeoff",
        "layers",
        "measured",
        "again",
        "appendix",
        "fidelity",
        "search",
        "certificate",
        "reconstruction",
        "verified",
    ]


def test_mathematics_is_in_a_closed_appendix(page: str) -> None:
    plain, appendix = page.split('<details class="appendix">')
    for words in ("‖f*‖", "posterior standard deviation", "ε", "Lipschitz", "certificate was met"):
        assert words not in plain
        assert words in appendix


# Verdict, decisions and the trade-off ----------------------------------------------------------------------


@pytest.fixture
def failed(report: Report) -> Report:
    verdict = VerdictRecord(success=False, reason="it <computes> nothing", advice="try --gamma 0.5", gamma=0.5)
    return report.model_copy(update={"verdict": verdict})


def test_a_failure_comes_first_on_page_and_terminal(failed: Report, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "Not a success: it <computes> nothing; try --gamma 0.5."
    page = render_report(failed)
    assert TextOf(page).text.split("Compression report ")[1].startswith(sentence)
    assert 'class="failure" role="alert"' in page
    print_report(failed, Path("out"))
    assert capsys.readouterr().out.splitlines()[0] == sentence


def test_a_success_has_no_alarm(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    fine = report.model_copy(update={"verdict": VerdictRecord(success=True)})
    assert "alert" not in render_report(fine)
    print_report(fine, Path("out"))
    assert capsys.readouterr().out.splitlines()[0].startswith("resnet18: 46.8 MB → 9.1 MB (5.1× smaller)")


def test_decisions_have_intervals_and_counts(report: Report) -> None:
    fidelity = report.fidelity.model_copy(update={"images": 5000, "top1_agreement": 0.962})
    changes = {
        "fidelity": fidelity,
        "top1": Pair[float](original=0.83, compressed=0.814),
        "top1_change": paired_change(4030, 120, 40, 810),
    }
    changed = report.model_copy(update=changes)
    sentence = wording.describe_decisions(changed).replace(formatting.GAP, " ")
    assert sentence == (
        "On 5 000 test images, which neither calibration nor the search used, 96.2 % of decisions are unchanged "
        "[95.6, 96.7]: 190 decisions changed. Top-1 accuracy went from 83.0 % to 81.4 %, −1.6 points [−2.1, −1.1]: "
        "120 lost, 40 gained."
    )
    assert "Newcombe’s for paired shares" in wording.describe_intervals(changed)
    assert "Newcombe" not in wording.describe_intervals(report)


def test_a_quantity_has_no_decisions(report: Report) -> None:
    fidelity = report.fidelity.model_copy(update={"top1_agreement": None, "by_sign": True})
    sentence = wording.describe_decisions(report.model_copy(update={"fidelity": fidelity}))
    assert "nothing is decided" in sentence
    assert "unchanged" not in sentence


def test_certificate_not_met_is_said(report: Report) -> None:
    assert report.search is not None
    failed = CertificateRecord(pointwise=0.21, delta=0.05, epsilon=0.005, met=False)
    search = report.search.model_copy(update={"certificate": failed})
    sentence = wording.describe_certificate(search).replace(formatting.GAP, " ")
    assert "is 0.21 (asked: at most ε = 0.005): not met." in sentence


def test_a_report_from_before_there_was_a_joint_certificate_is_read(report: Report, tmp_path: Path) -> None:
    record = json.loads(report.model_dump_json())
    record["search"]["certificate"] = {"pointwise": 0.0031, "delta": 0.05, "epsilon": 0.005, "met": True}
    (tmp_path / "report.json").write_text(json.dumps(record))
    search = read_report(tmp_path / "report.json").search
    assert search is not None
    sentence = wording.describe_certificate(search).replace(formatting.GAP, " ")
    assert sentence.endswith("is 0.0031 (asked: at most ε = 0.005): met.")


def test_sparse_report_says_what_is_missing(sparse_page: str) -> None:
    text = TextOf(sparse_page).text
    assert "There was no search: the given plan was applied unchanged." in text
    assert "a certificate comes from a search" in text
    assert "Latency was not measured" in text
    assert "Top-1 accuracy" not in text
    assert "On 500 images the squared distance" in text
    assert "photographs (unlabelled); 1 000 images for checks, 500 for the test, 1 unreadable" in text
    assert "50.0 % of the weights were then pruned to zero" in text


def test_nothing_is_said_of_what_was_not_done(sparse_page: str) -> None:
    """No reconstruction, and a report from before there were factors to choose."""
    text = TextOf(sparse_page).text.lower()
    assert "calibrat" not in text
    assert "factors shape" not in text
    assert "refit" not in text
    assert "reconstruct" not in text


def test_methods_and_factors_are_explained_where_they_occur(report: Report) -> None:
    dense = report.layers[1].model_copy(update={"rank": None, "method": "cp", "factors": None})
    layers = [report.layers[-1], dense]
    assert list(wording.explain_methods(layers)) == ["svd"]
    assert list(wording.explain_factors(layers)) == ["weight"]


@pytest.mark.parametrize(
    ("with_search", "calibration", "words"),
    [
        (True, 0, "On 500 test images, which the search never used, the squared"),
        (False, 400, "On 500 test images, which calibration never used, the squared"),
    ],
)
def test_fidelity_says_what_the_test_images_were_not_used_for(
    report: Report, with_search: bool, calibration: int, words: str
) -> None:
    images = report.images.model_copy(update={"calibration": calibration})
    changes = {"images": images, "search": report.search if with_search else None}
    assert wording.describe_fidelity(report.model_copy(update=changes)).startswith(words)


def test_multiples_of_ranks_are_said(report: Report) -> None:
    assert "multiples" not in wording.describe_objective(report)
    changed = report.model_copy(update={"rank_multiple": 8})
    assert wording.describe_objective(changed).endswith(" Ranks from 8 on are multiples of 8.")


def test_check_images_are_those_of_the_search_if_there_was_one(report: Report) -> None:
    applied = report.model_copy(update={"search": None})
    assert "some of the search images" in wording.describe_reconstruction_limits(report)
    assert "search" not in wording.describe_reconstruction_limits(applied)
    assert "400 images for calibration, 1000 for checks" in wording.describe_images(applied)


def test_reconstruction_without_gain_is_said(report: Report) -> None:
    assert report.reconstruction is not None
    refused = [step.model_copy(update={"before": 1.61, "kept": False}) for step in report.reconstruction.steps]
    record = report.reconstruction.model_copy(update={"after": 1.61, "steps": refused})
    sentence = wording.describe_reconstruction(record).replace(formatting.GAP, " ")
    assert "the function norm stayed at L = 1.61; 0 of 29 steps were kept" in sentence


def test_everything_from_outside_is_escaped(sparse_page: str) -> None:
    assert "<script" not in sparse_page
    assert "<b>" not in sparse_page
    assert "&lt;script&gt;alert(&#39;$x_1$&#39;)" in sparse_page
    assert "Synthetic images were used: <b>bring your own</b>." in TextOf(sparse_page).text


def test_no_compressible_layer_is_said(report: Report) -> None:
    skipped = [layer for layer in report.layers if layer.skipped]
    page = render_report(report.model_copy(update={"layers": skipped, "search": None}))
    assert "No layer of this network could be compressed." in page


# The terminal --------------------------------------------------------------------------------------------


def test_summary_has_a_line_on_reconstruction(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    line = "reconstruction: function norm 1.61 -> 0.7413 on 100 check images, 19 of 29 steps kept, 154 s"
    assert line in [row.rstrip() for row in lines]


def test_summary_without_reconstruction_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(make_sparse_report(), Path("out"))
    assert "reconstruction" not in capsys.readouterr().out
