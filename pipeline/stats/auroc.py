"""AUROC: variance, interval and paired test by DeLong, in O(n log n).

E. DeLong et al., Biometrics 1988; the fast form is X. Sun and W. Xu, IEEE SPL 2014.
Images count as independent here; for several images of a patient use the bootstrap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from pipeline.stats.intervals import LEVEL


@dataclass(frozen=True, kw_only=True)
class DeLong:
    """AUROCs of ``m`` scores on the same images, with their covariance ``(m, m)``."""

    auroc: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PairedAUROC:
    """Difference of two AUROCs on the same images, its interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


def delong(label: NDArray[np.integer], scores: NDArray[np.floating]) -> DeLong:
    """AUROC and covariance of several scores.

    Args:
        label: Shape ``(n,)``, 0 or 1.
        scores: Shape ``(m, n)``; larger means class 1.

    Raises:
        ValueError: Not two classes, both present at least twice.
    """
    label = np.asarray(label)
    if set(np.unique(label)) != {0, 1} or min(np.bincount(label)) < 2:  # noqa: PLR2004 - a variance
        raise ValueError(
            "DeLong's variance needs labels 0 and 1, each at least twice; got "
            f"{dict(zip(*np.unique(label, return_counts=True), strict=True))}"
        )
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    m, n = positive.shape[1], negative.shape[1]
    joint = rankdata(np.hstack([positive, negative]), axis=1)
    # Midranks within and across the classes give each image's share of the area.
    v10 = (joint[:, :m] - rankdata(positive, axis=1)) / n
    v01 = 1 - (joint[:, m:] - rankdata(negative, axis=1)) / m
    covariance = np.atleast_2d(np.cov(v10)) / m + np.atleast_2d(np.cov(v01)) / n
    return DeLong(auroc=v10.mean(axis=1), covariance=covariance)


def auroc_interval(
    label: NDArray[np.integer], score: NDArray[np.floating], *, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of one AUROC, made on the logit scale so that it stays inside 0 to 1.

    Raises:
        ValueError: See :func:`delong`.
    """
    found = delong(label, np.asarray(score)[None])
    area, variance = float(found.auroc[0]), float(found.covariance[0, 0])
    if variance <= 0 or area in (0.0, 1.0):
        return area, area
    half = norm.isf((1 - level) / 2) * np.sqrt(variance) / (area * (1 - area))
    centre = np.log(area / (1 - area))
    low, high = 1 / (1 + np.exp(-np.array([centre - half, centre + half])))
    return float(low), float(high)


def paired_delong(
    label: NDArray[np.integer], first: NDArray[np.floating], second: NDArray[np.floating]
) -> PairedAUROC:
    """Compare two scores on the same images.

    Raises:
        ValueError: See :func:`delong`.
    """
    found = delong(label, np.stack([first, second]))
    c = found.covariance
    difference = float(found.auroc[0] - found.auroc[1])
    spread = float(np.sqrt(max(c[0, 0] + c[1, 1] - 2 * c[0, 1], 0.0)))
    if spread == 0:
        return PairedAUROC(difference=difference, low=difference, high=difference, p=1.0)
    half = norm.isf((1 - LEVEL) / 2) * spread
    return PairedAUROC(
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=float(2 * norm.sf(abs(difference) / spread)),
    )
