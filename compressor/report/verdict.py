"""Whether a run gave what was asked for: a network that still computes what the original does, within its target."""

from collections.abc import Sequence
from math import ceil, floor, log10

from compressor.fidelity.records import FidelityRecord
from compressor.report.records import PrecisionRecord, Report, VerdictRecord
from compressor.schema import Pair
from compressor.search.records import TARGET_OPTIONS, Form, ParetoRecord, TargetRecord

MAX_RELATIVE_NORM = 0.5  # of the output energy, that a network may lose and still be useful
TOP1, MEAN_IOU, MEAN_AP = "top-1", "mean IoU", "mean AP"
MIN_ACCURACY_SHARE = 0.5  # of the original's; means of outputs can be large beside what tells classes apart
MIN_LEFT = 0.95  # of operations and of time: a network that keeps as much gained little
GOOD_SHARE = 0.1  # of what a network without outputs loses: L that a suggested gamma leads to
STEPS = (1.0, 2.0, 5.0, 10.0)  # suggestions are rounded up to these


def reach_verdict(
    fidelity: FidelityRecord,
    precisions: Sequence[PrecisionRecord],
    target: TargetRecord | None,
    advice: str,
    accuracy: Pair[float] | None = None,
    name: str = TOP1,
) -> VerdictRecord:
    """The verdict on a finished run.

    Args:
        fidelity: of the network in float32.
        precisions: its files in other precisions.
        target: what was asked for in place of gamma, with what was reached.
        advice: what to do where the network is destroyed.
        accuracy: of the original and of the network, where there are labels, masks or boxes.
        name: of the accuracy.
    """
    if is_destroyed(fidelity, accuracy):
        reason = f"the network no longer computes what the original does ({_describe_loss(fidelity, accuracy, name)})"
        return VerdictRecord(success=False, reason=reason, advice=advice)
    if target is not None and not target.met:
        return VerdictRecord(success=False, reason=describe_missed(target), advice=_advise_on_target(target))
    for record in precisions:
        reached = {TOP1: record.top1, MEAN_IOU: record.mean_iou, MEAN_AP: record.average_precision}.get(name)
        own = None
        if accuracy is not None and reached is not None:
            own = Pair[float](original=accuracy.original, compressed=reached)
        if is_destroyed(record.fidelity, own):
            lost = _describe_loss(record.fidelity, own, name)
            reason = f"{record.file} no longer computes what the original does ({lost})"
            return VerdictRecord(success=False, reason=reason, advice="use model.onnx, in float32, which is good")
    return VerdictRecord(success=True)


def describe_failure(verdict: VerdictRecord) -> str:
    """The sentence that a failed run begins with, in the terminal and on the page."""
    return f"Not a success: {verdict.reason}; {verdict.advice}."


def describe_little(report: Report) -> str:
    """What the headline of a search for a gamma begins with where the network hardly became faster; else empty."""
    operations = report.macs.compressed / report.macs.original if report.macs.original else 1.0
    shares = [operations, *(record.ratio for record in report.latency.values())]
    if report.search is None or report.target is not None or report.stages or min(shares) < MIN_LEFT:
        return ""
    time = f", {100 * min(shares[1:]):.1f} % of the time" if len(shares) > 1 else ""
    others = "--precision int8 and fewer ranks with fine-tuning (--max-drop, --finetune)"
    return (
        f"Low rank gives this network little: {100 * operations:.1f} % of the operations are left{time}. "
        f"{'Fewer ranks with fine-tuning (--max-drop, --finetune)' if report.precisions else others} give more. "
    )


def is_destroyed(fidelity: FidelityRecord, accuracy: Pair[float] | None = None) -> bool:
    """Whether more than half of the output energy is lost, or of the accuracy."""
    return fidelity.relative > MAX_RELATIVE_NORM or _is_lost(accuracy)


def _is_lost(accuracy: Pair[float] | None) -> bool:
    return accuracy is not None and accuracy.compressed < MIN_ACCURACY_SHARE * accuracy.original


def describe_missed(target: TargetRecord) -> str:
    """The target and what the best network found has."""
    known = f", at most {target.at_most:.4g} with 95 % confidence" if target.kind == "drop" else ""
    return (
        f"{TARGET_OPTIONS[target.kind]} {target.asked:g} is not met: "
        f"the best network found has {target.reached:.4g}{known}"
    )


def sufficient_gamma(front: Sequence[ParetoRecord], lost: float, form: Form = "ratio") -> float | None:
    """The smallest gamma for which the best plan of a Pareto front keeps L below GOOD_SHARE of `lost`, rounded up.

    A plan i is better than a plan b of larger L from gamma = (S_i - S_b) / (L_b - L_i) on, S being what the objective
    takes off for the size. The dense layers, which lose nothing, are a plan that is always there.

    Args:
        front: the plans, none better than another in both R and L.
        lost: L of a network that has lost its outputs.
        form: of the objective.

    Returns:
        None where the plans do not tell.
    """
    limit = GOOD_SHARE * lost
    plans = [(plan.ratio, plan.function_norm) for plan in front] + [(1.0, 0.0)]
    sized = [(ratio if form == "ratio" else -1.0 / ratio, loss) for ratio, loss in plans if ratio > 0]
    good = [plan for plan in sized if plan[1] <= limit]
    bad = [plan for plan in sized if plan[1] > limit]
    if not bad or limit <= 0:
        return None
    enough = min(max((size - other) / (more - loss) for other, more in bad) for size, loss in good)
    return round_up(enough) if enough > 0 else None


def round_up(value: float) -> float:
    """1.3e-4 -> 2e-4: the next of 1, 2, 5 times a power of ten."""
    power = floor(log10(value))
    step = next(step for step in STEPS if value <= step * 10.0**power * (1 + 1e-9))
    return float(f"{step * 10.0**power:.0e}")


def _describe_loss(fidelity: FidelityRecord, accuracy: Pair[float] | None, name: str) -> str:
    parts = [f"relative function norm {fidelity.relative:.2f}"]
    if fidelity.relative > MAX_RELATIVE_NORM:
        parts.append(f"above {MAX_RELATIVE_NORM:g}")
    if accuracy is not None and _is_lost(accuracy):
        parts.append(f"{name} {100 * accuracy.original:.0f} % before and {100 * accuracy.compressed:.0f} % after")
    if fidelity.top1_agreement is not None:
        parts.append(f"{100 * (1 - fidelity.top1_agreement):.0f} % of the decisions changed")
    return ", ".join(parts)


def _advise_on_target(target: TargetRecord) -> str:
    option = TARGET_OPTIONS[target.kind]
    if target.kind == "drop":
        return (
            f"allow more, as with {option} {at_least(target.at_most)}, or give more images (--max-images): the bound "
            "tightens with their number"
        )
    return f"allow more, as with {option} {at_least(target.reached)}"


def at_least(value: float) -> str:
    """Two digits, rounded up."""
    if value <= 0:
        return "0"
    unit = 10.0 ** (floor(log10(value)) - 1)
    return f"{ceil(value / unit * (1 - 1e-9)) * unit:.12g}"
