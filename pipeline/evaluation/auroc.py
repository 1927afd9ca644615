"""AUROC: variance, interval and paired test by DeLong, in O(n log n).

E. DeLong et al., Biometrics 1988; the fast form is X. Sun and W. Xu, IEEE SPL 2014.
Several images of a patient: N. Obuchowski, Biometrics 1997, which is DeLong's variance
with the images' shares summed within each patient, and equals it for one image each.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from pipeline.evaluation.intervals import LEVEL, Interval, lengthened

_ROUNDING = 1e-12


def delong(
    label: NDArray[np.integer],
    scores: NDArray[np.floating],
    *,
    group: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROCs of ``m`` scores on the same images, ``(m,)``, and their covariance ``(m, m)``.

    Args:
        label: Shape ``(n,)``, 0 or 1.
        scores: Shape ``(m, n)``; larger means class 1.
        group: Patient of each image; None takes the images as independent.

    Raises:
        ValueError: Not two classes, or one of them in fewer than two patients.
    """
    label, patient = np.asarray(label), _numbered(group, len(label))
    is_positive = label == 1
    _check(label, patient)
    v10, v01 = _shares(is_positive, scores)
    m, n = v10.shape[1], v01.shape[1]
    area = v10.mean(axis=1)
    up = _patient_sums(v10 - area[:, None], patient[is_positive], patient) / m
    down = _patient_sums(v01 - area[:, None], patient[~is_positive], patient) / n
    cross = up @ down.T  # 0 unless a patient has images of both classes
    covariance = (
        _unbiased(patient[is_positive]) * (up @ up.T)
        + _unbiased(patient[~is_positive]) * (down @ down.T)
        + _unbiased(patient) * (cross + cross.T)
    )
    return area, covariance


def _shares(
    is_positive: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each image, how many of the other class it is ordered rightly against.

    Returns:
        Shares of the positive images, and of the negative ones, in [0, 1].
    """
    positive, negative = scores[:, is_positive], scores[:, ~is_positive]
    m, n = positive.shape[1], negative.shape[1]
    joint = rankdata(np.hstack([positive, negative]), axis=1)
    # Midranks within and across the classes.
    v10 = (joint[:, :m] - rankdata(positive, axis=1)) / n
    v01 = 1 - (joint[:, m:] - rankdata(negative, axis=1)) / m
    return v10, v01


def auroc_interval(
    label: NDArray[np.integer],
    score: NDArray[np.floating],
    *,
    group: NDArray[Any] | None = None,
    level: float = LEVEL,
) -> Interval:
    """One AUROC with an interval made on the logit scale, so that it stays inside 0 to 1.

    An area of exactly 1 (or 0) has no variance to go by; its bound is then exact and wide.

    Args:
        label: Shape ``(n,)``, 0 or 1.
        score: Shape ``(n,)``; larger means class 1.
        group: Patient of each image; None takes the images as independent.
        level: Nominal coverage, 0 to 1.

    Raises:
        ValueError: See :func:`delong`.
    """
    label, patient = np.asarray(label), _numbered(group, len(label))
    areas, covariance = delong(label, np.asarray(score)[None], group=group)
    area, variance = float(areas[0]), float(covariance[0, 0])
    low = high = area  # all scores are equal
    if area in (0.0, 1.0):
        bound = bound_of_one(label, patient, level)
        low, high = (bound, 1.0) if area else (0.0, 1 - bound)
    elif variance > 0:
        half = norm.isf((1 - level) / 2) * np.sqrt(variance) / (area * (1 - area))
        low, high = expit(logit(area) + np.array([-half, half])).tolist()
    return Interval(
        estimate=area, low=low, high=high, level=level, **_counts(patient), method=_method(patient)
    )


def paired_delong(
    label: NDArray[np.integer],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    group: NDArray[Any] | None = None,
) -> tuple[Interval, float]:
    """AUROC of the first score minus that of the second on the same images, and two-sided p.

    Where no image is ordered better by one of them, the variance knows nothing of images
    that may be; the interval is then longer on that side by what a perfect score may lack.

    Args:
        label: Shape ``(n,)``, 0 or 1.
        first: Shape ``(n,)``; larger means class 1.
        second: Another score of the same images.
        group: Patient of each image; None takes the images as independent.

    Raises:
        ValueError: See :func:`delong`.
    """
    label, scores = np.asarray(label), np.stack([first, second])
    patient = _numbered(group, len(label))
    areas, c = delong(label, scores, group=group)
    difference = float(areas[0] - areas[1])
    error = float(np.sqrt(max(c[0, 0] + c[1, 1] - 2 * c[0, 1], 0.0)))
    half = norm.isf((1 - LEVEL) / 2) * error
    pairs = _strangers(label, patient)
    room = 1 - _least(pairs, LEVEL)
    steps = np.concatenate([one[0] - one[1] for one in _shares(label == 1, scores)])
    low, high = lengthened(
        difference,
        difference - half,
        difference + half,
        below=0.0 if (steps < -_ROUNDING).any() else room,
        above=0.0 if (steps > _ROUNDING).any() else room,
    )
    if error:
        p = float(2 * norm.sf(abs(difference) / error))
    else:  # one that orders by chance is perfect on all those pairs as often as this
        p = min(1.0, 2 * 0.5**pairs) if difference else 1.0
    interval = Interval(
        estimate=difference,
        low=low,
        high=high,
        **_counts(patient),
        method=f"paired {_method(patient)}",
    )
    return interval, p


def _check(label: NDArray[np.integer], patient: NDArray[np.intp]) -> None:
    counts = dict(zip(*np.unique(label, return_counts=True), strict=True))
    patients = [np.unique(patient[label == k]).size for k in (0, 1)]
    if set(counts) != {0, 1} or min(patients) < 2:
        raise ValueError(
            "DeLong's variance needs labels 0 and 1, each at least twice, in two patients; "
            f"got images by label {counts}, patients of 0 and 1 {patients}"
        )


def _counts(patient: NDArray[np.intp]) -> dict[str, int]:
    return {"images": len(patient), "patients": len(np.unique(patient))}


def _method(patient: NDArray[np.intp]) -> str:
    return "DeLong" if len(np.unique(patient)) == len(patient) else "DeLong by patient"


def _numbered(group: NDArray[Any] | None, n: int) -> NDArray[np.intp]:
    if group is None:
        return np.arange(n)
    number: NDArray[np.intp] = np.unique(group, return_inverse=True)[1]
    return number


def _patient_sums(
    share: NDArray[np.float64], patient: NDArray[np.intp], everyone: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Sum ``(m, n)`` within patients, ``(m, P)``; a patient without such images has 0."""
    patients = int(everyone.max()) + 1
    return np.stack([np.bincount(patient, weights=row, minlength=patients) for row in share])


def _unbiased(patient: NDArray[np.intp]) -> float:
    count = np.unique(patient).size
    return count / (count - 1)


def bound_of_one(label: NDArray[np.integer], patient: NDArray[Any], level: float = LEVEL) -> float:
    """Lower bound where every positive lies above every negative: exact, and wide.

    Match positive with negative images into k pairs that share no patient. A head of area
    A orders all of them rightly with probability A^k, and being perfect on all images is
    no likelier. Below the root of (1 - level) / 2 that would be too great a chance.
    """
    return _least(_strangers(label, patient), level)


def _least(pairs: int, level: float) -> float:
    return float(((1 - level) / 2) ** (1 / pairs)) if pairs else 0.0


def _strangers(label: NDArray[np.integer], patient: NDArray[Any]) -> int:
    """How many pairs of a positive and a negative image there are that share no patient."""
    up, down = np.unique(patient[label == 1]), np.unique(patient[label == 0])
    return int(min(up.size, down.size, np.union1d(up, down).size // 2))
