"""The options that commands share, in groups, in the order in which help shows them; the search's are next door."""

from collections.abc import Callable
from typing import Any

import click
import cloup

from compressor.cli.completion import complete_architecture, complete_recipe
from compressor.cli.config import require_unless_printing
from compressor.cli.types import (
    FILE_BYTES,
    MAX_BATCH,
    MAX_FRAMES,
    MAX_INPUT,
    MAX_SEED,
    PATH,
    Channels,
    FiniteRange,
    Precisions,
    Weights,
)
from compressor.factorization.registry import method_choices

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

model_group = cloup.option_group(
    "Model",
    cloup.option(
        "--arch",
        shell_complete=complete_architecture,
        help="torchvision's name of the architecture; or package.module:function (or file.py:function), a function "
        "or class of yours that gives the empty network, or timm:NAME. Left out: recognized from the weights.",
    ),
    cloup.option(
        "--weights",
        metavar="model|ema|PREFIX",
        help="Which network of several in the file: model, the one in training; ema, its average; or the keys that "
        "lead to one, such as state_dict.student. Left out: model, where the file has it.",
    ),
    cloup.option(
        "--trust-pickle",
        is_flag=True,
        help="Load a whole pickled module as it is. Such a file can run any code: only for files you trust. Without "
        "it, tensors are read and nothing of the file runs.",
    ),
    cloup.option(
        "--keep-aux",
        is_flag=True,
        help="Keep heads that were for training alone (the auxiliary ones of FCN and DeepLabV3). Left out: they are "
        "removed from the network, and from original.onnx.",
    ),
)

output_options: Decorator = cloup.option_group(
    "Outputs",
    cloup.option(
        "--output-weights",
        type=Weights(),
        metavar="NAME=WEIGHT,...",
        help="How much each output of a network counts that has several, as out=1,aux=0. Left out: all count alike, "
        "each by the share of its own energy that is lost.",
    ),
)


def model_options(command: Command) -> Command:
    """The checkpoint and how it is read."""
    argument = click.argument("model", metavar="MODEL", type=PATH, required=False, callback=require_unless_printing)
    return argument(model_group(command))


image_options: Decorator = cloup.option_group(
    "Images",
    cloup.option(
        "--data",
        type=PATH,
        help="Folder of images, with one subfolder per class if labelled; with masks, boxes or frames for networks "
        "that segment, detect, or take clips or pairs of frames. Left out: synthetic images.",
    ),
    cloup.option(
        "--input-size",
        type=click.IntRange(8, MAX_INPUT),
        help="Side of the network's square input in pixels; the short side of an image is resized to it. "
        "Left out: what an ONNX file says, or the architecture's published transform (for most: resize to 256, crop "
        "224).",
    ),
    cloup.option(
        "--num-frames",
        type=click.IntRange(1, MAX_FRAMES),
        help="Frames of a clip that the network sees, evenly over the whole clip. Left out: as published (most: 16).",
    ),
    cloup.option("--mean", type=Channels(), help="Mean of pixels in [0, 1], one per channel. Left out: as published."),
    cloup.option("--std", type=Channels(), help="Standard deviation, likewise. Left out: as published."),
    cloup.option(
        "--max-images",
        type=click.IntRange(min=4),
        help="Use at most this many images. Left out: 1,500, or 10,000 where a drop is limited, whose bound tightens "
        "with their number; those beyond are read for the test alone, up to 10,000, or as many as the network takes in "
        "a few minutes.",
    ),
)

layer_options: Decorator = cloup.option_group(
    "Layers",
    cloup.option(
        "--layers",
        "layers",
        multiple=True,
        help="Name pattern of layers to compress (repeat, or separate by commas); 'paper' is the paper's set.",
    ),
    cloup.option("--skip", multiple=True, help="Name pattern of layers to leave alone; likewise."),
    cloup.option(
        "--method",
        type=click.Choice(method_choices()),
        default="auto",
        show_default=True,
        help="What layers become. auto: k x k convolutions the best of spatial, Tucker-2 and interpolative factors, "
        "measured for each, and groups of layers fewer channels between them where that loses less than factors. "
        "auto+cp: CP as well, which loses less at equal size and runs slower. spatial, tucker, cp: that one, and no "
        "channels are removed. Linear and 1 x 1 layers: SVD. interpolative: rows of any layer. Layers with groups: "
        "spatial or SVD. channels: fewer channels wherever there are some to remove; the other layers as by auto.",
    ),
)

FACTOR_KINDS = ("auto", "weight", "refit", "activation")
FACTOR_HELP = (
    "weight: truncated weights. refit: the same, with the last factor fitted to calibration "
    "images by least squares. activation: truncated with respect to the second moments of the layer's inputs and "
    "output gradients, then refitted. auto: the best of these, measured for every layer; weight with synthetic images. "
    "For Tucker, CP and interpolative factors, refit and activation are the same."
)


def factor_options(kinds: tuple[str, ...], default: str, extra_help: str = "") -> Decorator:
    """How factors are fitted to images, before and after the plan is chosen.

    Args:
        kinds: choices of --factors.
        default: the one taken when the option is left out.
        extra_help: what the help of --factors says of further kinds, before the others.
    """
    return cloup.option_group(
        "Factors",
        cloup.option(
            "--factors",
            type=click.Choice(kinds),
            default=default,
            show_default=True,
            help=f"How factors are found. {extra_help}{FACTOR_HELP}",
        ),
        cloup.option(
            "--calibration",
            type=click.IntRange(min=0),
            default=400,
            show_default=True,
            help="Calibration images (no labels needed), on which factors are fitted: at most this many, and at most "
            "30 % of all.",
        ),
        cloup.option(
            "--recalibrate/--no-recalibrate",
            default=True,
            show_default=True,
            help="Layer-wise reconstruction: refit the layers of the chosen plan, front to back, on the inputs that "
            "they receive in the compressed network.",
        ),
    )


tune_options: Decorator = cloup.option_group(
    "Fine-tuning",
    cloup.option(
        "--finetune",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="EPOCHS",
        help="Train the weights of the compressed network for this many epochs; ranks and pruned zeros stay.",
    ),
    cloup.option(
        "--train-data",
        type=PATH,
        help="Folder of images to fine-tune on, without those used for the search, validation or test. Left out: the "
        "images of --data that are for neither validation nor test.",
    ),
    cloup.option(
        "--max-train-images",
        type=click.IntRange(min=8),
        default=20_000,
        show_default=True,
        help="Use at most this many images of --train-data.",
    ),
    cloup.option(
        "--finetune-by",
        type=click.Choice(["teacher", "labels"]),
        default="teacher",
        show_default=True,
        help="teacher: distillation from the original's outputs, which needs no labels. labels: cross-entropy, with "
        "one subfolder per class.",
    ),
    cloup.option(
        "--schedule",
        type=click.Choice(["cosine", "step", "cyclic"]),
        default="cosine",
        show_default=True,
        help="Learning rate. cosine: from the highest to zero. step: divided by 10 each epoch. cyclic: between 1e-7 "
        "and the highest, once an epoch. The last two are the paper's.",
    ),
    cloup.option(
        "--learning-rate",
        type=FiniteRange(min=0, max=10, min_open=True),
        help="Highest learning rate. Left out: 0.003 for cosine, the paper's 1e-4 for step and cyclic.",
    ),
    cloup.option(
        "--autocast",
        is_flag=True,
        help="Fine-tune with passes in bfloat16: faster on GPUs and on CPUs that have it. Weights stay in float32.",
    ),
)

run_options: Decorator = cloup.option_group(
    "Machine and files",
    cloup.option("--device", default="cpu", show_default=True, help="Where torch runs networks: cpu, cuda, cuda:1."),
    cloup.option(
        "--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of everything random."
    ),
    cloup.option(
        "--max-memory",
        type=FILE_BYTES,
        metavar="BYTES",
        help="Memory that the process may hold, such as 2GB: work is done in smaller pieces, and on Linux the run ends "
        "with a sentence rather than take more. Each worker may hold as much. Left out: no limit.",
    ),
    cloup.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads of ONNX Runtime while latency is measured.",
    ),
    cloup.option(
        "--batch-size",
        type=click.IntRange(1, MAX_BATCH),
        default=1,
        show_default=True,
        help="Batch size while latency is measured.",
    ),
    cloup.option(
        "--precision",
        "precisions",
        type=Precisions(),
        multiple=True,
        default=["fp32"],
        show_default=True,
        help="Files to write (repeat, or separate by commas). model.onnx in float32 is always written; int8 adds "
        "model.int8.onnx, quantized on the calibration images, and fp16 adds model.fp16.onnx, with inputs and outputs "
        "in float32.",
    ),
    cloup.option(
        "--format",
        "formats",
        type=click.Choice(["onnx", "ort"]),
        multiple=True,
        default=["onnx"],
        show_default=True,
        help="ort adds files in ORT format, for a minimal build of ONNX Runtime, each with the list of operators that "
        "the build needs. ONNX is always written.",
    ),
    cloup.option("--zip", is_flag=True, help="Add zipped files (.gz), in which weights set to zero take no room."),
    cloup.option(
        "--opset",
        type=click.IntRange(min=1),
        help="ONNX operator set of the files, for older compilers and runtimes: convolutional networks from 9, Swin "
        "from 13, ViT from 14; int8 needs 13. Left out: the exporter's own choice.",
    ),
    cloup.option(
        "--static-batch",
        type=click.IntRange(1, MAX_BATCH),
        metavar="N",
        help="Files that take batches of N images only, as compilers for NPUs and TensorRT want them. Files are "
        "verified and timed with N. Left out: any batch size.",
    ),
    cloup.option(
        "--normalize",
        type=click.Choice(["outside", "in-graph"]),
        default="outside",
        show_default=True,
        help="Who subtracts the mean and divides by the standard deviation. outside: whoever runs the file. in-graph: "
        "the file itself, which then takes pixels in [0, 1].",
    ),
    cloup.option("--out", type=PATH, help="Folder to write, new or empty. Left out: MODEL's name with -compressed."),
    cloup.option(
        "--overwrite",
        is_flag=True,
        help="Remove an earlier run in --out, once network, images and options are checked: it is gone even if this "
        "run then fails. Other files there are refused.",
    ),
    cloup.option("--quiet", is_flag=True, help="No progress, only the last lines of the result, and errors."),
    cloup.option("--json", "as_json", is_flag=True, help="Print report.json on stdout in place of the tables."),
)

recipe_option: Decorator = cloup.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=complete_recipe,
    help="Stages in place of one search: vgg, the paper's (compress convolutions, fine-tune, compress linear layers, "
    "fine-tune, prune), or a TOML file like it, such as `bocompress recipes vgg` prints.",
)
