"""Warnings a careful colleague would give: one sentence each, printed and kept in the report."""

from math import ceil

from compressor.fidelity.records import Fidelity, FidelityRecord
from compressor.recovery.records import TuneRecord
from compressor.report.records import PrecisionRecord
from compressor.search.objective import default_gamma
from compressor.search.records import TARGET_OPTIONS, CertificateRecord, Form, TargetRecord

# Below this share of the default gamma, destroying the output altogether costs less than a twentieth of R.
FAINT_GAMMA = 0.05
LOST_RELATIVE_NORM = 0.5


def on_unreadable(count: int) -> list[str]:
    """About broken files among the images."""
    if not count:
        return []
    return [f"{count} {'image' if count == 1 else 'images'} could not be read and were left out"]


WHOLE_OUTPUT: dict[Fidelity, str] = {"norm": "E||f*||^2", "risk": "log C", "error": "1 - 1 / C"}


def on_gamma(gamma: float, loss_when_lost: float, fidelity: Fidelity = "norm") -> list[str]:
    """About a gamma that hardly weighs this network's outputs."""
    suited = default_gamma(loss_when_lost)
    if gamma >= FAINT_GAMMA * suited:
        return []
    whole = f"{WHOLE_OUTPUT[fidelity]} = {loss_when_lost:.3g}"
    return [
        f"gamma {gamma:g} is small for this network: losing its whole output ({whole}) "
        f"costs no more than {gamma * loss_when_lost:.2g} of ratio; a gamma near {suited:.2g} keeps it useful"
    ]


def on_form(form: Form) -> list[str]:
    """About Eq. (2)."""
    if form == "ratio":
        return []
    return ["--form rate (Eq. 2) is unbounded as the network vanishes: it may prefer a destroyed network"]


def on_epsilon(epsilon: float, can_be_met: bool) -> list[str]:
    """About a risk that no number of paths drawn for the certificate can bound."""
    if can_be_met:
        return []
    return [f"--epsilon {epsilon:g} asks the joint certificate for more paths than it draws: it will not be met"]


def on_fidelity(fidelity: FidelityRecord) -> list[str]:
    """About a network that is no longer the original in any useful sense."""
    if fidelity.relative <= LOST_RELATIVE_NORM:
        return []
    return [
        f"the compressed network has lost the original's outputs (relative function norm "
        f"{fidelity.relative:.2f}): raise gamma"
    ]


def on_certificate(certificate: CertificateRecord, stopped_because: str) -> list[str]:
    """About a search that ended without its certificate."""
    if certificate.met:
        return []
    before = f"the search stopped before its certificate held ({stopped_because})"
    margin = f"better by more than {certificate.delta:.3g} with probability"
    if certificate.asked == "joint" and certificate.joint is not None:
        joint = certificate.joint
        return [f"{before}: some plan is {margin} {joint.estimate:.2g}, at most {joint.upper:.2g}"]
    return [f"{before}: a given other plan may be {margin} {certificate.pointwise:.2g}"]


def on_target(target: TargetRecord) -> list[str]:
    """About a target that the result does not keep to."""
    if target.met:
        return []
    known = f", at most {target.at_most:.4g} with 95 % confidence" if target.kind == "drop" else ""
    return [
        f"{TARGET_OPTIONS[target.kind]} {target.asked:g} is not kept: the best found has {target.reached:.4g}{known}"
    ]


def on_prune(fraction: float) -> list[str]:
    """About what the search judged."""
    return ["objective and certificate speak of the network before the final pruning"] if fraction else []


def on_samples(samples: int, num_images: int) -> list[str]:
    """About a search that has too few images to draw from."""
    if num_images >= 2 * samples:
        return []
    return [f"only {num_images} images to search with: looks share most of them, the estimates lean on few images"]


def on_calibration(num_images: int, wanted: int, smallest: int, largest_share: float) -> list[str]:
    """About images that were to be set aside for calibration, and were too few: `wanted` of `num_images` at most."""
    if not wanted:
        return []
    without = "factors are those of the weights alone, and no layer was recalibrated"
    if wanted < smallest:
        return [f"--calibration {wanted} is too few to fit factors on: {without}; at least {smallest} are needed"]
    needed = ceil(smallest / largest_share)
    return [f"{num_images} images are too few to fit factors on: {without}; {needed} images are enough to begin with"]


def on_labels(num_classes: int, num_outputs: int) -> list[str]:
    """About class folders that cannot be matched with the network's outputs."""
    if num_classes == num_outputs:
        return []
    return [
        f"the folder has {num_classes} classes and the network {num_outputs} outputs: labels are ignored, "
        "no top-1 is reported"
    ]


def on_latency(provider: str, ratio_low: float) -> list[str]:
    """About a file that is not faster."""
    if ratio_low < 1.0:
        return []
    return [f"on {provider} the compressed network is not faster than the original on this machine"]


def on_tuning(record: TuneRecord) -> list[str]:
    """About a fine-tuning that went wrong, or brought nothing."""
    warnings = []
    if record.rows[-1].train_loss is None and record.rows[-1].epoch:
        warnings.append(f"fine-tuning stopped early: {record.stopped_because}")
    if record.kept_epoch == 0:
        warnings.append(
            "fine-tuning did not lower the loss on other images: the weights from before it were kept (try a lower "
            "--learning-rate or more images)"
        )
    if record.excluded:
        warnings.append(f"{record.excluded} images of --train-data check or judge, and were left out of the training")
    return warnings


def on_precision(record: PrecisionRecord) -> list[str]:
    """About a file in another precision that is not faster than the float32 one, or is much further away."""
    name = record.precision
    warnings = []
    for provider, latency in record.latency_to_float32.items():
        if latency.ratio_low > 1.0:
            warnings.append(
                f"on {provider} {record.file} is slower than the compressed float32 file on this machine: "
                f"{latency.ratio:.2f} of its time ({latency.ratio_low:.2f} to {latency.ratio_high:.2f})"
            )
        elif latency.ratio_high >= 1.0:
            warnings.append(f"on {provider} {record.file} is not faster than the compressed float32 file here")
    quantization = record.quantization
    if quantization is not None and quantization.added_norm > quantization.allowed_norm:
        warnings.append(
            f"{name} adds a function norm of {quantization.added_norm:.2g} to the float32 file's, more than the "
            f"{quantization.allowed_norm:.2g} meant for it, with {len(quantization.float_layers)} of "
            f"{quantization.layers} layers left in float"
        )
    return warnings
