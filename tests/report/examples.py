"""Reports to render: a run as it comes out of the pipeline, and one of which little is known; and a page's text."""

import random
from html.parser import HTMLParser
from typing import Any

from compressor.cost.records import LatencyRecord, MachineRecord
from compressor.fidelity.records import FidelityRecord
from compressor.network.records import LayerRecord
from compressor.recovery.records import ReconstructionRecord, ReconstructionStep, StepKind
from compressor.report import figures
from compressor.report.records import ImagesRecord, Report
from compressor.schema import Pair
from compressor.search.records import CalibrationRecord, CertificateRecord, EvaluationRecord, JointRecord, SearchRecord
from exporters.records import ExportCheckRecord

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


def make_search(layers: list[LayerRecord]) -> SearchRecord:
    """A search that ended by its joint certificate."""
    history = make_history(layers)
    chosen = figures.list_chosen_ranks(layers)
    joint = JointRecord(failures=3, paths=512, upper=0.0307, confidence=0.9996)
    certificate = CertificateRecord(pointwise=0.0031, joint=joint, delta=0.05, epsilon=0.05, asked="joint", met=True)
    return SearchRecord(
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
    )


def make_fidelity() -> FidelityRecord:
    """Outputs that hardly moved."""
    return FidelityRecord(
        function_norm=0.7712, stderr=0.0419, relative=0.00171, output_energy=451.3, images=500, top1_agreement=0.984
    )


def make_machine() -> MachineRecord:
    """Where figures were measured."""
    return MachineRecord(
        cores=8,
        processor="AMD EPYC 7763",
        platform="Linux-6.1-x86_64",
        versions={"python": "3.11.2", "torch": "2.9.0", "onnxruntime": "1.22.0", "onnx": "1.18.0"},
    )


def make_report() -> Report:
    """A run as it comes out of the pipeline."""
    layers, counted = make_layers(), Pair(original=11_689_512, compressed=2_270_144)
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
        params=counted,
        params_compressible=Pair(original=11_499_520, compressed=2_080_152),
        nonzero_params=counted,
        macs=Pair(original=1_814_073_344, compressed=861_234_432),
        onnx_bytes=Pair(original=46_800_123, compressed=9_093_500),
        gzip_bytes=Pair(original=43_361_000, compressed=8_419_211),
        latency={"CPUExecutionProvider": make_latency(38.2, 0.47, 2)},
        fidelity=make_fidelity(),
        export_check=ExportCheckRecord(
            max_abs_error=3.1e-5,
            max_rel_error=1.4e-6,
            top1_agreement=1.0,
            images=16,
            batch_sizes=[1, 2, 8],
            tolerance=1e-4,
        ),
        top1=Pair(original=0.6976, compressed=0.6915),
        search=make_search(layers),
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
        machine=make_machine(),
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
