"""The tables that the command line prints on stdout."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compressor.cost.records import LatencyRecord
from compressor.fidelity.records import DetectorFileRecord, FidelityRecord
from compressor.network.records import LayerRecord
from compressor.recovery.records import ReconstructionRecord, TuneRecord
from compressor.report.formatting import GAP
from compressor.report.records import FileRecord, Report, StageRecord, VerdictRecord
from compressor.report.structured.rows import detection_rows, flow_rows, output_rows, segmentation_rows
from compressor.report.verdict import describe_failure
from compressor.report.wording import describe_difference, describe_outcome, describe_result
from compressor.search.records import TARGET_OPTIONS, SearchRecord, TargetRecord
from compressor.terminal import SafeConsole
from exporters.records import MAX_ERROR, DifferenceRecord, QuantizationRecord

MIN_WIDTH = 112  # characters; a pipe has no width, and the longest row needs as many


def print_report(report: Report, folder: Path, quiet: bool = False) -> None:
    """Print the summary of a run: original, compressed and their ratio, then a line for each further part.

    Args:
        report: the run's.
        folder: where its files are.
        quiet: print how it ended and where the files are, no more.
    """
    console = _console()
    if report.verdict is not None:
        console.print(_verdict_line(report.verdict, report), soft_wrap=True)
    if not quiet:
        _print_details(console, report)
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def _print_details(console: Console, report: Report) -> None:
    console.print(_summary_table(report))
    if report.precisions:
        console.print(_precision_table(report))
    if report.stages:
        console.print(_stage_table(report.stages))
    for line in _summary_lines(report):
        console.print(line, markup=False)


def _verdict_line(verdict: VerdictRecord, report: Report) -> Text:
    """The first line: what went wrong, in red, or the result in brief."""
    if not verdict.success:
        return Text(describe_failure(verdict), style="bold red")
    return Text(describe_result(report).replace(GAP, " "), style="bold")


def _summary_table(report: Report) -> Table:
    gamma = "no gamma leads to this plan" if report.gamma is None else f"gamma {report.gamma:.3g}"
    table = _table(f"{report.arch}, {gamma}", "", "original", "compressed", "ratio")
    rows = {
        "parameters": report.params,
        "  of compressible layers": report.params_compressible,
        "  not zero": report.nonzero_params,
        "MACs": report.macs,
        "ONNX bytes": report.onnx_bytes,
        "ONNX bytes, gzip": report.gzip_bytes,
    }
    for name, pair in rows.items():
        table.add_row(name, f"{pair.original:,}", f"{pair.compressed:,}", f"{pair.compressed / pair.original:.3f}")
    _add_latency(table, report.latency)
    if report.top1:
        change = 100 * (report.top1.compressed - report.top1.original)
        table.add_row("top-1", _percent(report.top1.original), _percent(report.top1.compressed), f"{change:+.2f} pt")
    if report.risk:
        change = report.risk.compressed - report.risk.original
        table.add_row("cross-entropy", f"{report.risk.original:.4f}", f"{report.risk.compressed:.4f}", f"{change:+.4f}")
    fidelity = report.fidelity
    norm = f"{fidelity.function_norm:.4g} ± {fidelity.stderr:.2g}"
    table.add_row("function norm", "0", norm, f"{fidelity.relative:.4f}")
    if fidelity.top1_agreement is not None:
        table.add_row(_agreement_name(fidelity), "", _percent(fidelity.top1_agreement), "")
    decided = (*segmentation_rows(report.segmentation), *detection_rows(report.detection))
    for cells in (*decided, *flow_rows(report.flow), *output_rows(fidelity.outputs)):
        table.add_row(*map(escape, cells))
    table.add_row("export check", "", f"{report.export_check.max_rel_error:.1e} relative", "")
    return table


def _summary_lines(report: Report) -> Iterator[str]:
    if report.target:
        yield _target_line(report.target, report.images.noun)
    if report.search:
        yield from _certificate_lines(report.search)
    if report.reconstruction:
        yield _reconstruction_line(report.reconstruction, report.images.noun)
    if report.tuning:
        yield _tuning_line(report.tuning, report.images.noun)
    for record in report.precisions:
        if record.quantization:
            yield _quantization_line(record.quantization, report.images.noun)
    if report.detection and report.detection.whole:
        yield _detector_line(report.detection.whole)
    yield from map(_file_line, report.files)
    yield from (f"note: {warning}" for warning in report.warnings)


def _precision_table(report: Report) -> Table:
    """The original, the compressed float32 file and its other precisions side by side."""
    others = report.precisions
    table = _table("precisions", "", "original", "float32", *(record.precision for record in others))
    sizes, packed, fidelity = report.onnx_bytes, report.gzip_bytes, report.fidelity
    rows: list[tuple[str, Sequence[str]]] = [
        ("ONNX bytes", [f"{size:,}" for size in (*sizes.both, *(record.onnx_bytes for record in others))]),
        ("ONNX bytes, gzip", [f"{size:,}" for size in (*packed.both, *(record.gzip_bytes for record in others))]),
        *_latency_rows(report),
        ("function norm", ["0", *(f"{f.function_norm:.4g}" for f in (fidelity, *(r.fidelity for r in others)))]),
        ("  against float32", ["", "0", *(f"{record.norm_to_float32:.2g}" for record in others)]),
    ]
    if fidelity.top1_agreement is not None:
        same = [_percent_or_dash(each.top1_agreement) for each in (fidelity, *(r.fidelity for r in others))]
        rows.append((_agreement_name(fidelity), ["", *same]))
        rows.append(("  as float32", ["", "", *(_percent_or_dash(record.agreement_to_float32) for record in others)]))
    if report.segmentation and report.segmentation.mean_iou:
        ious = [*report.segmentation.mean_iou.both, *(record.mean_iou for record in others)]
        rows.append(("mean IoU", [_percent_or_dash(iou) for iou in ious]))
    if report.detection and report.detection.average_precision:
        found = [*report.detection.average_precision.both, *(record.average_precision for record in others)]
        rows.append(("mean AP", [_percent_or_dash(each) for each in found]))
    if report.top1:
        tops = [*report.top1.both, *(record.top1 for record in others)]
        rows.append(("top-1", ["" if top is None else _percent(top) for top in tops]))
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _agreement_name(fidelity: FidelityRecord) -> str:
    return "same sign" if fidelity.by_sign else "same top-1 class"


def _percent_or_dash(share: float | None) -> str:
    return "—" if share is None else _percent(share)


def _latency_rows(report: Report) -> list[tuple[str, Sequence[str]]]:
    """Paired ratios alone: milliseconds of different runs are not comparable."""
    rows: list[tuple[str, Sequence[str]]] = []
    for provider, float32 in report.latency.items():
        name = f"{provider.removesuffix('ExecutionProvider')} time of original"
        beside = [record.latency.get(provider) for record in report.precisions]
        rows.append((name, ["1", *map(_interval, (float32, *beside))]))
        within = [_interval(record.latency_to_float32.get(provider)) for record in report.precisions]
        rows.append(("  of float32", ["", "1", *within]))
    return rows


def _interval(record: LatencyRecord | None) -> str:
    return f"{record.ratio:.3f} ({record.ratio_low:.3f} to {record.ratio_high:.3f})" if record else ""


def print_layers(arch: str, outputs: str, input_size: str, layers: Sequence[LayerRecord]) -> None:
    """Print the table of `bocompress inspect`.

    Args:
        arch: of the network.
        outputs: what it gives, in words.
        input_size: of its images or clips, in words.
        layers: all conv and linear layers, with what is known of each.
    """
    taken = [layer for layer in layers if layer.skipped is None]
    share = sum(layer.params for layer in taken) / max(1, sum(layer.params for layer in layers))
    title = (
        f"{arch}, {outputs}, {input_size}: {len(taken)} of {len(layers)} layers can be compressed, with "
        f"{100 * share:.0f} % of their parameters"
    )
    names = dict.fromkeys(group for layer in layers for group in layer.groups)
    numbers = {name: str(number) for number, name in enumerate(names, 1)}
    if numbers:
        title += f"; {len(numbers)} groups of layers share channels that can be removed"
    last = "skipped, or\ngroups" if numbers else "skipped"
    table = _table(title, "layer", "shape", "method", "break-even\nrank", "parameters", "MACs", last, left=(0, 1, 2, 6))
    for layer in layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.method or "",
            "" if layer.break_even_rank is None else str(layer.break_even_rank),
            f"{layer.params:,}",
            f"{layer.macs:,}",
            layer.skipped or ", ".join(numbers[group] for group in layer.groups),
        )
    _console().print(table)


def print_cells(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print a table of texts.

    Args:
        title: above the table; empty for none.
        header: a text for each column.
        rows: as many texts in each.
        left: indices of the columns that are flush left.
    """
    table = _table(title, *header, left=left)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    _console().print(table)


def print_difference(first: Path, second: Path, difference: DifferenceRecord) -> None:
    """Print what `bocompress verify` found.

    Args:
        first: the file compared with.
        second: the file compared.
        difference: what was found.
    """
    console = _console()
    console.print(_describe_difference(first, second, difference), markup=False, soft_wrap=True)
    table = _table("", "", "")
    table.show_header = False
    if difference.top1:
        shares = difference.top1.original, difference.top1.compressed
        table.add_row("top-1 of the first and of the second", f"{_percent(shares[0])}, {_percent(shares[1])}")
    if difference.top1_agreement is not None:
        table.add_row(f"same {difference.agreement_of}", _percent(difference.top1_agreement))
    table.add_row("images", str(difference.images))
    table.add_row("largest difference of outputs", _error(difference.max_abs_error))
    table.add_row("  over the largest output", _error(difference.max_rel_error))
    table.add_row("function norm", _error(difference.function_norm))
    table.add_row("worst image", escape(difference.worst_file or f"number {difference.worst_image}"))
    if difference.outputs > 1:
        table.add_row("compared", escape(f"{difference.output}, of {difference.outputs} outputs"))
    if not difference.same:
        divergence = difference.divergence
        place = (
            f"{divergence.layer} (tensor {divergence.tensor}, by {_error(divergence.relative_error)})"
            if divergence
            else f"at the output; {difference.tensors_compared} tensors before it agree"
        )
        table.add_row("first divergence", escape(place))
    console.print(table)


def _describe_difference(first: Path, second: Path, difference: DifferenceRecord) -> str:
    if difference.not_finite:
        where = f"{difference.not_finite} of {difference.images} images"
        return f"{first} and {second} differ: {second} gives NaN or infinity on {where}"
    error = f"{difference.max_rel_error:.3g} of the largest output"
    if difference.same:
        return f"{first} and {second} give the same: within {error}, where --tolerance allows {difference.tolerance:g}"
    return f"{first} and {second} differ: by {error}, where --tolerance allows {difference.tolerance:g}"


def _error(value: float) -> str:
    return "NaN or infinity" if value >= MAX_ERROR else f"{value:.3g}"


def _add_latency(table: Table, latency: dict[str, LatencyRecord]) -> None:
    for provider, record in latency.items():
        table.add_row(
            f"latency, {provider.removesuffix('ExecutionProvider')}, batch {record.batch_size}, "
            f"{record.threads} thread{'s' if record.threads > 1 else ''}",
            f"{record.original_ms:.2f} ms",
            f"{record.compressed_ms:.2f} ms",
            f"{record.ratio:.3f} ({record.ratio_low:.3f} to {record.ratio_high:.3f})",
        )


def _target_line(target: TargetRecord, noun: str) -> str:
    bound = f", at most {target.at_most:.4g} with 95 % confidence ({target.images} {noun}s)" if target.images else ""
    verdict = "met" if target.met else "not met"
    lost = f"points of {target.of} lost" if target.labelled else "% of the output energy"
    unit = lost if target.kind == "drop" else ""
    reached = f"{target.reached:.4g} {unit}".strip()
    return f"target {TARGET_OPTIONS[target.kind]} {target.asked:g} {verdict}: {reached}{bound}"


def _certificate_lines(search: SearchRecord) -> list[str]:
    """Both probabilities, that of the chosen certificate first with its epsilon, and how calibrated the process is."""
    certificate, joint = search.certificate, search.certificate.joint
    margin = describe_difference(certificate).replace(GAP, " ")
    figures = {"pointwise": f"P(a given plan {margin}) = {certificate.pointwise:.2g}"}
    if joint is not None:
        figures["joint"] = f"P(any plan {margin}) = {joint.estimate:.2g}, at most {joint.upper:.2g}"
    asked = figures.pop(certificate.asked)
    return [
        f"certificate ({certificate.asked}, asked: {certificate.epsilon:g}) {describe_outcome(certificate)}: {asked}",
        *(f"  {name}: {figure}" for name, figure in figures.items()),
        f"  calibration: the Gaussian process's errors are {search.calibration.z_rms:.2g} times as large as predicted",
        *([f"Pareto front: {len(search.pareto_front)} plans, in plans/"] if search.pareto_front else []),
        f"search: {search.evaluations} evaluations, {search.image_passes:,} image passes, {search.seconds:.0f} s",
    ]


def _reconstruction_line(record: ReconstructionRecord, noun: str) -> str:
    kept = sum(step.kept for step in record.steps)
    return (
        f"reconstruction: function norm {record.before:.4g} -> {record.after:.4g} on "
        f"{record.check_images} check {noun}s, {kept} of {len(record.steps)} steps kept, {record.seconds:.0f} s"
    )


def _stage_table(stages: Sequence[StageRecord]) -> Table:
    """The columns of the paper's Table 5, and the function norm of the network after each stage."""
    table = _table(
        "stages", "network", "top-1", "top-5", "ratio", "function norm", "time", "what was done", left=(0, 6)
    )
    for stage in stages:
        metrics = stage.metrics
        tops = ["" if top is None else _percent(top) for top in (metrics.top1, metrics.top5)]
        seconds = f"{stage.seconds:.0f} s" if stage.kind != "original" else ""
        figures = [*tops, _percent(stage.ratio), f"{metrics.function_norm:.4g}", seconds]
        table.add_row(escape(stage.name), *figures, escape(stage.what))
    return table


def _tuning_line(record: TuneRecord, noun: str) -> str:
    """What fine-tuning changed on the test images."""
    parts = [f"fine-tuning: epoch {record.kept_epoch} of {record.epochs} kept"]
    if record.before and record.after:
        parts.append(f"function norm {record.before.function_norm:.4g} -> {record.after.function_norm:.4g}")
        if record.before.top1 is not None and record.after.top1 is not None:
            parts.append(f"top-1 {_percent(record.before.top1)} -> {_percent(record.after.top1)}")
    return ", ".join([*parts, f"{record.train_images} {noun}s, {record.seconds:.0f} s"])


def _quantization_line(record: QuantizationRecord, noun: str) -> str:
    kept = ", ".join(f"{layer.name} ({layer.added_norm:.2g})" for layer in record.float_layers)
    return (
        f"int8: {record.calibration} ranges of {record.calibration_images} {noun}s; "
        f"{record.layers - len(record.float_layers)} of {record.layers} layers in int8"
        + (f"; kept in float32, with the function norm that each adds alone: {kept}" if kept else "")
    )


def _detector_line(record: DetectorFileRecord) -> str:
    compared = f"{record.detections} detections in {record.images} images"
    return (
        f"{record.file}: {record.size_bytes:,} bytes, {compared} compared, scores within {record.max_score_error:.1e}"
    )


def _file_line(record: FileRecord) -> str:
    checked = f", {record.max_rel_error:.1e} relative" if record.max_rel_error is not None else ""
    needs = f", {record.operators}" if record.operators else ""
    return f"{record.file}: {record.size_bytes:,} bytes{checked}{needs}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _table(title: str, *columns: str, left: Sequence[int] = (0,)) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in left else "right", overflow="fold")
    return table


def _console() -> Console:
    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=max(console.width, MIN_WIDTH), highlight=False)
