"""Options of the rank search: targets, objective, certificate, the search itself, and processes."""

import click
import cloup

from compressor.cli.options import Command
from compressor.cli.types import (
    FILE_BYTES,
    MACS,
    PROVIDER_NAMES,
    Delta,
    FiniteRange,
    Fraction,
    Gamma,
    RankMultiple,
)
from compressor.search.acquisition.registry import ACQUISITIONS
from compressor.workers.registry import DEFAULT_BACKEND

_target_group = cloup.option_group(
    "Target",
    cloup.option(
        "--target-ratio",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="In place of --gamma: at most this share of the whole network's size, in what --cost counts.",
    ),
    cloup.option("--target-bytes", type=FILE_BYTES, help="In place of --gamma: bytes of model.onnx at most, as 4MB."),
    cloup.option("--target-macs", type=MACS, help="In place of --gamma: multiply-accumulates at most, as 300M."),
    cloup.option(
        "--target-latency-ms",
        type=FiniteRange(min=0, min_open=True),
        help="In place of --gamma: median milliseconds at most, in ONNX Runtime on --provider.",
    ),
    cloup.option(
        "--max-drop",
        type=FiniteRange(0, 100, min_open=True, max_open=True),
        help="In place of --gamma: the smallest network that loses at most this much, with 95 % confidence from "
        "the search's images and others. Points of top-1 where --data has labels, of mean IoU with masks and of mean "
        "AP with boxes, else function norm in per cent of the output energy.",
    ),
)
_objective_group = cloup.option_group(
    "Objective",
    cloup.option(
        "--gamma",
        type=Gamma(),
        default="auto",
        show_default=True,
        help="Weight of the loss L against the size R: larger keeps more. auto: losing a quarter of the output costs "
        "as much as the whole size, 4 / E||f*||^2 for the function norm, 4 / log C for the risk and 4 / (1 - 1 / C) "
        "for the error of C classes.",
    ),
    cloup.option(
        "--fidelity",
        type=click.Choice(["norm", "risk", "error"]),
        default="norm",
        show_default=True,
        help="What L is. norm: the function norm, the squared distance of the two networks' outputs, which needs no "
        "labels. risk, error: cross-entropy or share of wrong decisions above the original's, on labelled images.",
    ),
    cloup.option(
        "--form",
        type=click.Choice(["ratio", "rate"]),
        default="ratio",
        show_default=True,
        help="Objective J: -gamma L - R (bounded, Eq. 3) or -gamma L + 1/R (Eq. 2).",
    ),
    cloup.option(
        "--cost",
        type=click.Choice(["params", "bytes", "macs", "latency"]),
        default="params",
        show_default=True,
        help="What R counts in the searched layers: parameters, bytes, multiply-accumulates, or milliseconds in ONNX "
        "Runtime on --provider (every layer measured at some ranks, with --threads and --batch-size).",
    ),
    cloup.option(
        "--provider",
        type=click.Choice(PROVIDER_NAMES),
        default="cpu",
        show_default=True,
        help="Where ONNX Runtime will run the network: --cost latency, --target-latency-ms and --rank-multiple auto "
        "are measured there. The report's latency is measured on all providers that work here.",
    ),
    cloup.option(
        "--prune",
        type=Fraction(),
        default="none",
        show_default=True,
        help="Last step: set this share of all weights, the smallest, to zero. auto: searched with the ranks, R "
        "counting the weights that are not zero (--cost params only).",
    ),
)
_certificate_group = cloup.option_group(
    "Certificate",
    cloup.option(
        "--certificate",
        type=click.Choice(["joint", "pointwise"]),
        default="joint",
        show_default=True,
        help="What stops the search. joint: the probability, from sample paths of the posterior, that any plan is "
        "better by more than delta. pointwise: the probability that a given other plan is (Eq. 12, the paper's).",
    ),
    cloup.option(
        "--delta",
        type=Delta(),
        default="5%",
        show_default=True,
        help="How much better a plan must be, in the objective, to matter. A percentage is of the best objective; the "
        "paper's delta is 0.05 itself.",
    ),
    cloup.option(
        "--epsilon",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="The failure probability at which the search may stop. Left out: 0.05 for joint, the paper's 0.005 for "
        "pointwise.",
    ),
)
_search_group = cloup.option_group(
    "Search",
    cloup.option(
        "--acquisition",
        type=click.Choice(list(ACQUISITIONS)),
        default="pac",
        show_default=True,
        help="Acquisition function. pac: probability of beating the best plan by more than delta (Eq. 11). pac-ei: "
        "expected gain beyond delta. Or expected improvement, probability of improvement, confidence bound.",
    ),
    cloup.option(
        "--surrogate",
        type=click.Choice(["log", "loss", "objective"]),
        default="log",
        show_default=True,
        help="What the Gaussian process models: log L, L, or the objective J as a whole, as in the paper.",
    ),
    cloup.option(
        "--prior-mean",
        type=click.Choice(["measured", "energies", "none"]),
        default="measured",
        show_default=True,
        help="Prior mean of the Gaussian process. measured: the losses of single layers, added up. energies: the "
        "energy that truncation discards, times sensitivities learnt. none: constant (always where the process models "
        "J).",
    ),
    cloup.option(
        "--noise",
        type=click.Choice(["pooled", "sample"]),
        default="pooled",
        show_default=True,
        help="The known noise of evaluations. pooled: from all of them together, correlated where they share images. "
        "sample: each one's own sample variance, independent, as in the paper.",
    ),
    cloup.option(
        "--refit",
        type=click.Choice(["growing", "stopping"]),
        default="growing",
        show_default=True,
        help="When hyperparameters are fitted again. growing: with every tenth more evaluations. stopping: also before "
        "the search may stop, so that its certificate rests on all evaluations.",
    ),
    cloup.option(
        "--excess-noise/--no-excess-noise",
        default=True,
        show_default=True,
        help="Also fit noise that the sampling of images does not explain. The paper has none.",
    ),
    cloup.option(
        "--remeasure/--no-remeasure",
        default=True,
        show_default=True,
        help="Evaluate the best plan again, on other images, where that says more than a new plan would. The paper "
        "always evaluates the plan proposed.",
    ),
    cloup.option(
        "--samples",
        type=click.IntRange(min=2),
        default=50,
        show_default=True,
        help="Images per evaluation of a plan.",
    ),
    cloup.option(
        "--start",
        type=click.Choice(["sensitivity", "random"]),
        default="sensitivity",
        show_default=True,
        help="Initial design: from one-layer-at-a-time sensitivities, or random as in the paper.",
    ),
    cloup.option(
        "--refine/--no-refine",
        default=True,
        show_default=True,
        help="Gauss-Newton steps from the initial design, by a linear model of the outputs in all ranks; each is "
        "checked on other images. The paper has none.",
    ),
    cloup.option(
        "--coordinates",
        type=click.Choice(["log", "linear"]),
        default="log",
        show_default=True,
        help="Scale of the ranks in the search space; the paper's is linear.",
    ),
    cloup.option(
        "--rank-multiple",
        type=RankMultiple(),
        default="1",
        show_default=True,
        help="Round ranks of at least this number to multiples of it, since kernels work in blocks. auto: what ONNX "
        "Runtime runs fastest here, measured.",
    ),
    cloup.option(
        "--max-evaluations",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        help="Stop after this many evaluations of whole plans.",
    ),
    cloup.option(
        "--max-seconds",
        type=FiniteRange(min=0, min_open=True),
        help="Stop the search after this time. Evaluations of single layers, which come first, are always completed.",
    ),
)
_process_group = cloup.option_group(
    "Processes",
    cloup.option(
        "--candidates",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Plans proposed at once, so that workers need not wait; takes a few more evaluations than one by one.",
    ),
    cloup.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that evaluate plans, each with the network in its memory. The plan found depends on "
        "--candidates, not on this.",
    ),
    cloup.option(
        "--backend",
        default=DEFAULT_BACKEND,
        show_default=True,
        help="What runs the workers: loky or threading on this machine, ray or dask (pip install 'ray[default]' or "
        "'dask[distributed]') here or on a cluster, or another backend that is registered with joblib.",
    ),
    cloup.option(
        "--cluster",
        metavar="ADDRESS",
        help="With --backend ray or dask: a cluster that runs already, such as 10.0.0.1:6379 or auto for Ray, "
        "tcp://10.0.0.1:8786 for Dask. Left out: one is started on this machine, and ends with the run.",
    ),
)


def search_options(command: Command) -> Command:
    """Everything about the search, in five groups."""
    for group in (_process_group, _search_group, _certificate_group, _objective_group, _target_group):
        command = group(command)
    return command
