"""The text of every warning: one sentence each, printed and kept in the report."""

from collections.abc import Sequence
from math import ceil

from compressor.fidelity.records import Fidelity
from compressor.recovery.records import TuneRecord
from compressor.report.formatting import GAP
from compressor.report.records import PrecisionRecord
from compressor.report.wording import describe_difference
from compressor.search.objective import default_gamma
from compressor.search.records import CertificateRecord, Form
from compressor.text import join_words

MIN_COST_OF_ALL = 0.05  # of R, that losing the whole output costs at a gamma without a warning
WHOLE_OUTPUT: dict[Fidelity, str] = {"norm": "E||f*||^2", "risk": "log C", "error": "1 - 1 / C"}


def on_gamma(gamma: float, loss_when_lost: float, fidelity: Fidelity = "norm") -> list[str]:
    """About a gamma too small for this network's outputs.

    Args:
        gamma: the one chosen.
        loss_when_lost: L of a network that has lost its output altogether.
        fidelity: what L is.
    """
    if gamma * loss_when_lost >= MIN_COST_OF_ALL:
        return []
    suited = default_gamma(loss_when_lost)
    whole = f"{WHOLE_OUTPUT[fidelity]} = {loss_when_lost:.3g}"
    return [
        f"gamma {gamma:g} is small for this network: losing its whole output ({whole}) "
        f"costs only {gamma * loss_when_lost:.2g} of ratio; a gamma near {suited:.2g} keeps it useful"
    ]


def on_form(form: Form) -> list[str]:
    """About Eq. (2)."""
    if form == "ratio":
        return []
    return ["--form rate (Eq. 2) is unbounded as the size goes to zero: it may prefer a network that is useless"]


def on_epsilon(epsilon: float, can_be_met: bool) -> list[str]:
    """About a failure probability that the certificate's sample paths are too few to bound."""
    if can_be_met:
        return []
    return [f"--epsilon {epsilon:g} needs more sample paths than the joint certificate draws: it will not be met"]


def on_certificate(certificate: CertificateRecord, stopped_because: str) -> list[str]:
    """About a search that stopped without its certificate."""
    if certificate.met:
        return []
    before = f"the search stopped before its certificate was met ({stopped_because})"
    margin = describe_difference(certificate).replace(GAP, " ") + " with probability"
    if certificate.asked == "joint" and certificate.joint is not None:
        joint = certificate.joint
        if joint.suffices:
            return [f"{before}, and before its initial design was complete: allow more evaluations"]
        return [f"{before}: some plan {margin} {joint.estimate:.2g}, at most {joint.upper:.2g}"]
    return [f"{before}: a given other plan {margin} {certificate.pointwise:.2g}"]


def on_prune(fraction: float) -> list[str]:
    """About pruning after the search."""
    return ["objective and certificate are about the network before the final pruning"] if fraction else []


def on_samples(samples: int, num_images: int) -> list[str]:
    """About too few images for the search."""
    if num_images >= 2 * samples:
        return []
    return [f"only {num_images} images for the search: evaluations share most of them, so estimates rest on few images"]


def on_calibration(num_images: int, wanted: int, smallest: int, largest_share: float) -> list[str]:
    """About too few calibration images.

    Args:
        num_images: all images.
        wanted: how many were to be set aside for calibration; zero if nothing is fitted.
        smallest: how many are needed.
        largest_share: the share of all images that may be set aside.
    """
    if not wanted:
        return []
    without = "factors are those of the weights alone, without layer-wise reconstruction"
    if wanted < smallest:
        return [f"--calibration {wanted} is too few to fit factors on: {without}; at least {smallest} are needed"]
    needed = ceil(smallest / largest_share)
    return [f"{num_images} images are too few to fit factors on: {without}; at least {needed} are needed"]


def on_wide_layers(names: Sequence[str], limit: int) -> list[str]:
    """About layers whose moments would take too much memory.

    Args:
        names: of the layers.
        limit: numbers that one output is computed from, above which there are no moments.
    """
    if not names:
        return []
    are = "is too wide for its factors" if len(names) == 1 else "are too wide for their factors"
    return [
        f"{join_words(list(names))} {are} to be fitted to images (more than {limit:,} inputs to an output): they are "
        "the best approximation of the weight"
    ]


def on_unlabelled_drop(label_note: str) -> list[str]:
    """About a drop that was asked for where no accuracy can be measured, and why it cannot."""
    why = f" ({label_note})" if label_note else ""
    return [
        f"without labels{why} --max-drop is held against the function norm, in per cent of the energy of the "
        "original's outputs, not against points of an accuracy"
    ]


def on_latency(provider: str, ratio_low: float) -> list[str]:
    """About a file that is not faster."""
    if ratio_low < 1.0:
        return []
    return [f"on {provider} the compressed network is not faster than the original on this machine"]


def on_tuning(record: TuneRecord) -> list[str]:
    """About a fine-tuning that failed or gained nothing."""
    warnings = []
    if record.rows[-1].train_loss is None and record.rows[-1].epoch:
        warnings.append(f"fine-tuning stopped early: {record.stopped_because}")
    if record.kept_epoch == 0:
        warnings.append(
            "fine-tuning did not lower the loss on other images: the weights from before it were kept (try a lower "
            "--learning-rate or more images)"
        )
    if record.excluded:
        warnings.append(
            f"{record.excluded} images of --train-data are check, validation or test images, too: they were left out "
            "of the training"
        )
    return warnings


def on_precision(record: PrecisionRecord) -> list[str]:
    """About a file in another precision that is not faster than the float32 file, or much less faithful."""
    name = record.precision
    warnings = []
    for provider, latency in record.latency_to_float32.items():
        if latency.ratio_low > 1.0:
            warnings.append(
                f"on {provider} {record.file} is slower than the compressed float32 file on this machine: "
                f"{latency.ratio:.2f} times its time ({latency.ratio_low:.2f} to {latency.ratio_high:.2f})"
            )
        elif latency.ratio_high >= 1.0:
            warnings.append(
                f"on {provider} {record.file} is not faster than the compressed float32 file on this machine"
            )
    quantization = record.quantization
    if quantization is not None and quantization.added_norm > quantization.allowed_norm:
        warnings.append(
            f"{name} adds a function norm of {quantization.added_norm:.2g} to the float32 file's, more than the "
            f"{quantization.allowed_norm:.2g} allowed, with {len(quantization.float_layers)} of "
            f"{quantization.layers} layers kept in float32"
        )
    return warnings
