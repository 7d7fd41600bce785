"""95 % intervals of shares of images: of one share, and of the change of a share on the same images."""

from math import sqrt

from scipy.stats import binomtest

from compressor.fidelity.records import PairedChange


def wilson(count: int, images: int) -> tuple[float, float]:
    """The interval of a share (Wilson 1927), which holds for few images and for shares of none and all, too."""
    interval = binomtest(count, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def paired_change(both: int, lost: int, gained: int, neither: int) -> PairedChange:
    """The change of the share of images that are right, with its interval (Newcombe 1998, method 10).

    Images are paired: the more the same ones are right before and after, the narrower it is than for other images.

    Args:
        both: images right before and after.
        lost: right before alone.
        gained: right after alone.
        neither: wrong before and after.
    """
    images = both + lost + gained + neither
    before, after = (both + lost) / images, (both + gained) / images
    (low_before, high_before), (low_after, high_after) = wilson(both + lost, images), wilson(both + gained, images)
    correlation = _correlation(both, lost, gained, neither)
    change = after - before
    below = _combined(after - low_after, high_before - before, correlation)
    above = _combined(high_after - after, before - low_before, correlation)
    return PairedChange(
        images=images, lost=lost, gained=gained, change=change, low=max(change - below, -1), high=min(change + above, 1)
    )


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """Of the two networks' hits, with Newcombe's correction for continuity; zero where either is all right or wrong."""
    images = both + lost + gained + neither
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    covariance: float = both * neither - lost * gained
    if covariance > 0:
        covariance = max(covariance - images / 2, 0.0)
    return covariance / sqrt(product) if product else 0.0


def _combined(first: float, second: float, correlation: float) -> float:
    return sqrt(max(first**2 - 2 * correlation * first * second + second**2, 0.0))
