"""Sections of results.md on factors, fine-tuning and recipes."""

from functools import partial

from docs.generate.formatting import Row, Study, accuracy_change, machine, section, table

FACTORS = {
    "weight": "weight (as AIMET, the paper)",
    "refit": "weight, last factor refitted",
    "activation": "activation-aware, refitted",
    "auto": "measured per layer",
    "auto+cp": "measured per layer, CP among the methods",
}
REMOVED = {"": "", "hidden": "hidden", "all": "all", "all, one share": "all, the same share of each group"}
CRITERIA = ("", "magnitude", "Taylor", "batch-norm scale")
STAGES = {"cut": "as cut", "fitted": "fitted", "tuned": "fine-tuned"}
STARTS = {"auto": "fitted factors", "weight": "factors of the weights alone"}


def factors(study: Study) -> str:
    """Factorizations at equal numbers of parameters, before and after layer-wise reconstruction."""
    about = (
        f"{study['network']}, {study['layers']} layers ({study['patterns']}), every layer at the same fraction of its "
        f"break-even rank (other methods at as many parameters), no search, no fine-tuning. Function norm and top-1 on "
        f"{study['evaluated_on']} images outside calibration. Reconstructed: with the layer-wise reconstruction of "
        f"`--recalibrate`. Time: median over the original's, one image on one thread. {machine(study)}"
    )
    columns = {
        "fraction": lambda r: f"{r['fraction']:g}",
        "factors": lambda r: FACTORS[r["chain"]] + (", reconstructed" if r["recalibrated"] else ""),
        "method": lambda r: "measured" if r["chain"].startswith("auto") else r["method"],
        "fitted on": _fitted_on,
        "parameters": lambda r: f"{r['params']:,}",
        "function norm": lambda r: f"{r['function_norm']:.3f} ± {r['stderr']:.3f}",
        "relative": lambda r: f"{r['relative']:.4f}",
        "top-1": lambda r: accuracy_change(r["top1_original"], r["top1"]),
        "steps kept": lambda r: f"{r['kept']} of {r['steps']}" if r["recalibrated"] else "",
        "time": lambda r: f"{r['latency_ratio']:.2f}" if "latency_ratio" in r else "",
    }
    rows = sorted(study["rows"], key=lambda row: -row["fraction"])
    return section(f"{study['study']}: what the factors alone are worth", about, table(columns, rows))


def _fitted_on(row: Row) -> str:
    return "" if row["chain"] == "weight" and not row["recalibrated"] else f"{row['fit_on']}, {row['images']}"


def finetune(study: Study) -> str:
    """Accuracy and function norm before and after fine-tuning."""
    about = (
        f"{study['network']} at {100 * study['share']:.1f} % of its convolutions' weights (ranks of a search at gamma "
        f"{study['gamma']:g}, all scaled by one factor); {study['epochs']} epochs. Function norm and top-1 on test "
        f"images, which neither search nor fine-tuning saw. Recovered: the share of the drop in top-1. {machine(study)}"
    )
    columns = {
        "start": lambda r: STARTS[r["factors"]] + (", reconstructed" if r["recalibrated"] else ""),
        "learns from, schedule": lambda r: r["way"].rpartition(", 0.")[0] or r["way"],
        "highest learning rate": lambda r: f"{r['learning_rate']:g}",
        "images": lambda r: f"{r['train_images']:,}",
        "epoch kept": lambda r: f"{r['kept_epoch']} of {r['epochs']}",
        "function norm": lambda r: f"{r['norm_before']:.3f} → {r['norm_after']:.3f}",
        "original's top-1": lambda r: f"{100 * r['top1_original']:.2f}",
        "top-1": lambda r: f"{100 * r['top1_before']:.2f} → {100 * r['top1_after']:.2f}",
        "recovered": lambda r: f"{100 * recovered_share(r):.0f} %",
        "test images": lambda r: f"{r['evaluated_on']:,}",
        "s": lambda r: f"{r['seconds']:.0f}",
    }
    return section(f"{study['study']}: what fine-tuning recovers", about, table(columns, study["rows"]))


def recovered_share(row: Row) -> float:
    """Share of the drop in top-1 that fine-tuning made up for."""
    return float((row["top1_after"] - row["top1_before"]) / (row["top1_original"] - row["top1_before"]))


def channels(study: Study) -> str:
    """Hidden channels, low rank and torch-pruning at equal operations."""
    trained = any("tuned" in row for row in study["rows"])
    tuned = (
        f" Fine-tuned: the better of the two on other images, {study['epochs']} epochs towards the original's outputs "
        f"on {study['train_images']:,} training images, a fifth of which say what epoch is kept (0: none is better), "
        f"with fixed batch norms and the same schedule for all."
        if trained
        else ""
    )
    about = (
        f"{study['network']} at shares of its {study['macs'] / 1e6:.0f} M multiply-accumulates, fitted on "
        f"{study['fit_on']} images; L as a share of E||f*||^2 = {study['output_energy']:.4g}, and top-1, on "
        f"{study['evaluated_on']:,} others, of which the original has {100 * study['top1_original']:.1f} % right. "
        f"Widths and ranks are multiples of {study['multiple']}. Hidden channels and ranks are allocated by the losses "
        f"of each group or layer alone, without the search. torch-pruning {study['torch_pruning']}: its criteria with "
        f"their defaults, all groups in one ranking; how much goes is found by bisection, to within a hundredth of the "
        f"operations or else above, and no group falls below a fifth, as with hidden channels. Removed: the hidden "
        f"channels that this project may remove, too, or those of residual streams as well. Taylor's gradients and "
        f"new batch-norm statistics are from the images to fit on. Fitted, without training: hidden channels by "
        f"refits, low rank by reconstruction, torch-pruning by new batch-norm statistics.{tuned} {machine(study)}"
    )
    reached = [row for row in study["rows"] if "operations" in row]
    stages = [stage for stage in STAGES if any(stage in row for row in reached)]
    columns = {
        "operations": lambda r: f"{r['operations']:.3f}",
        "way": lambda r: r["way"] + (f", {r['criterion']}" if r["criterion"] else ""),
        "removed": lambda r: "hidden" if r["way"] == "hidden channels" else REMOVED[r["scope"]],
        "parameters": lambda r: f"{r['params']:.3f}",
        **{f"L, {STAGES[stage]}": partial(_channel_norm, stage, study["output_energy"]) for stage in stages},
        **{f"top-1, {STAGES[stage]}": partial(_channel_top1, stage) for stage in stages},
    }
    if trained:
        columns["epoch kept"] = lambda r: str(r["tuned"]["kept_epoch"]) if "tuned" in r else ""
    rows = sorted(reached, key=lambda r: (-r["share"], list(REMOVED).index(r["scope"]), CRITERIA.index(r["criterion"])))
    title = f"{study['study']}: hidden channels, low rank and torch-pruning at equal operations"
    return section(title, about, table(columns, rows), *_unreached(study["rows"]))


def _channel_norm(stage: str, energy: float, row: Row) -> str:
    if stage not in row:
        return ""
    return f"{row[stage]['function_norm'] / energy:.4f} ± {row[stage]['stderr'] / energy:.4f}"


def _channel_top1(stage: str, row: Row) -> str:
    return f"{100 * row[stage]['top1']:.1f}" if "top1" in row.get(stage, {}) else ""


def _unreached(rows: list[Row]) -> list[str]:
    """A line for each way that gets no network as small as asked for."""
    names = [
        f"{', '.join(filter(None, [row['way'], row['criterion'], row['scope']]))} at {row['share']:g}"
        for row in rows
        if "operations" not in row
    ]
    return [f"Not so small at a fifth of all channels: {'; '.join(names)}."] if names else []


def recipe(study: Study) -> str:
    """The stages of the paper's recipe, each with what it left."""
    ending = "the same weights to the last bit" if study["same_as_undisturbed"] else "OTHER weights"
    about = (
        f"Six convolutions with batch norms and three linear layers, {study['params']:,} parameters, trained here on "
        f"{study['trained_on']:,} CIFAR-10 images of 32 px; `--recipe {study['recipe']}`, fine-tuned on "
        f"{study['tuned_on']:,} of the training images. Accuracies on {study['evaluated_on']} test images; the ratio "
        f"counts weights that are not zero, over the original's (the columns of the paper's Table 5). Killed in "
        f"{', '.join(study['killed'])} and continued with `--resume`: {ending} as an undisturbed run. The last "
        f"network's latency is {study['latency_ratio']:.2f} of the original's, its file within "
        f"{study['export_check']:.0e} of torch. {machine(study)}"
    )
    columns = {
        "network": lambda r: r["network"],
        "top-1": lambda r: f"{100 * r['top1']:.2f}",
        "top-5": lambda r: f"{100 * r['top5']:.2f}",
        "ratio %": lambda r: f"{100 * r['ratio']:.2f}",
        "function norm": lambda r: f"{r['function_norm']:.3f}",
        "s": lambda r: f"{r['seconds']:.0f}",
        "what": lambda r: r["what"],
    }
    return section(f"{study['study']}: the paper's stages on a small VGG", about, table(columns, study["rows"]))


def structures(study: Study) -> str:
    """Networks of other kinds at half their operations, beside uniform plans."""
    about = (
        f"Small networks of torchvision's kinds, trained here on {study['trained_on']:,} scenes of shapes cut from "
        f"{study['shapes_of']}, or clips of digits that move, and compressed by `bocompress-export --target-macs` with "
        f"half of their multiply-accumulates; uniform: every layer at the same share of its break-even rank, by "
        f"`bocompress apply`. Figures on test images outside search and training, in %; outputs moved by a share of "
        f"their energy. All files are verified. {machine(study)}"
    )
    columns = {
        "network": lambda r: r["network"],
        "figure": lambda r: r["metric"],
        "images": lambda r: str(r["searched"]["test_images"]),
        "original": lambda r: f"{100 * r['searched']['before']:.1f}",
        "searched": lambda r: f"{100 * r['searched']['after']:.1f}",
        "uniform": lambda r: f"{100 * r['uniform']['after']:.1f}",
        "moved %": lambda r: f"{100 * r['searched']['moved']:.1f}",
        "uniform moved %": lambda r: f"{100 * r['uniform']['moved']:.1f}",
        "MACs": lambda r: f"{r['searched']['macs']:.3f}",
        "uniform MACs": lambda r: f"{r['uniform']['macs']:.3f}",
        "parameters": lambda r: f"{r['searched']['params']:.3f}",
        "export check": lambda r: f"{r['searched']['export_check']:.0e}",
    }
    title = f"{study['study']}: segmentation, clips and detection at half the operations"
    return section(title, about, table(columns, study["rows"]))
