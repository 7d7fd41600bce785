"""Sections of results.md on delivered files: sizes, latencies, coverage, the benchmark itself."""

from collections.abc import Callable
from statistics import mean

from docs.generate.formatting import (
    Row,
    Study,
    accuracy_change,
    asked_for,
    flat_interval,
    grouped,
    machine,
    median_of,
    nested_interval,
    section,
    signed_percent,
    table,
)


def exported(study: Study) -> str:
    """Whole runs of the command line by each fidelity."""
    about = (
        f"{study['network']} by `bocompress-export`, with factors fitted and reconstructed; medians over "
        f"{study['seeds']} seeds on {study['rows'][0]['evaluated_on']:,} test images. In brackets: gamma times the "
        "loss of a network without outputs, 4 by default. Whole run: with export, verification, latency and report. "
        f"{machine(study)}"
    )
    columns = {
        "fidelity": lambda r: r[0]["fidelity"],
        "gamma": lambda r: f"{r[0]['gamma']:.3g} ({r[0]['factor']:g})",
        "ratio %": lambda r: f"{100 * median_of(r, 'ratio'):.2f}",
        "top-1": lambda r: accuracy_change(r[0]["top1_original"], median_of(r, "top1")),
        "evaluations": lambda r: f"{median_of(r, 'evaluations'):.0f}",
        "image passes": lambda r: f"{median_of(r, 'image_passes'):,.0f}",
        "search s": lambda r: f"{median_of(r, 'search_seconds'):.0f}",
        "whole run s": lambda r: f"{median_of(r, 'seconds'):.0f}",
        "certified": lambda r: f"{sum(x['certified'] for x in r)} of {len(r)}",
    }
    rows = grouped(study["rows"], "fidelity", "factor")
    return section(f"{study['study']}: the same network from the command line", about, table(columns, rows))


def edge(study: Study) -> str:
    """Bytes, latency and accuracy of float32 and int8 files."""
    about = (
        f"{study['network']} by `bocompress-export --precision int8`: with `--rank-multiple auto --gamma`, and the "
        f"plan applied again at another input size (for its times: the weights' own factors, no refits), or with "
        f"`--rank-multiple 8 --cost macs --target-ratio`. All are "
        f"shares of the original's, L of its output's energy; latency in ONNX Runtime on the CPU, one thread, with "
        f"95 % interval. Top-1: original, float32, int8, on test images{_lost_over_seeds(study['rows'])}. "
        f"{machine(study)}"
    )
    columns = {
        "asked for": asked_for,
        **({"seed": lambda r: str(r["seed"])} if "seed" in study["rows"][0] else {}),
        "input px": lambda r: str(r["side"]),
        "bytes": lambda r: f"{r['bytes']:.3f}",
        "MACs": lambda r: f"{r['macs']:.3f}",
        "latency": lambda r: flat_interval(r, "latency"),
        "latency over MACs": lambda r: f"{r['latency_over_macs']:.2f}",
        "int8 bytes": lambda r: f"{r['int8_bytes']:.3f}" if "int8_bytes" in r else "",
        "int8 latency": lambda r: flat_interval(r, "int8_latency"),
        "int8 over float32": lambda r: flat_interval(r, "int8_to_float32"),
        "L %": lambda r: f"{100 * r['relative_norm']:.2f}" if "relative_norm" in r else "",
        "top-1": _three_accuracies,
        "whole run s": lambda r: f"{r['seconds']:.0f}",
    }
    return section(
        f"{study['study']}: bytes, time and accuracy of what is delivered", about, table(columns, study["rows"])
    )


def _lost_over_seeds(rows: list[Row]) -> str:
    """What float32 files lose of top-1 at each share, as a mean over seeds; empty where there is one seed."""
    parts = []
    for share in grouped([row for row in rows if "seed" in row], "operations"):
        lost = [100 * (row["top1_original"] - row["top1"]) for row in share]
        if len(lost) > 1:
            parts.append(f"{mean(lost):.1f} points at {share[0]['operations']:g} ({len(lost)} seeds)")
    return f", which other seeds draw anew; lost on average {', '.join(parts)}" if parts else ""


def _three_accuracies(row: Row) -> str:
    if "top1" not in row:
        return ""
    return " → ".join(f"{100 * row[name]:.2f}" for name in ("top1_original", "top1", "int8_top1"))


def harness(study: Study) -> str:
    """`bocompress benchmark` beside torch.utils.benchmark."""
    summary, (first, second) = study["summary"], study["files"]
    about = (
        f"{second} over {first}, one thread, {len(study['rows'])} repeats. Of two repeats, the intervals of the ratio "
        f"overlap in {100 * summary['overlap']:.0f} % of pairs, and one's ratio lies in the other's interval in "
        f"{100 * summary['inside']:.0f} % (83 % is due where nothing but chance differs). torch.utils.benchmark, each "
        f"file in a fresh process, gives medians that differ by {signed_percent(summary['first_apart'])} and "
        f"{signed_percent(summary['second_apart'])}, and the ratio {summary['other_ratio']:.3f} against "
        f"{summary['ratio']:.3f} ({signed_percent(summary['ratio_apart'])}); its ratios scatter by "
        f"{100 * summary['other_spread']:.1f} % over the repeats, these by {100 * summary['spread']:.1f} %. Times are "
        f"processor time; load: what other processes took of all cores meanwhile. {machine(study)}"
    )
    columns = {
        "seed": lambda r: str(r["seed"]),
        "ratio": lambda r: nested_interval(r["ratio"]),
        "first against itself": lambda r: nested_interval(r["noise"]),
        "load": lambda r: f"{100 * r['others']:.0f} %",
        "medians": lambda r: _milliseconds(r["median_ms"]),
        "wall clock": lambda r: _milliseconds(r["wall_ms"]),
        "torch's ratio": lambda r: f"{r['other_ratio']:.3f}",
        "torch's medians": lambda r: _milliseconds(r["other_ms"]),
        "torch's wall clock": lambda r: _milliseconds(r["other_wall_ms"]),
    }
    return section(
        f"{study['study']}: `bocompress benchmark` beside another harness and its own repeats",
        about,
        table(columns, study["rows"]),
    )


def _milliseconds(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) + " ms"


def runtimes(study: Study) -> str:
    """Files at the lowest operator set, in an old and in another runtime."""
    rows = study["rows"]
    passed = [row for row in rows if "failed" not in row]
    old = passed[0]["old_version"] if passed else "1.17"
    about = (
        f"{len(passed)} of {len(rows)} networks, every layer at half its break-even rank (random weights), written "
        f"with the lowest operator set that each can have. Figures: largest difference from torch as a share of the "
        f"largest output, at 224 px and with a free batch size. {machine(study)}"
    )
    columns = {
        "architecture": lambda r: r["arch"],
        "operator set": lambda r: str(r["opset"]),
        "IR": lambda r: str(r["ir"]),
        "ONNX Runtime": lambda r: f"{r['onnxruntime']:.0e}",
        f"ONNX Runtime {old}": lambda r: f"{r['old']:.0e}",
        f"OpenVINO {study['openvino_version']}": lambda r: f"{r['openvino']:.0e}",
    }
    title = f"{study['study']}: files for old runtimes and for others"
    return section(title, about, table(columns, passed), *_failures(study))


def job(study: Study) -> str:
    """Time and memory of whole jobs."""
    about = (
        "Each job is a process of its own with the defaults, two threads. A unit is one pass of the original over the "
        "images that the job was given, timed in the same process; export counts what evaluates, writes and times the "
        "result. Peak: of the process, "
        f"{study['idle_bytes'] / 1e9:.2f} GB of which it holds once its modules are read. Networks with random weights "
        f"show time and memory alone. {machine(study)}"
    )
    columns: dict[str, Callable[[Row], str]] = {
        "network": lambda r: r["case"] + (", random weights" if r["random"] else ""),
        "images": lambda r: f"{r['images']:,}",
        "seconds": lambda r: f"{r['seconds']:.0f}",
        "seconds of a unit": lambda r: f"{r['unit_seconds']:.1f}",
        "units": lambda r: f"{r['units']:.1f}",
        "factorizing": lambda r: f"{r['units_by_stage']['factorize']:.1f}",
        "searching, building": lambda r: f"{r['units_by_stage']['search and build']:.1f}",
        "export besides": lambda r: f"{r['delivery_units']:.1f}",
        "peak GB": lambda r: f"{r['peak_bytes'] / 1e9:.2f}",
        "weights MB": lambda r: f"{r['weight_bytes'] / 1e6:.0f}",
        "R": lambda r: f"{r['ratio']:.3f}",
    }
    return section("job: what whole runs take", about, table(columns, study["rows"]))


def memory_format(study: Study) -> str:
    """Images that lie channels last beside channels first, and passes without batch norms."""
    about = (
        f"A forward pass in torch on {study['threads']} threads, random weights: all in turn in one process, "
        f"the least of {1 + study['repeats']} passes of each. Used: whether runs on a CPU give such networks images "
        f"that lie channels last. Without norms: in the format used, with batch norms in the layers before them. "
        f"{machine(study)}"
    )
    columns: dict[str, Callable[[Row], str]] = {
        "network": lambda r: f"{r['arch']} at {r['side']} px",
        "images": lambda r: f"{r['images']}",
        "channels first ms": lambda r: f"{1e3 * r['seconds_first']:.0f}",
        "channels last ms": lambda r: f"{1e3 * r['seconds_last']:.0f}",
        "ratio": lambda r: f"{r['ratio']:.2f}",
        "used": lambda r: "yes" if r["used"] else "no",
        "norms": lambda r: str(r["norms"]),
        "without norms ms": lambda r: f"{1e3 * r['seconds_without_norms']:.0f}",
        "its ratio": lambda r: f"{r['ratio_without_norms']:.2f}",
    }
    return section("memory-format: how images lie in memory", about, table(columns, study["rows"]))


def coverage(study: Study) -> str:
    """Which of torchvision's networks can be compressed and exported."""
    passed = [row for row in study["rows"] if not {"failed", "refused"} & row.keys()]
    passed.sort(key=lambda row: row["params"])
    about = (
        f"{len(passed)} of {len(study['rows'])} architectures, the smallest first, inspected, compressed at half of "
        f"every break-even rank, exported and checked against torch; random weights, factors of the weights alone. "
        f"MACs beside those that torchvision publishes with its weights, where these are for the same input size; "
        f"px of clips are frames x pixels. "
        f"Export check: largest difference from torch as a share of the largest output. {machine(study)}"
    )
    columns = {
        "architecture": lambda r: r["arch"],
        "px": lambda r: f"{r['frames']} x {r['input_size']}" if "frames" in r else str(r["input_size"]),
        "compressed": lambda r: ", ".join(f"{count} {name}" for name, count in r["compressed"].items()),
        "skipped": lambda r: "; ".join(f"{count} {why.partition(':')[0]}" for why, count in r["skipped"].items()),
        "parameters": lambda r: f"{r['params'] / 1e6:.1f} M",
        "ratio": lambda r: f"{r['params_compressed'] / r['params']:.3f}",
        "MACs": lambda r: f"{r['macs'] / 1e9:.2f} G",
        "MACs / published": lambda r: f"{r['macs'] / r['macs_published']:.4f}" if r["macs_published"] else "",
        "MACs ratio": lambda r: f"{r['macs_compressed'] / r['macs']:.3f}",
        "export check": lambda r: f"{r['export_check']:.0e}",
    }
    return section(
        f"{study['study']}: torchvision's networks at half of every break-even rank",
        about,
        table(columns, passed),
        *_failures(study),
        *([f"- Not run: {', '.join(study['not_run'])}"] if study.get("not_run") else []),
    )


def coverage_channels(study: Study) -> str:
    """Whose hidden channels can be removed, and the checks of the narrower networks."""
    passed = [row for row in study["rows"] if "failed" not in row]
    about = (
        f"{len(passed)} of {len(study['rows'])} architectures with 0.7 of the channels of every group; random "
        f"weights. Parameters and MACs of the narrower network are those that the search counts with, exactly; it "
        f"was written, read again with the same outputs, exported and checked against torch. {machine(study)}"
    )
    columns = {
        "architecture": lambda r: r["arch"],
        "px": lambda r: str(r["input_size"]),
        "groups": lambda r: str(r["groups"]),
        "parameters": lambda r: f"{r['params'] / 1e6:.1f} M",
        "ratio": lambda r: f"{r['params_compressed'] / r['params']:.3f}",
        "MACs ratio": lambda r: f"{r['macs_compressed'] / r['macs']:.3f}",
        "export check": lambda r: f"{r['export_check']:.0e}",
    }
    return section(
        f"{study['study']}: fewer hidden channels in every classifier", about, table(columns, passed), *_failures(study)
    )


def _failures(study: Study) -> list[str]:
    failed = [f"- {row['arch']} failed: {row['failed']}" for row in study["rows"] if "failed" in row]
    refused: dict[str, list[str]] = {}
    for row in study["rows"]:
        if "refused" in row:
            refused.setdefault(row["refused"].removeprefix(row["arch"]), []).append(row["arch"])
    return failed + [
        f"- Not compressed: {', '.join(sorted(names))}: each{reason}." for reason, names in refused.items()
    ]
