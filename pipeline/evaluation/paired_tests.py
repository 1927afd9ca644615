"""Which of two heads is better: tests on the same images.

There are two questions. Is one *trained* head better on this population? Predictions are fixed:
:func:`mcnemar`, :func:`sign_flip`, :func:`paired_delong`. Is one *algorithm* better for such data?
Training varies: :func:`correlated_t`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Interval, Z

#: Region of practical equivalence: one point of a rate.
ROPE = 0.01
#: A difference is called better or worse below this p, adjusted over the table's comparisons.
ALPHA = 0.05
#: Power of a planned comparison, if the observed difference is the true one.
_POWER = 0.8
_BLOCK_CELLS = 1 << 22  # 32 MB of signs at once
#: A variance below this counts as 0: it comes from rounding.
_ROUNDING = 1e-26


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired comparison: first minus second on the same images.

    Attributes:
        interval: The difference with its 95 % interval.
        p: Two-sided, of "no difference".
        p_adjusted: The same, adjusted over all comparisons of one table (Holm).
        test: How ``p`` was computed.
        verdict: ``better``, ``worse``, ``equivalent`` or ``inconclusive``; see :func:`verdict`.
    """

    interval: Interval
    p: float
    p_adjusted: float
    test: str
    verdict: str

    def record(self) -> dict[str, Any]:
        """One flat row: the interval, the test, and the patients needed to settle it."""
        is_open, values = self.verdict == "inconclusive", asdict(self)
        needed = patients_needed(self.interval) if is_open else None
        return {**values.pop("interval"), **values, "patients_needed": needed}


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Exact two-sided p of paired right and wrong answers ``(n,)`` (McNemar 1947)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differ = only_first + only_second
    return min(1.0, 2 * float(scipy.special.bdtr(min(only_first, only_second), differ, 0.5)))


def sign_flip(
    difference: NDArray[np.floating],
    group: NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = 9999,
) -> NDArray[np.float64]:
    """Two-sided permutation p of mean paired differences; patients are flipped whole.

    Args:
        difference: Shape ``(n,)`` or ``(H, n)``: score of a head minus that of another. All
            heads have the same flips, so leaving one out changes no other p.
        group: Patient of each image.
        rng: Source of randomness.
        draws: Random flips; the observed one counts too.
    """
    member = np.unique(group, return_inverse=True)[1]
    sums = np.stack([np.bincount(member, weights=row) for row in np.atleast_2d(difference)]).T
    observed = np.abs(sums.sum(axis=0))
    least, reached = observed - 1e-12 * np.maximum(1.0, observed), np.zeros(len(observed))
    step = max(1, _BLOCK_CELLS // len(sums))
    for start in range(0, draws, step):
        size = (min(step, draws - start), len(sums))
        signs = rng.integers(0, 2, size, dtype=np.int8) * 2.0 - 1
        reached += (np.abs(signs @ sums) >= least).sum(axis=0)
    return ((1 + reached) / (draws + 1)).reshape(difference.shape[:-1])


def paired_delong(
    label: NDArray[np.integer],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    group: NDArray[Any],
) -> float:
    """Two-sided p of "two scores ``(n,)`` of the same images have the same AUROC" (DeLong 1988).

    It takes O(n log n) (X. Sun and W. Xu, IEEE SPL 2014). If patients have several images, the
    variance is N. Obuchowski's (Biometrics 1997): DeLong's, with shares summed within patients.

    Args:
        label: Shape ``(n,)``, 0 or 1.
        first: Larger means class 1.
        second: The same of the other score.
        group: Patient of each image.

    Raises:
        ValueError: Not two classes, or one of them in fewer than two patients.
    """
    everyone, patient = np.unique(group, return_inverse=True)
    of_class = [label == 1, label == 0]
    patients = [np.unique(patient[rows]).size for rows in of_class]
    if set(np.unique(label)) != {0, 1} or min(patients) < 2:
        raise ValueError(
            "DeLong's variance needs labels 0 and 1, each in two patients or more; got labels "
            f"{np.unique(label)}, patients of 1 and 0 {patients}"
        )
    shares = _shares(of_class[0], np.stack([first, second]))
    gaps = [of_first - of_second for of_first, of_second in shares]
    difference = float(gaps[0].mean())
    up, down = (
        np.bincount(patient[rows], (gap - difference) / gap.size, minlength=everyone.size)
        for rows, gap in zip(of_class, gaps, strict=True)
    )
    unbiased = [n / (n - 1) for n in (*patients, everyone.size)]
    # The last is 0 unless a patient has images of both classes.
    variance = np.dot(unbiased, [up @ up, down @ down, 2 * up @ down])
    if variance > _ROUNDING:
        return float(2 * scipy.special.ndtr(-abs(difference) / np.sqrt(variance)))
    # How often a score that orders by chance is perfect on all pairs without a common patient.
    pairs = disjoint_pairs(label, group)
    return min(1.0, 2 * 0.5**pairs) if difference else 1.0


def _shares(
    is_positive: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each positive and each negative image, the share of the other class ordered correctly."""
    from scipy.stats import rankdata  # late: it takes half a second to import

    positive, negative = scores[:, is_positive], scores[:, ~is_positive]
    m, n = positive.shape[1], negative.shape[1]
    joint = rankdata(np.hstack([positive, negative]), axis=1)
    # Midranks within and across the classes.
    v10 = (joint[:, :m] - rankdata(positive, axis=1)) / n
    v01 = 1 - (joint[:, m:] - rankdata(negative, axis=1)) / m
    return v10, v01


def disjoint_pairs(label: NDArray[Any], patient: NDArray[Any]) -> int:
    """Number of disjoint pairs of a positive and a negative image without a common patient."""
    up, down = np.unique(patient[label == 1]), np.unique(patient[label == 0])
    return int(min(up.size, down.size, np.union1d(up, down).size // 2))


def holm(p: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Adjusted p values that control the family-wise error (Holm 1979).

    Statsmodels' ``multipletests`` collects all garbage of the process at each call, in 70 ms.
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def correlated_t(difference: NDArray[np.floating], *, runs: int) -> dict[str, float]:
    """Bayesian correlated t-test over repeated cross-validation (Corani and Benavoli 2015).

    Its posterior is the sampling distribution of the corrected resampled t-test (Nadeau and
    Bengio 2003): splits of one data set are not independent, so their variance is inflated.

    Args:
        difference: Shape ``(J,)``, J >= 2: first minus second on each fold of each run.
        runs: How many times the folds were made; J is a multiple of it.

    Returns:
        Probability that the first is worse, practically equal, better; sums to 1.
    """
    import baycomp  # takes 1.6 s to import, and only a thorough comparison needs it

    # It takes second minus first.
    nothing = np.zeros(len(difference))
    worse, equal, better = baycomp.CorrelatedTTest.probs(nothing, difference, ROPE, runs=runs)
    return {"worse": float(worse), "equal": float(equal), "better": float(better)}


def verdict(low: float, high: float, p_adjusted: float) -> str:
    """The verdict on a difference.

    Args:
        low: Lower end of its interval.
        high: Upper end.
        p_adjusted: Adjusted over the comparisons of the table, so that one head of many is
            not called better by chance.

    Returns:
        ``equivalent`` if the whole interval is within one point; ``better`` or ``worse`` if 0 is
        outside and ``p_adjusted`` is below ``ALPHA``; otherwise ``inconclusive``: no difference
        was found, which does not show that there is none.
    """
    if low >= -ROPE and high <= ROPE:
        return "equivalent"
    if p_adjusted < ALPHA and (low > 0 or high < 0):
        return "better" if low > 0 else "worse"
    return "inconclusive"


def patients_needed(interval: Interval) -> int | None:
    """How many patients like these would decide an inconclusive difference.

    The half width of an interval falls with the square root of the number of patients; the
    observed width includes how similar the images of a patient are. With the returned number, an
    interval around the observed difference excludes 0, or lies within one point, in 80 % of
    samples. None if no number is enough: the difference is near one point.
    """
    half, gap = (interval.high - interval.low) / 2, abs(interval.estimate)
    longer = (Z + scipy.special.ndtri(_POWER)) / Z * half
    room = max(gap, ROPE - gap)
    if not math.isfinite(half) or room <= 0:
        return None
    return max(interval.patients, math.ceil(interval.patients * float(longer / room) ** 2))
