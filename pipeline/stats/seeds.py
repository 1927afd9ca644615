"""Heads that depend on a seed: how often one beats the other, and intervals over seeds.

A seed is a sample from all trainings that could have been, just as a patient is from all
patients. An interval over patients of one seed's head answers for that head only.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipeline.stats.bootstrap import bootstrap_values, on_all_rows
from pipeline.stats.intervals import (
    DRAWS,
    LEVEL,
    Interval,
    WeightedStatistic,
    percentile_interval,
    score_interval,
)


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
        0 to 1; a tie counts half. ``n`` and ``groups`` are the number of seeds. The patients
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
        n=a.size,
        groups=a.size,
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
        n=n,
        groups=len(np.unique(np.asarray(group))),
        method="seeds x patients bootstrap",
        level=level,
    )
