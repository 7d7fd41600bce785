"""The command line's options: their types, and the groups that commands share, in the order help shows them."""

import functools
from collections.abc import Callable
from typing import Any

import click

from compressor.cli.types import (
    FILE_BYTES,
    MACS,
    MAX_BATCH,
    MAX_INPUT,
    MAX_SEED,
    METHOD_NAMES,
    PATH,
    PROVIDER_NAMES,
    Channels,
    Delta,
    FiniteRange,
    Fraction,
    Gamma,
    Precisions,
    RankMultiple,
)

Command = Callable[..., Any]


class GroupedCommand(click.Command):
    """A command whose help shows its options under the titles of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(row)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _options(title: str, *decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        decorated = functools.reduce(lambda wrapped, option: option(wrapped), reversed(decorators), command)
        for parameter in getattr(decorated, "__click_params__", ())[-len(decorators) :]:
            parameter.group = title
        return decorated

    return decorate


model_options = _options(
    "Model",
    click.argument("model", type=PATH),
    click.option("--arch", help="torchvision name of the architecture; recognized from the weights if left out."),
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Load a whole pickled module. Such a file can run any code: only for files you trust.",
    ),
)
image_options = _options(
    "Images",
    click.option(
        "--data",
        type=PATH,
        help="Folder of images, with class subfolders if labelled. Left out: images are drawn procedurally.",
    ),
    click.option(
        "--input-size",
        type=click.IntRange(8, MAX_INPUT),
        help="Side of the network's square input in pixels; the short side of an image is resized to it. "
        "Left out: the architecture's published transform (for most: resize to 256, crop 224).",
    ),
    click.option("--mean", type=Channels(), help="Mean per channel of [0, 1] pixels. Left out: as published."),
    click.option("--std", type=Channels(), help="Deviation per channel. Left out: as published."),
    click.option(
        "--max-images",
        type=click.IntRange(min=4),
        help="Use at most this many images: --calibration of them fit factors, up to half of the others, and at most "
        "500 (2,000 by risk or error), search, and the rest judge. Left out: 1,500; 10,000 with --max-drop, which is "
        "bounded the more closely the more images there are.",
    ),
)
layer_options = _options(
    "Layers",
    click.option(
        "--layers",
        "layers",
        multiple=True,
        help="Name pattern of layers to compress (repeat, or separate by commas); 'paper' is the paper's set.",
    ),
    click.option("--skip", multiple=True, help="Name pattern of layers to leave alone; likewise."),
    click.option(
        "--method",
        type=click.Choice(METHOD_NAMES),
        default="auto",
        show_default=True,
        help="auto: measured for every k x k convolution among spatial, Tucker-2 and interpolative. auto+cp: and CP, "
        "which loses less at one size and runs slower. spatial, tucker, cp: these for k x k convolutions. Linear and "
        "1 x 1: SVD. interpolative: rows of any layer. Layers with groups: spatial or SVD.",
    ),
)
FACTOR_KINDS = ("auto", "weight", "refit", "activation")
FACTOR_HELP = (
    "weight: truncated weights. refit: the same, the last factor by least squares on calibration images. activation: "
    "truncated in the metric of the layer's inputs and outputs, then refitted. auto: measured for every layer; weight "
    "where images are drawn. Tucker, CP and interpolative factors know refit and activation as one."
)


def factor_options(choices: tuple[str, ...], default: str, extra_help: str = "") -> Callable[[Command], Command]:
    """How factors are fitted to images, before and after the plan is chosen."""
    return _options(
        "Factors",
        click.option(
            "--factors",
            type=click.Choice(choices),
            default=default,
            show_default=True,
            help=extra_help + FACTOR_HELP,
        ),
        click.option(
            "--calibration",
            type=click.IntRange(min=0),
            default=400,
            show_default=True,
            help="Images (unlabelled) that factors are fitted on: at most this many, and at most 30 % of all.",
        ),
        click.option(
            "--recalibrate/--no-recalibrate",
            default=True,
            show_default=True,
            help="Refit the chosen plan's layers front to back on the inputs they receive in the compressed network.",
        ),
    )


target_options = _options(
    "Target",
    click.option(
        "--target-ratio",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="In place of --gamma: the whole network's size over the original's, at most, in what --cost counts.",
    ),
    click.option("--target-bytes", type=FILE_BYTES, help="In place of --gamma: bytes of model.onnx at most, as 4MB."),
    click.option("--target-macs", type=MACS, help="In place of --gamma: multiply-accumulates at most, as 300M."),
    click.option(
        "--target-latency-ms",
        type=FiniteRange(min=0, min_open=True),
        help="In place of --gamma: median milliseconds at most, in ONNX Runtime on --provider.",
    ),
    click.option(
        "--max-drop",
        type=FiniteRange(0, 100, min_open=True, max_open=True),
        help="In place of --gamma: what may be lost, with 95 % confidence, by images outside the search: points of "
        "top-1 where --data has labels, else the function norm in per cent of the output energy. The smallest network "
        "that keeps to it is sought.",
    ),
)
search_options = _options(
    "Search",
    click.option(
        "--gamma",
        type=Gamma(),
        default="auto",
        show_default=True,
        help="Weight of L, the fidelity, against the size: larger keeps more. auto: losing the whole output costs as "
        "much as the whole size, 1 / E||f*||^2 for the function norm, 1 / log C for the risk and 1 / (1 - 1 / C) for "
        "the error of C classes.",
    ),
    click.option(
        "--fidelity",
        type=click.Choice(["norm", "risk", "error"]),
        default="norm",
        show_default=True,
        help="What L is. norm: the squared distance of the two networks' outputs, which needs no labels. risk, error: "
        "cross-entropy or share of wrong decisions above the original's, on labelled images.",
    ),
    click.option(
        "--form",
        type=click.Choice(["ratio", "rate"]),
        default="ratio",
        show_default=True,
        help="Objective: -gamma L - R (bounded, Eq. 3) or -gamma L + 1/R (Eq. 2).",
    ),
    click.option(
        "--cost",
        type=click.Choice(["params", "bytes", "macs", "latency"]),
        default="params",
        show_default=True,
        help="What R, the size in the objective, counts in the searched layers: parameters, bytes, "
        "multiply-accumulates, or milliseconds in ONNX Runtime on --provider (every layer measured at some ranks, with "
        "--threads and --batch-size).",
    ),
    click.option(
        "--provider",
        type=click.Choice(PROVIDER_NAMES),
        default="cpu",
        show_default=True,
        help="Where ONNX Runtime will run the network: what --cost latency, --target-latency-ms and --rank-multiple "
        "auto are measured on. The report's latency is measured on all that work here.",
    ),
    click.option(
        "--delta",
        type=Delta(),
        default="5%",
        show_default=True,
        help="The certificate's delta: how much better, in the objective, a plan must be to matter. A "
        "percentage is taken of the best objective; the paper's delta is 0.05 itself.",
    ),
    click.option(
        "--epsilon",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="The certificate's epsilon: the probability at which the search may stop. Left out: 0.05 for joint, the "
        "paper's 0.005 for pointwise.",
    ),
    click.option(
        "--certificate",
        type=click.Choice(["joint", "pointwise"]),
        default="joint",
        show_default=True,
        help="What stops the search: the probability that any plan is better by more than delta, from draws of the "
        "Gaussian process; or that a given other plan is (Eq. 12, the paper's).",
    ),
    click.option(
        "--acquisition",
        type=click.Choice(["pac", "pac-ei", "ei", "pi", "lcb"]),
        default="pac",
        show_default=True,
        help="Which plan is proposed next: most probable to beat the best by more than delta (Eq. 11); by the largest "
        "expected gain beyond that; or expected improvement, probability of improvement, confidence bound.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=2),
        default=50,
        show_default=True,
        help="Images per look at a candidate.",
    ),
    click.option(
        "--start",
        type=click.Choice(["sensitivity", "random"]),
        default="sensitivity",
        show_default=True,
        help="First plans: from one-layer-at-a-time sensitivities, or random as in the paper.",
    ),
    click.option(
        "--refine/--no-refine",
        default=True,
        show_default=True,
        help="Improve plans by steps of a linear model of all ranks, each checked on other images; the paper has none.",
    ),
    click.option(
        "--surrogate",
        type=click.Choice(["log", "loss", "plain"]),
        default="log",
        show_default=True,
        help="What the Gaussian process models: log L, L itself, or plainly J as a whole, as in the paper.",
    ),
    click.option(
        "--prior-mean",
        type=click.Choice(["measured", "energies", "none"]),
        default="measured",
        show_default=True,
        help="What the process expects before any look: what layers were measured to lose, the energy that truncation "
        "gives up times sensitivities learnt, or nothing (as ever with --surrogate plain).",
    ),
    click.option(
        "--coordinates",
        type=click.Choice(["log", "linear"]),
        default="log",
        show_default=True,
        help="Scale of the ranks in the search space; the paper's is linear.",
    ),
    click.option(
        "--rank-multiple",
        type=RankMultiple(),
        default="1",
        show_default=True,
        help="Ranks from this number on are multiples of it. auto: measured, what ONNX Runtime runs fastest here.",
    ),
    click.option(
        "--candidates",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Plans proposed at once, so that workers need not wait; a few more are looked at than one by one.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that look at layers and candidates at once, each with the network in its memory. The plan "
        "found depends on --candidates, not on this.",
    ),
    click.option(
        "--backend",
        default="loky",
        show_default=True,
        help="joblib's backend for the workers: loky or threading on this machine; dask, ray, spark or any other that "
        "is installed and registered.",
    ),
    click.option(
        "--max-evaluations",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        help="Stop after this many looks at whole plans.",
    ),
    click.option(
        "--max-seconds",
        type=FiniteRange(min=0, min_open=True),
        help="Stop the search after this time; looks at single layers, which come first, are always completed.",
    ),
    click.option(
        "--prune",
        type=Fraction(),
        default="none",
        show_default=True,
        help="Final pass: set this share of all weights, the smallest, to zero. auto: searched with the ranks, R "
        "counting the weights that are not zero (--cost params only).",
    ),
)
tune_options = _options(
    "Fine-tuning",
    click.option(
        "--finetune",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="EPOCHS",
        help="Train the compressed network's weights for this many epochs; ranks stay, and so do pruned zeros.",
    ),
    click.option(
        "--train-data",
        type=PATH,
        help="Folder of images to fine-tune on; those that search or judge are left out. Left out: the images of "
        "--data that do not judge.",
    ),
    click.option(
        "--max-train-images",
        type=click.IntRange(min=8),
        default=20_000,
        show_default=True,
        help="Use at most this many images of --train-data.",
    ),
    click.option(
        "--finetune-by",
        type=click.Choice(["teacher", "labels"]),
        default="teacher",
        show_default=True,
        help="teacher: towards the original's outputs, which needs no labels. labels: cross-entropy; the folders' "
        "subfolders are the classes.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(["cosine", "step", "cyclic"]),
        default="cosine",
        show_default=True,
        help="Learning rate. cosine: from the highest to zero. step: divided by 10 each epoch. cyclic: between 1e-7 "
        "and the highest, once an epoch. The last two are the paper's.",
    ),
    click.option(
        "--learning-rate",
        type=FiniteRange(min=0, max=10, min_open=True),
        help="Highest learning rate. Left out: 0.003 for cosine, the paper's 1e-4 for step and cyclic.",
    ),
    click.option(
        "--autocast",
        is_flag=True,
        help="Fine-tune with passes in bfloat16: faster on GPUs and on CPUs that have it; weights stay in float32.",
    ),
)
run_options = _options(
    "Machine and files",
    click.option("--device", default="cpu", show_default=True, help="Where candidates run: cpu, cuda, cuda:1."),
    click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of all."),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads of ONNX Runtime while latency is measured.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1, MAX_BATCH),
        default=1,
        show_default=True,
        help="Batch size while latency is measured.",
    ),
    click.option(
        "--precision",
        "precisions",
        type=Precisions(),
        multiple=True,
        default=["fp32"],
        show_default=True,
        help="Files to write (repeat, or separate by commas): model.onnx in float32 is always written; int8 and fp16 "
        "add model.int8.onnx, quantized on the calibration images, and model.fp16.onnx, float32 outside.",
    ),
    click.option(
        "--format",
        "formats",
        type=click.Choice(["onnx", "ort"]),
        multiple=True,
        default=["onnx"],
        show_default=True,
        help="ort adds files in ORT format, for a minimal build of ONNX Runtime, each with the list of operators that "
        "the build needs; ONNX is always written.",
    ),
    click.option("--zip", is_flag=True, help="Add zipped files (.gz), where weights set to zero take no room."),
    click.option(
        "--opset",
        type=click.IntRange(min=1),
        help="ONNX operator set of the files. Left out: the exporter's own choice.",
    ),
    click.option("--out", type=PATH, help="Folder to write, new or empty. Left out: MODEL's name with -compressed."),
    click.option("--json", "as_json", is_flag=True, help="Print report.json on stdout in place of the table."),
)
