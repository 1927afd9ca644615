"""Which of two heads is better: tests that keep the pairing of the images.

Two questions, never mixed: whether one *trained* head is better on this population
(fixed predictions, :func:`mcnemar`, :func:`sign_flip`), and whether one *procedure*
is better for data like this (training varies, :func:`nadeau_bengio`,
:func:`correlated_t`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student

from pipeline.data.patients import DRAWS, WeightedStatistic
from pipeline.evaluation.bootstrap import bootstrap_values
from pipeline.evaluation.intervals import (
    LEVEL,
    Interval,
    percentile_interval,
    score_interval,
)
from pipeline.evaluation.metrics import on_all_rows


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired comparison: first minus second on the same images.

    Attributes:
        interval: The difference with its 95 % interval.
        p: Two-sided, of "no difference".
        p_adjusted: The same, adjusted over all comparisons of one table (Holm).
        method: How ``p`` was computed.
        verdict: ``better``, ``worse``, ``equivalent`` or ``inconclusive``; see :func:`verdict`.
    """

    interval: Interval
    p: float
    p_adjusted: float
    method: str
    verdict: str


#: Region of practical equivalence: one point of a rate.
ROPE = 0.01
_BLOCK_CELLS = 1 << 22  # 32 MB of signs at once


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Images that only one of two heads has right, and the two-sided p values."""

    only_first: int
    only_second: int
    p: float
    p_mid: float


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Probability that the first is worse, practically equal, better; sums to 1."""

    worse: float
    equal: float
    better: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Exact test on paired right and wrong answers (McNemar 1947; mid-p: Fagerland 2013).

    Args:
        first: Shape ``(n,)``: whether the first head is right.
        second: The same for the second, on the same images.
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    if b + c == 0:
        return McNemar(only_first=0, only_second=0, p=1.0, p_mid=1.0)
    n, least = b + c, min(b, c)
    p_mid = min(1.0, float(2 * binom.cdf(least, n, 0.5) - binom.pmf(least, n, 0.5)))
    p = float(binomtest(least, n).pvalue)
    return McNemar(only_first=b, only_second=c, p=p, p_mid=p_mid)


def sign_flip(
    difference: NDArray[np.floating],
    group: NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = 9999,
) -> float:
    """Two-sided permutation p of a mean paired difference, patients flipped whole.

    Args:
        difference: Shape ``(n,)``: score of the first head minus that of the second.
        group: Patient of each image.
        rng: Source of randomness.
        draws: Random flips; the observed one counts too.
    """
    _, member = np.unique(group, return_inverse=True)
    sums = np.bincount(member, weights=difference)
    observed = abs(sums.sum())
    least, reached = observed - 1e-12 * max(1.0, observed), 0
    step = max(1, _BLOCK_CELLS // len(sums))
    for start in range(0, draws, step):
        size = (min(step, draws - start), len(sums))
        signs = rng.integers(0, 2, size, dtype=np.int8) * 2.0 - 1
        reached += int((np.abs(signs @ sums) >= least).sum())
    return (1 + reached) / (draws + 1)


def holm(p: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Adjusted p values that control the family-wise error (Holm 1979)."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    stepped = np.maximum.accumulate(values[order] * factors)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def nadeau_bengio(difference: NDArray[np.floating], *, test_share: float) -> float:
    """Two-sided p of a mean difference over resampled splits (Nadeau and Bengio 2003).

    Args:
        difference: Shape ``(J,)``: one for each split.
        test_share: Test rows by training rows; 1/4 for five folds.

    Raises:
        ValueError: One split only.
    """
    scale = _corrected_scale(difference, 1 / len(difference) + test_share)
    mean = float(np.mean(difference))
    if scale == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * student.sf(abs(mean) / scale, len(difference) - 1))


def correlated_t(
    difference: NDArray[np.floating], *, correlation: float, rope: float = ROPE
) -> Posterior:
    """Bayesian correlated t-test (Corani and Benavoli 2015).

    Args:
        difference: Shape ``(J,)``: first minus second on each split.
        correlation: Of two splits' differences: test rows by all rows.
        rope: Half width of the region of practical equivalence.

    Raises:
        ValueError: One split only.
    """
    count = len(difference)
    scale = _corrected_scale(difference, 1 / count + correlation / (1 - correlation))
    mean = float(np.mean(difference))
    if scale == 0:
        return Posterior(
            worse=float(mean < -rope), equal=float(abs(mean) <= rope), better=float(mean > rope)
        )
    worse = float(student.cdf((-rope - mean) / scale, count - 1))
    better = float(student.sf((rope - mean) / scale, count - 1))
    return Posterior(worse=worse, equal=1 - worse - better, better=better)


def verdict(low: float, high: float, *, rope: float = ROPE) -> str:
    """What an interval of a difference allows to be said.

    Returns:
        ``better`` or ``worse`` where 0 is outside; ``equivalent`` where all of it is
        within the region of practical equivalence; otherwise ``inconclusive``, because
        not finding a difference is not finding that there is none.
    """
    if not np.isfinite([low, high]).all():
        return "inconclusive"
    if -rope <= low and high <= rope:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "inconclusive"


def _corrected_scale(difference: NDArray[np.floating], factor: float) -> float:
    if len(difference) < 2:
        raise ValueError(
            f"a test over splits needs the differences of 2 or more splits; got {len(difference)}"
        )
    return float(np.sqrt(np.var(difference, ddof=1) * factor))


# Heads that depend on a seed: how often one beats the other, and intervals over seeds.


def probability_better(
    first: NDArray[np.floating], second: NDArray[np.floating], *, level: float = LEVEL
) -> Interval:
    """P(A > B): how often a training of A beats one of B (Bouthillier et al. 2021).

    The interval is Wilson's and not a bootstrap of seeds, which has no width where A wins
    under each of a few seeds. Ties make it wider than it need be: they vary less than wins.

    Args:
        first: Shape ``(S,)``: A's score under each seed, larger is better.
        second: B's under the same seeds.
        level: Nominal coverage, 0 to 1.

    Returns:
        0 to 1; a tie counts half. ``images`` and ``patients`` are the number of seeds. The patients
        are those of the scores: it says nothing of others.

    Raises:
        ValueError: The scores are not paired, or there is no seed.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(
            "P(A > B) needs one score of each head for each seed, the same seeds for both; "
            f"got shapes {a.shape} and {b.shape}"
        )
    wins = float(np.mean((a > b) + 0.5 * (a == b)))
    low, high = score_interval(wins, a.size, norm.isf((1 - level) / 2))
    return Interval(
        estimate=wins,
        low=low,
        high=high,
        images=a.size,
        patients=a.size,
        method="Wilson, over seeds",
        level=level,
    )


def two_way_interval(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Mean over seeds of a statistic, with seeds and patients both drawn again.

    For the difference of two heads give one ``weighted_difference`` for each seed. A few
    seeds are a small sample: below about ten the seeds' share of the width is too small.

    Args:
        statistics: ``S`` of them, one for each seed.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Number of draws.
        level: Nominal coverage, 0 to 1.
    """
    values = bootstrap_values(statistics, group, rng, draws=draws)
    seeds = len(statistics)
    often = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    low, high = percentile_interval((often * values.T).sum(axis=1) / seeds, level=level)
    n = len(group)
    return Interval(
        estimate=float(np.mean([on_all_rows(statistic, n) for statistic in statistics])),
        low=low,
        high=high,
        images=n,
        patients=len(np.unique(np.asarray(group))),
        method="seeds x patients bootstrap",
        level=level,
    )
