"""The page: its sentences, its figures, and how a real browser shows it."""

import html
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compressor.cost.records import LatencyRecord, MachineRecord
from compressor.errors import InputError
from compressor.fidelity.intervals import paired_change
from compressor.fidelity.records import FidelityRecord
from compressor.network.records import LayerRecord
from compressor.recovery.records import ReconstructionRecord, ReconstructionStep, StepKind
from compressor.report import figures, formatting, search_figures, wording
from compressor.report.console import print_report
from compressor.report.page import read_report, render_report, write_report
from compressor.report.records import ImagesRecord, PrecisionRecord, Report, VerdictRecord
from compressor.report.svg import new_axes, page_style, to_inline_svg
from compressor.schema import Pair
from compressor.search.records import CalibrationRecord, CertificateRecord, EvaluationRecord, JointRecord, SearchRecord
from exporters.records import ExportCheckRecord
from tests.browser import PHONE_WIDTH, on_a_phone, run_browser

GAMMA = 0.03


# Reports -------------------------------------------------------------------------------------------------


def make_conv(name: str, co: int, ci: int, size: int, side: int, rank: int | None) -> LayerRecord:
    """A convolution of ResNet-18 at 224 px; 1x1 ones take the SVD, the others the spatial split."""
    params = co * ci * size * size
    break_even_rank = max(1, params // (size * (ci + co)))
    after = None if rank is None else rank * size * (ci + co)
    return LayerRecord(
        name=name,
        kind="conv",
        shape=[co, ci, size, size],
        method="svd" if size == 1 else "spatial",
        factors=None if rank is None else "refit" if ci < 128 else "activation",
        break_even_rank=break_even_rank,
        rank=rank,
        params=params,
        params_compressed=after,
        macs=params * side * side,
        macs_compressed=None if after is None else after * side * side,
    )


def make_layers() -> list[LayerRecord]:
    """The 21 conv and linear layers of ResNet-18: 17 in the plan, three of them dense, and four left out."""
    stem = LayerRecord(
        name="conv1",
        kind="conv",
        shape=[64, 3, 7, 7],
        params=9408,
        macs=118_013_952,
        skipped="only 3 input channels: a rank that saves anything would be too small to be faithful",
    )
    layers = [stem]
    random_ranks = random.Random(4)
    for stage, (width, side) in enumerate([(64, 56), (128, 28), (256, 14), (512, 7)], start=1):
        for block in range(2):
            for conv in (1, 2):
                ci = width // 2 if stage > 1 and block == 0 and conv == 1 else width
                break_even_rank = 3 * width * ci // (width + ci)
                share = (0.75, 0.5, 0.3, 0.12)[stage - 1] * random_ranks.uniform(0.6, 1.3)
                rank = (
                    None if (stage, block, conv) in {(1, 0, 1), (1, 1, 2), (2, 0, 1)} else int(share * break_even_rank)
                )
                layers.append(make_conv(f"layer{stage}.{block}.conv{conv}", width, ci, 3, side, rank))
        if stage > 1:
            shortcut = make_conv(f"layer{stage}.0.downsample.0", width, width // 2, 1, side, None)
            why = "left out by --skip '*.downsample.*'"
            layers.append(shortcut.model_copy(update={"skipped": why, "method": None, "break_even_rank": None}))
    linear = {"name": "fc", "kind": "linear", "shape": [1000, 512], "method": "svd", "break_even_rank": 338, "rank": 96}
    linear["factors"] = "weight"
    costs = {"params": 512_000, "params_compressed": 145_152, "macs": 512_000, "macs_compressed": 145_152}
    return [*layers, LayerRecord.model_validate({**linear, **costs})]


def make_history(layers: list[LayerRecord]) -> list[EvaluationRecord]:
    """Sixty evaluations: an initial design, candidates that approach the chosen plan, and re-measurements."""
    dice = random.Random(1)
    compressible = figures.list_compressible(layers)
    chosen = figures.list_chosen_ranks(layers)
    history = []
    for index in range(60):
        spread = 1.4 * (1 - index / 60) + 0.1
        again = index > 20 and index % 7 == 0
        source = "initial" if index < 17 else "re-measure" if again else "candidate"
        factors = [1.0 if again else 2.718 ** dice.gauss(-0.1, spread) for _ in chosen]
        pairs = zip(chosen, factors, compressible, strict=True)
        ranks = [
            rank and max(1, min(layer.break_even_rank or 1, round(rank * factor))) for rank, factor, layer in pairs
        ]
        shares = [
            (rank or layer.break_even_rank or 1) / (layer.break_even_rank or 1)
            for rank, layer in zip(ranks, compressible, strict=True)
        ]
        ratio = sum(shares) / len(shares) * 0.45
        norm = sum((0.04 / share) ** 1.5 for share in shares) * 2.718 ** dice.gauss(0, 0.12)
        history.append(
            EvaluationRecord(
                index=index,
                source=source,
                ranks=ranks,
                function_norm=norm,
                variance=(0.12 * norm) ** 2,
                ratio=ratio,
                objective=-GAMMA * norm - ratio,
                images=50,
            )
        )
    return history


def make_latency(original_ms: float, ratio: float, seed: int) -> LatencyRecord:
    dice = random.Random(seed)
    original = sorted(original_ms * (0.97 + dice.expovariate(20)) for _ in range(200))
    compressed = sorted(original_ms * ratio * (0.97 + dice.expovariate(20)) for _ in range(200))
    return LatencyRecord(
        original_ms=original[100],
        compressed_ms=compressed[100],
        ratio=ratio,
        ratio_low=ratio * 0.985,
        ratio_high=ratio * 1.02,
        original_p90_ms=original[180],
        compressed_p90_ms=compressed[180],
        original_p99_ms=original[198],
        compressed_p99_ms=compressed[198],
        runs=200,
        threads=1,
        batch_size=1,
        original_samples_ms=original,
        compressed_samples_ms=compressed,
    )


def make_reconstruction(layers: list[LayerRecord]) -> ReconstructionRecord:
    """Two steps for every factorized layer, of which every third is refused, and batch norms far off."""
    refitted = [layer.name for layer in layers if layer.rank is not None]
    kinds: list[StepKind] = ["last factor", "both factors"]
    rows = [(name, kind) for name in refitted for kind in kinds]
    rows.append(("", "batch-norm statistics"))
    loss, steps = 1.61, []
    for number, (layer, kind) in enumerate(rows):
        kept = number % 3 < 2 and layer != ""
        after = loss * (0.96 if kept else 1.02 if layer else 4)
        steps.append(ReconstructionStep(layer=layer, kind=kind, before=loss, after=after, kept=kept))
        loss = after if kept else loss
    return ReconstructionRecord(
        calibration_images=400, check_images=100, before=1.61, after=loss, seconds=154.2, steps=steps
    )


def make_report() -> Report:
    """A run as it comes out of the pipeline."""
    layers = make_layers()
    history = make_history(layers)
    chosen = figures.list_chosen_ranks(layers)
    joint = JointRecord(failures=3, paths=512, upper=0.0307, confidence=0.9996)
    certificate = CertificateRecord(pointwise=0.0031, joint=joint, delta=0.05, epsilon=0.05, asked="joint", met=True)
    return Report(
        version="0.1.0",
        created="2026-02-03T14:05:00+00:00",
        command="bocompress-export resnet18.pth --data photographs --gamma 0.03 --seed 7 --out small",
        seed=7,
        seconds=512.3,
        arch="resnet18",
        gamma=GAMMA,
        form="ratio",
        ratio=0.1834,
        prune_fraction=0.0,
        params=Pair(original=11_689_512, compressed=2_270_144),
        params_compressible=Pair(original=11_499_520, compressed=2_080_152),
        nonzero_params=Pair(original=11_689_512, compressed=2_270_144),
        macs=Pair(original=1_814_073_344, compressed=861_234_432),
        onnx_bytes=Pair(original=46_800_123, compressed=9_093_500),
        gzip_bytes=Pair(original=43_361_000, compressed=8_419_211),
        latency={"CPUExecutionProvider": make_latency(38.2, 0.47, 2)},
        fidelity=FidelityRecord(
            function_norm=0.7712,
            stderr=0.0419,
            relative=0.00171,
            output_energy=451.3,
            images=500,
            top1_agreement=0.984,
        ),
        export_check=ExportCheckRecord(
            max_abs_error=3.1e-5,
            max_rel_error=1.4e-6,
            top1_agreement=1.0,
            images=16,
            batch_sizes=[1, 2, 8],
            tolerance=1e-4,
        ),
        top1=Pair(original=0.6976, compressed=0.6915),
        search=SearchRecord(
            evaluations=60,
            image_passes=3400,
            seconds=402.7,
            surrogate_seconds=9.4,
            stopped_because="the certificate was met",
            objective=sorted(entry.objective for entry in history if entry.ranks == chosen)[3],
            objective_sd=0.0042,
            certificate=certificate,
            calibration=CalibrationRecord(z_rms=1.1, within_two_sd=0.93, evaluations=60),
            history=history,
        ),
        reconstruction=make_reconstruction(layers),
        layers=layers,
        images=ImagesRecord(
            source="photographs",
            calibration=400,
            search=1000,
            test_images=500,
            unreadable=1,
            labelled=True,
            input_shape=[3, 224, 224],
        ),
        machine=MachineRecord(
            cores=8,
            processor="AMD EPYC 7763",
            platform="Linux-6.1-x86_64",
            versions={"python": "3.11.2", "torch": "2.9.0", "onnxruntime": "1.22.0", "onnx": "1.18.0"},
        ),
        warnings=[],
    )


def make_sparse_report() -> Report:
    """A plan applied by hand to one layer with a hostile name; nothing was fitted or timed, no labels."""
    layer = make_conv("<script>alert('$x_1$')</script>", 64, 64, 3, 56, 20).model_copy(update={"factors": None})
    images = make_report().images.model_copy(update={"calibration": 0, "labelled": False})
    changes: dict[str, Any] = {
        "search": None,
        "reconstruction": None,
        "images": images,
        "latency": {},
        "top1": None,
        "layers": [layer],
        "warnings": ["Synthetic images were used: <b>bring your own</b>.", "Latency was not measured."],
        "prune_fraction": 0.5,
    }
    return make_report().model_copy(update=changes)


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_report(report)


@pytest.fixture(scope="module")
def sparse_page() -> str:
    return render_report(make_sparse_report())


# Sentences ---------------------------------------------------------------------------------------------------


class TextOf(HTMLParser):
    """The text a reader sees, no-break spaces made plain and cells of a table apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0
        self.feed(page)
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag == "style"
        self.parts.append(" " * (tag in ("th", "td", "dt", "dd")))

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self.hidden else data)


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
        "at batch sizes 1, 2 and 8",
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


def drawn(picture: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]


def test_points_and_front_are_one_quantity_that_the_axis_names(report: Report) -> None:
    assert report.search is not None
    assert "function norm L, observed" in drawn(search_figures.draw_tradeoff(report))
    assert "Pareto front" not in drawn(search_figures.draw_tradeoff(report))
    history = [
        entry.model_copy(update={"posterior_norm": 1.1 * entry.function_norm}) for entry in report.search.history
    ]
    search = report.search.model_copy(update={"history": history})
    texts = drawn(search_figures.draw_tradeoff(report.model_copy(update={"search": search})))
    assert "function norm L, posterior mean" in texts
    assert ("Pareto front" in texts) == bool(search.pareto_front)


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.045, "22× smaller"), (0.286, "3.5× smaller"), (1.2, "1.2× larger"), (1.0, "the same")]
)
def test_sizes_and_times_change_in_the_same_form(ratio: float, words: str) -> None:
    assert formatting.format_factor(ratio, "smaller", "larger") == words


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


# Numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(46_800_123, "46.8 MB"), (9_093_500, "9.1 MB"), (99_999, "100.0 kB"), (100_000, "0.1 MB"), (12, "12 B")],
)
def test_bytes(value: int, shown: str) -> None:
    assert formatting.format_bytes(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (512, "512"),
        (1000, "1.00 k"),
        (999_950, "1.00 M"),
        (11_689_512, "11.7 M"),
        (1.8e9, "1.80 G"),
    ],
)
def test_counts(value: float, shown: str) -> None:
    assert formatting.format_count(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1943, "0.19×"),
        (0.064, "0.064×"),
        (0.0064, "0.0064×"),
        (0.999, "1.0×"),
        (2.13, "2.1×"),
        (12.3, "12×"),
    ],
)
def test_ratios(value: float, shown: str) -> None:
    assert formatting.format_ratio(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.984, "98.4 %"), (1, "100 %"), (0.9999, "more than 99.9 %"), (0, "0 %"), (0.0001, "less than 0.1 %")],
)
def test_percent(value: float, shown: str) -> None:
    assert formatting.format_percent(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(("value", "shown"), [(4.16, "4.2 s"), (42, "42 s"), (192, "3 min 12 s"), (7500, "2 h 05 min")])
def test_durations(value: float, shown: str) -> None:
    assert formatting.format_duration(value).replace(formatting.GAP, " ") == shown


@pytest.mark.parametrize(("value", "shown"), [(0, "less than 0.0001"), (0.0031, "0.0031"), (0.5, "0.50"), (1, "1.00")])
def test_probabilities(value: float, shown: str) -> None:
    assert formatting.format_probability(value) == shown


# Figures ------------------------------------------------------------------------------------------------


def test_figures_take_their_colours_from_the_page(page: str) -> None:
    body = page[page.index("<body>") :]
    assert "var(--compressed)" in body
    assert not re.search(r"(fill|stroke): #", body)


def test_figures_have_labels_and_no_fixed_identifiers(page: str) -> None:
    assert page.count("<svg") == page.count('role="img" aria-label="') == 7
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("count", [3, 60])
def test_layer_figures_grow_with_the_layers(count: int) -> None:
    layers = [make_conv(f"features.denseblock{i}.conv", 64, 64, 3, 7, 20) for i in range(count)]
    svg = figures.draw_ranks(layers)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    assert float(box[2]) == pytest.approx(17 * count + 28)
    assert svg.count("20 / 96") == count


def test_dense_layers_stand_apart(report: Report) -> None:
    assert figures.draw_ranks(report.layers).count(">dense<") == 3


def test_unknown_sources_and_exact_networks_are_drawn(report: Report) -> None:
    """Any name may come as a source, and an unchanged network has a norm of zero on a log scale."""
    assert report.search is not None
    odd = [
        entry.model_copy(update={"source": f"_{entry.index % 5} & co", "function_norm": 0.0, "variance": 0.0})
        for entry in report.search.history[:5]
    ]
    changed = report.model_copy(update={"search": report.search.model_copy(update={"history": odd})})
    assert "4 &amp; co" in search_figures.draw_tradeoff(changed)
    assert search_figures.draw_objectives(changed)


def test_reconstruction_figure_tells_kept_from_refused(report: Report) -> None:
    assert report.reconstruction is not None
    refused = figures.draw_reconstruction(report.reconstruction)
    kept = [step.model_copy(update={"kept": True, "after": 1.0}) for step in report.reconstruction.steps]
    all_kept = figures.draw_reconstruction(report.reconstruction.model_copy(update={"steps": kept}))
    assert "not kept" in refused
    assert "not kept" not in all_kept
    for name in ("last factor", "both factors", "batch-norm statistics"):
        assert name in refused


@pytest.mark.parametrize(("before", "after"), [(1e4, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_reconstruction_of_any_size_can_be_drawn(before: float, after: float) -> None:
    step = ReconstructionStep(layer="fc", kind="last factor", before=before, after=after, kept=after < before)
    record = ReconstructionRecord(
        calibration_images=8, check_images=2, before=before, after=after, seconds=1, steps=[step]
    )
    assert ">10000<" in (svg := figures.draw_reconstruction(record)) or before < 1e4
    assert svg.count("<svg") == 1


def test_reconstruction_without_steps_has_no_figure(report: Report) -> None:
    assert report.reconstruction is not None
    assert figures.draw_reconstruction(report.reconstruction.model_copy(update={"steps": []})) == ""


def test_identical_samples_can_be_drawn() -> None:
    flat = {"original_samples_ms": [1.0] * 5, "compressed_samples_ms": [1.0] * 5}
    assert figures.draw_latency("CPU", make_latency(1, 0.5, 1).model_copy(update=flat))


# The terminal --------------------------------------------------------------------------------------------


def test_summary_has_a_line_on_reconstruction(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    line = "reconstruction: function norm 1.61 -> 0.7413 on 100 check images, 19 of 29 steps kept, 154 s"
    assert line in [row.rstrip() for row in lines]


def test_summary_without_reconstruction_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(make_sparse_report(), Path("out"))
    assert "reconstruction" not in capsys.readouterr().out


# Files ---------------------------------------------------------------------------------------------------


def test_round_trip_and_determinism(report: Report, page: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report.model_dump_json())
    again = read_report(tmp_path / "report.json")
    assert again == report
    write_report(again, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_missing_file_is_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*report\.json: No such file"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe", b'{"a": '])
def test_no_json_is_input_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"report\.json is not a report: it does not hold JSON"):
        read_report(path)


def spoil(record: dict[str, Any], place: str, value: Any) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        record = record[parent]
    record[last] = value


@pytest.mark.parametrize(
    ("place", "value"), [("fidelity.images", "many"), ("seed", None), ("search.certificate.met", 3.5)]
)
def test_wrong_field_is_named(place: str, value: Any, report: Report, tmp_path: Path) -> None:
    record = json.loads(report.model_dump_json())
    spoil(record, place, value)
    (tmp_path / "report.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=re.escape(f"field {place}: ")) as caught:
        read_report(tmp_path / "report.json")
    assert "\n" not in str(caught.value)


# A real browser ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report", "sparse"])
def test_page_fits_a_phone(name: str, page: str, sparse_page: str, tmp_path: Path) -> None:
    found = on_a_phone({"report": page, "sparse": sparse_page}[name], tmp_path)
    assert found["scroll"] <= found["inner"] == PHONE_WIDTH
    assert found["pictures"] > 0


def test_browser_shows_the_page(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    text = TextOf(run_browser(tmp_path, path, "--dump-dom")).text
    assert "resnet18: 46.8 MB → 9.1 MB (5.1× smaller)" in text
    assert "rank" in text.lower()


@pytest.mark.parametrize("width", [360, 1200])
def test_screenshots_can_be_taken(width: int, page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    shot = tmp_path / "shot.png"
    size = f"--window-size={width},1600"
    run_browser(tmp_path, tmp_path / "report.html", f"--screenshot={shot}", size)
    assert shot.stat().st_size > 20_000  # an empty page of this size is far smaller


def test_page_asks_for_nothing_outside(page: str, sparse_page: str) -> None:
    for content in (page, sparse_page):
        assert not re.search(r'\b(src|href|action|data)\s*=\s*["\']?(?!["\'#])', content)
        assert not re.search(r"@import|url\((?!#)", content)


def test_a_figure_grows_with_what_would_be_cut_off() -> None:
    def size(labels: int) -> list[float]:
        with page_style("test"):
            axes = new_axes(200, 100, 40, 10, 30, 30)
            for label in range(labels):
                axes.plot([0, 1], [label, label], label=f"line {label}")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
            svg = to_inline_svg(axes, "lines")
        box = re.search(r'viewBox="([^"]*)"', svg)
        assert box is not None
        return [float(number) for number in box[1].split()][2:]

    assert size(1) == pytest.approx([200, 100], abs=0.5)
    assert size(12)[1] > 120
