"""The report's sentences: its figures in words, without claiming more than they show."""

from collections.abc import Callable, Mapping, Sequence

from compressor.cost.records import COST_WORDS, Cost, LatencyRecord
from compressor.factorization.records import FactorKind
from compressor.factorization.registry import CHANNELS, explanations
from compressor.fidelity.intervals import wilson
from compressor.fidelity.records import FIDELITY_WORDS, FidelityRecord
from compressor.network.records import LayerRecord
from compressor.recovery.records import ReconstructionRecord
from compressor.report.formatting import (
    GAP,
    format_bytes,
    format_count,
    format_duration,
    format_factor,
    format_ms,
    format_number,
    format_percent,
    format_plural,
    format_points,
    format_probability,
    format_provider,
    format_ratio,
)
from compressor.report.records import Report
from compressor.report.structured.wording import describe_agreement, describe_kept, describe_task
from compressor.report.verdict import describe_little
from compressor.search.records import TARGET_OPTIONS, CertificateRecord, SearchRecord, TargetKind, TargetRecord

_FACTORS: dict[FactorKind, str] = {
    "weight": "the best approximation of the weight itself",
    "refit": "those of the weight, the last one refitted to the layer’s outputs on calibration images",
    "activation": "fitted with the second moments of the layer’s inputs, where possible also of its output gradients",
}


def describe_size(report: Report) -> str:
    """'resnet18: 46.8 MB → 9.1 MB', which is also the page's title."""
    sizes = report.onnx_bytes
    return f"{report.arch}: {format_bytes(sizes.original)} → {format_bytes(sizes.compressed)}"


def describe_result(report: Report) -> str:
    """The headline: size, speed and agreement of decisions in one sentence, then those of each other precision."""
    original, compressed = report.onnx_bytes.original, report.onnx_bytes.compressed
    float32 = [f"{describe_size(report)} ({_factor(compressed, original)})", *_speeds(report.latency)]
    same = describe_kept(report.segmentation, report.detection, report.flow)
    parts = [[*float32, *_agreements(report.fidelity), *([same] if same else [])]]
    for record in report.precisions:
        size = f"{record.precision}: {format_bytes(record.onnx_bytes)} ({_factor(record.onnx_bytes, original)})"
        share = record.fidelity.top1_agreement
        kept = [] if share is None else [f"{format_percent(share)} unchanged"]
        parts.append([size, *_speeds(record.latency), *kept])
    return describe_little(report) + "; ".join(map(", ".join, parts))


def _factor(size_bytes: int, original_bytes: int) -> str:
    return format_factor(size_bytes / original_bytes, "smaller", "larger") if original_bytes else "—"


def _speeds(latency: Mapping[str, LatencyRecord]) -> list[str]:
    return [describe_speed(provider, record) for provider, record in latency.items()]


def _agreements(fidelity: FidelityRecord) -> list[str]:
    """'98.4 % of top-1 decisions unchanged'; nothing where nothing is decided."""
    if fidelity.top1_agreement is None:
        return []
    decisions = "decisions by sign" if fidelity.by_sign else "top-1 decisions"
    return [f"{format_percent(fidelity.top1_agreement)} of {decisions} unchanged"]


def describe_decisions(report: Report) -> str:
    """How decisions and accuracy changed, with intervals and counts, on how many images."""
    fidelity, images = report.fidelity, report.fidelity.images
    outside = _describe_unused(report)
    noun = report.images.noun
    where = f"On {format_plural(images, f'test {noun}' if outside else noun)}{outside}"
    if of_task := describe_task(report.segmentation, report.detection, report.flow):
        return of_task
    if fidelity.top1_agreement is None:
        share = f"{format_number(100 * fidelity.relative)}{GAP}%"
        return f"{where} the outputs moved by {share} of their energy; nothing is decided by them."
    changed = round((1 - fidelity.top1_agreement) * images)
    low, high = wilson(images - changed, images)
    kept = f"{format_percent(fidelity.top1_agreement)} of decisions are unchanged [{_range(low, high)}]"
    sentence = f"{where} {kept}: {format_plural(changed, 'decision')} changed."
    change = report.top1_change
    if change is None or report.top1 is None:
        return sentence
    return (
        f"{sentence} Top-1 accuracy went from {format_percent(report.top1.original)} to "
        f"{format_percent(report.top1.compressed)}, {format_points(change.change)} points "
        f"[{format_points(change.low)}, {format_points(change.high)}]: {format_count(change.lost)} lost, "
        f"{format_count(change.gained)} gained."
    )


def describe_intervals(report: Report) -> str:
    """Which intervals stand in brackets and beside figures."""
    paired = ", of the change of top-1 Newcombe’s for paired shares" if report.top1_change is not None else ""
    if report.segmentation is not None and report.segmentation.change is not None:
        paired = ", of the change of mean IoU the delta method’s"
    if report.detection is not None and report.detection.change is not None:
        paired = ", of the change of mean AP a bootstrap’s over the images"
    return f"Brackets and small figures are 95{GAP}% intervals: of shares Wilson’s{paired}."


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f}, {100 * high:.1f}"


def describe_speed(provider: str, record: LatencyRecord) -> str:
    """'2.1× faster on CPU', or that no difference was measurable; its interval stands in the table."""
    where = format_provider(provider)
    if record.ratio_low <= 1 <= record.ratio_high or record.ratio_low <= 0:
        return f"no measurable difference in speed on {where}"
    if record.ratio < 1:
        return f"{format_ratio(1 / record.ratio)} faster on {where}"
    return f"{format_ratio(record.ratio)} slower on {where}"


def describe_fidelity(report: Report) -> str:
    """How far the outputs are from the original's, and on how many images that was measured."""
    fidelity = report.fidelity
    outside = _describe_unused(report)
    noun = report.images.noun
    images = format_plural(fidelity.images, f"test {noun}" if outside else noun)
    share = f"{format_number(100 * fidelity.relative)}{GAP}%"
    return (
        f"On {images}{outside} the squared distance between the outputs of the two "
        f"networks is L = {format_number(fidelity.function_norm)} on average (the function norm), with a standard "
        f"error of {format_number(fidelity.stderr)}. That is {share} of the energy of the original outputs, "
        f"E‖f*‖² = {format_number(fidelity.output_energy)}. {describe_agreement(fidelity, noun)}"
    )


def describe_risk_bound(fidelity: FidelityRecord) -> str:
    """The bound that the function norm gives for any Lipschitz loss."""
    root = format_number(max(fidelity.function_norm, 0.0) ** 0.5)
    return (
        f"For any loss that is K-Lipschitz in the outputs, the compressed network’s expected loss exceeds "
        f"the original’s by at most K√L, here estimated as {root}{GAP}K."
    )


def describe_search(search: SearchRecord) -> str:
    """What the search cost, and the objective it reached."""
    found = f"objective is J = {_signed(search.objective)}"
    chosen = found if search.limit is None else f"L is {_signed(-search.objective)}"
    return (
        f"{format_plural(search.evaluations, 'evaluation')} of candidate plans took "
        f"{format_duration(search.seconds)} ({format_duration(search.surrogate_seconds)} of it in the "
        f"Gaussian process) and {format_plural(search.image_passes, 'image pass', 'image passes')}, the "
        f"initial design included. The chosen plan’s {chosen} with a posterior "
        f"standard deviation of {format_number(search.objective_sd)}."
    )


def describe_target(target: TargetRecord, cost: Cost, noun: str = "image") -> str:
    """The target, and whether it was met."""
    unit, show = _TARGET_UNITS[target.kind](target, cost), _TARGET_FORMATS[target.kind]
    reached = f"{show(target.reached)} {unit}"
    if target.kind == "drop":
        reached += (
            f" on {format_plural(target.images, f'validation {noun}')}, at most {show(target.at_most)} "
            f"with 95{GAP}% confidence"
        )
    return f"Target: {TARGET_OPTIONS[target.kind]} {target.asked:g}. {'Met' if target.met else 'Not met'}: {reached}."


def _describe_drop_unit(target: TargetRecord, _: Cost) -> str:
    return f"points of {target.of} lost" if target.labelled else f"{GAP}% of the original outputs’ energy lost"


_TARGET_UNITS: dict[TargetKind, Callable[[TargetRecord, Cost], str]] = {
    "ratio": lambda _, cost: f"of the whole network’s {COST_WORDS[cost]}",
    "bytes": lambda *_: "in model.onnx",
    "macs": lambda *_: "multiply-accumulates",
    "latency": lambda *_: "in the median",
    "drop": _describe_drop_unit,
}
_TARGET_FORMATS: dict[TargetKind, Callable[[float], str]] = {
    "ratio": format_number,
    "bytes": format_bytes,
    "macs": format_count,
    "latency": format_ms,
    "drop": format_number,
}


def describe_layers(report: Report) -> str:
    """How many layers were factorized or lost channels, and the ratio R that is left of them."""
    layers = [layer for layer in report.layers if layer.skipped is None]
    narrower = sum(layer.rank is not None and layer.method == CHANNELS for layer in layers)
    changed = sum(layer.rank is not None for layer in layers) - narrower
    kept, skipped = len(layers) - changed - narrower, len(report.layers) - len(layers)
    pruned = f" {format_percent(report.prune_fraction)} of the weights were then pruned to zero."
    changes = f"{format_plural(changed, 'layer was', 'layers were')} factorized"
    if narrower:
        changes += f", {format_plural(narrower, 'layer')} lost channels"
    groups = report.channel_groups
    if groups and groups.searched < groups.found:
        changes += (
            f" (ranks lose less in {groups.found - groups.searched} of {groups.found} groups that share channels)"
        )
    return (
        f"{changes}, {kept} kept dense and {skipped} skipped; the ratio R of compressed to original is "
        f"{format_number(report.ratio)} in {_name_cost(report)}.{pruned if report.prune_fraction else ''}"
    )


def _name_cost(report: Report) -> str:
    return "weights that are not zero" if report.prune_searched else COST_WORDS[report.cost]


def explain_methods(layers: Sequence[LayerRecord]) -> dict[str, str]:
    """The methods of the factorized layers by name, each with what it turns a layer into."""
    used = {layer.method for layer in layers if layer.rank is not None}
    return {name: explanation for name, explanation in explanations().items() if name in used}


def explain_factors(layers: Sequence[LayerRecord]) -> dict[str, str]:
    """The kinds of factors of these layers by name, each with how it was found; empty for older reports."""
    used = {layer.factors for layer in layers if layer.rank is not None}
    return {name: meaning for name, meaning in _FACTORS.items() if name in used}


def describe_objective(report: Report) -> str:
    """The objective that the search maximized."""
    search = report.search
    if search is not None and search.limit is not None:
        return _describe_limited_search(report, search.limit)
    formula = "−γL − R (Eq. 3)" if report.form == "ratio" else "−γL + 1/R (Eq. 2)"
    return f"The search maximizes J = {formula} with {_equal('γ', report.gamma or 0.0)}: {_describe_terms(report)}"


def _describe_limited_search(report: Report, limit: float) -> str:
    """What was searched for with a target, and the multiplier."""
    multiplier = (
        "No γ leads to this plan: the trade-off of L and R is not convex around it."
        if report.gamma is None
        else f"With {_equal('γ', float(f'{report.gamma:.3g}'))} this plan would be best by −γL − R, too."
    )
    return (
        f"The search minimizes L over the plans of R at most {format_number(limit)}: {_describe_terms(report)} "
        f"{multiplier}"
    )


def _describe_terms(report: Report) -> str:
    """What L and R are."""
    where = format_provider(report.provider)
    measured = f", each layer measured alone on {where}" if report.cost == "latency" else ""
    multiple = report.rank_multiple
    lattice = f" Ranks from {multiple} on are multiples of {multiple}." if multiple > 1 else ""
    return (
        f"L is {FIDELITY_WORDS[report.searched]}, estimated on a few {report.images.noun}s at a time, and R the "
        f"remaining share of the searched layers’ {_name_cost(report)}{measured}.{lattice}"
    )


def describe_reconstruction(record: ReconstructionRecord, noun: str = "image") -> str:
    """What was refitted on how many images, or what the noun says, and what that gained."""
    kept = sum(step.kept for step in record.steps)
    before, after = format_number(record.before), format_number(record.after)
    change = f"fell from L = {before} to {after}" if after != before else f"stayed at L = {before}"
    return (
        f"The layers were refitted front to back on {format_plural(record.calibration_images, f'calibration {noun}')}: "
        f"on {format_plural(record.check_images, f'check {noun}')}, which took no part in the fit, the function norm "
        f"{change}; {kept} of {format_plural(len(record.steps), 'step')} "
        f"{'was' if kept == 1 else 'were'} kept, in {format_duration(record.seconds)}."
    )


def describe_reconstruction_limits(report: Report) -> str:
    """Which images decided over the steps, and which network the search is about."""
    nouns = f"{report.images.noun}s"
    rule = f"A step is kept if it lowers the function norm on the check {nouns}"
    if report.search is None:
        return f"{rule}, which are not test {nouns}."
    return f"{rule}; these are some of the search {nouns}, not test {nouns}. {_describe_gain(report)}"


def _describe_gain(report: Report) -> str:
    """What the search knew of reconstruction."""
    gain, record = 1.0 if report.search is None else report.search.gain, report.reconstruction
    if gain == 1.0 or record is None or not record.before:
        return "The search and its certificate are about the network before this."
    return (
        f"The search weighed a small L as {format_number(gain)} of what it observed, since it expected this to be "
        f"left, and its certificate takes that for true; {format_number(record.after / record.before)} of L was left."
    )


def describe_images(report: Report) -> str:
    """Where the images came from, and how they were split."""
    images = report.images
    uses = {
        "for calibration": images.calibration,
        "for the search" if report.search is not None or report.stages else "for checks": images.search,
        "for validation": images.validation,
        "for the test": images.test_images,
        "unreadable": images.unreadable,
    }
    first, *others = [(use, count) for use, count in uses.items() if count]
    parts = [f"{format_plural(first[1], images.noun)} {first[0]}", *(f"{count} {use}" for use, count in others)]
    why = f": {images.label_note}" if images.label_note else ""
    return f"{images.source} ({'labelled' if images.labelled else f'unlabelled{why}'}); {', '.join(parts)}"


def describe_outcome(certificate: CertificateRecord) -> str:
    """Whether a certificate was met, and why not where its bound is low enough."""
    if certificate.met:
        return "met"
    joint = certificate.joint
    early = certificate.asked == "joint" and joint is not None and joint.suffices
    return "not met, since the search ended before its initial design was complete" if early else "not met"


def describe_difference(certificate: CertificateRecord) -> str:
    """What a plan is that the certificate rules out: better by more than delta."""
    share = f"{100 * certificate.delta:.2g}{GAP}%"
    return {
        "objective": f"is better by more than {certificate.delta:.2g}",
        "loss": f"of at most this size has an L lower by more than {share}",
        "size": f"that keeps to this L is smaller by more than {share}",
    }[certificate.about]


def describe_certificate(search: SearchRecord) -> str:
    """Whether the certificate was met, with both probabilities in words."""
    certificate, joint = search.certificate, search.certificate.joint
    asked = f" (asked: at most {_equal('ε', certificate.epsilon)}): {describe_outcome(certificate)}"
    pointwise = (
        f"the largest probability found that a given other plan {describe_difference(certificate)} is "
        f"{format_probability(certificate.pointwise)}"
        f"{asked if certificate.asked == 'pointwise' else ''}"
    )
    given = f"Given the Gaussian process fitted to {format_plural(len(search.history), 'evaluation')}, {pointwise}"
    if joint is None:
        return f"{given}."
    return (
        f"{given}. The probability that any plan at all is better by that much is "
        f"{format_probability(joint.estimate)}, at most {format_probability(joint.upper)} with confidence "
        f"{format_percent(joint.confidence)}, from {format_plural(joint.paths, 'sample path')} of the posterior"
        f"{asked if certificate.asked == 'joint' else ''}."
    )


def describe_calibration(search: SearchRecord) -> str:
    """How well the Gaussian process predicts: its leave-one-out calibration."""
    calibration = search.calibration
    return (
        f"Calibration of the Gaussian process: with each of the {calibration.evaluations} evaluations predicted from "
        f"all others, {format_percent(calibration.within_two_sd)} lie within two predicted standard deviations (ideal: "
        f"95{GAP}%), and the errors are {format_number(calibration.z_rms)} times as large as predicted (ideal: 1)."
    )


def describe_certificate_limits() -> str:
    """What the certificate does not guarantee, to be printed next to it."""
    return (
        "The first probability is about single plans (Ma et al. 2019, Eq. 12), the second about all plans at once "
        "(after Wilson 2024). Both rest on local searches over plans, which may miss the best, and hold only as far as "
        "the Gaussian process is right."
    )


def _describe_unused(report: Report) -> str:
    """', which the search never used,': what the test images took no part in."""
    uses = {"calibration": report.images.calibration > 0, "the search": report.search is not None}
    users = [name for name, is_used in uses.items() if is_used]
    if len(users) == 2:
        return ", which neither calibration nor the search used,"
    return f", which {users[0]} never used," if users else ""


def _equal(letter: str, value: float) -> str:
    """'ε = 0.005' without a line break."""
    return f"{letter}{GAP}={GAP}{value:g}"


def _signed(value: float) -> str:
    """The number with a true minus sign, as wide as the digits."""
    return f"−{format_number(-value)}" if value < 0 else format_number(value)
