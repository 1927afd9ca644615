"""AUROC: covariance and paired test by DeLong, in O(n log n).

E. DeLong et al., Biometrics 1988; the fast form is X. Sun and W. Xu, IEEE SPL 2014.
Several images of a patient: N. Obuchowski, Biometrics 1997, which is DeLong's variance
with the images' shares summed within each patient, and equals it for one image each.
"""

from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline.evaluation.intervals import LEVEL


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
    from scipy.stats import rankdata  # late: it takes half a second to import

    positive, negative = scores[:, is_positive], scores[:, ~is_positive]
    m, n = positive.shape[1], negative.shape[1]
    joint = rankdata(np.hstack([positive, negative]), axis=1)
    # Midranks within and across the classes.
    v10 = (joint[:, :m] - rankdata(positive, axis=1)) / n
    v01 = 1 - (joint[:, m:] - rankdata(negative, axis=1)) / m
    return v10, v01


def paired_delong(
    label: NDArray[np.integer],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    group: NDArray[Any] | None = None,
) -> float:
    """Two-sided p of "two scores of the same images have the same AUROC".

    Args:
        label: Shape ``(n,)``, 0 or 1.
        first: Shape ``(n,)``; larger means class 1.
        second: Another score of the same images.
        group: Patient of each image; None takes the images as independent.

    Raises:
        ValueError: See :func:`delong`.
    """
    label = np.asarray(label)
    areas, c = delong(label, np.stack([first, second]), group=group)
    difference = float(areas[0] - areas[1])
    error = float(np.sqrt(max(c[0, 0] + c[1, 1] - 2 * c[0, 1], 0.0)))
    if error:
        return float(2 * scipy.special.ndtr(-abs(difference) / error))
    # One that orders by chance is perfect on all pairs of strangers as often as this.
    pairs = _disjoint_pairs(label, _numbered(group, len(label)))
    return min(1.0, 2 * 0.5**pairs) if difference else 1.0


def _check(label: NDArray[np.integer], patient: NDArray[np.intp]) -> None:
    counts = dict(zip(*np.unique(label, return_counts=True), strict=True))
    patients = [np.unique(patient[label == k]).size for k in (0, 1)]
    if set(counts) != {0, 1} or min(patients) < 2:
        raise ValueError(
            "DeLong's variance needs labels 0 and 1, each at least twice, in two patients; "
            f"got images by label {counts}, patients of 0 and 1 {patients}"
        )


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


def lower_bound_of_perfect_auroc(
    label: NDArray[np.integer], patient: NDArray[Any], level: float = LEVEL
) -> float:
    """Lower bound where every positive lies above every negative: exact, and wide.

    Match positive with negative images into k pairs that share no patient. A head of area
    A orders all of them rightly with probability A^k, and being perfect on all images is
    no likelier. Below the root of (1 - level) / 2 that would be too great a chance.
    """
    pairs = _disjoint_pairs(label, patient)
    return float(((1 - level) / 2) ** (1 / pairs)) if pairs else 0.0


def _disjoint_pairs(label: NDArray[np.integer], patient: NDArray[Any]) -> int:
    """How many pairs of a positive and a negative image there are that share no patient."""
    up, down = np.unique(patient[label == 1]), np.unique(patient[label == 0])
    return int(min(up.size, down.size, np.union1d(up, down).size // 2))
