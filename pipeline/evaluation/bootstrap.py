"""Draws of whole patients: percentile intervals, and the best of several heads.

Statistics that are evaluated on the same draws are paired: their difference has its own
interval, and adding another statistic changes nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import (
    DRAWS,
    PatientDraws,
    WeightedStatistic,
    Weights,
    draw_patients,
)
from pipeline.evaluation.intervals import LEVEL, Interval, rate_of, wilson
from pipeline.evaluation.metrics import on_all_rows

#: Probability that the best head is missing from the set of heads that may be the best.
SET_ALPHA = 0.1


def percentile_interval(
    values: NDArray[np.float64], *, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bounds of bootstrap values; undefined draws (NaN) are left out."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_bounds(values: NDArray[np.floating], draws: PatientDraws) -> tuple[float, float]:
    """Percentile bounds of a mean of differences, each in [-1, 1].

    If all are equal, other images might still differ: Wilson's bound for a rate of 0 of as many
    patients is added.
    """
    low, high = percentile_interval(draws.mean(values))
    if np.ptp(values) == 0:
        room = wilson(0, len(draws.patients))[1]
        low, high = max(-1.0, low - room), min(1.0, high + room)
    return low, high


def interval_of_draws(estimate: float, data: DomainData, values: NDArray[np.float64]) -> Interval:
    """A value with the percentiles of its draws as interval; NaN bounds without draws."""
    ends = percentile_interval(values)
    method = "patient bootstrap" if np.isfinite(ends[0]) else "none"
    return Interval.of(estimate, ends, data.group, method)


def bootstrap_interval(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> Interval:
    """Mean of a statistic over seeds; the interval draws both seeds and patients.

    With one statistic only patients are drawn. A few seeds are a small sample: below about ten
    the seeds' share of the width is too small.

    Args:
        statistics: One for each of ``S`` seeds.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Number of draws.
    """
    drawn = draw_patients(group, rng, draws=draws)
    values = drawn.apply(_stacked(statistics))
    # A seed is drawn as a patient is: each of them is a sample of one.
    seeds = draw_patients(np.arange(len(statistics)), rng, draws=draws).weights()
    means = (seeds * values.T).sum(axis=1) / len(statistics)
    estimates = [on_all_rows(statistic, len(group)) for statistic in statistics]
    method = "patient bootstrap" if len(statistics) == 1 else "bootstrap of seeds and patients"
    ends = percentile_interval(means)
    return Interval.of(float(np.mean(estimates)), ends, np.asarray(group), method)


# The best of several heads: what it is worth, and which may be it.


def bbc_cv(
    statistics: Sequence[WeightedStatistic],
    group: NDArray[Any],
    rng: np.random.Generator,
    *strata: NDArray[Any],
    draws: int = 500,
) -> tuple[int, float, Interval]:
    """Bootstrap bias corrected cross-validation (Tsamardinos et al. 2018).

    The best of many heads looks better than it is, because the choice was made on the same
    patients. The estimate is the mean out-of-bag value of the head that is best in bag. Its
    interval is that of the chosen head, or longer if the choice varies. (The authors' percentiles
    of out-of-bag values rest on a third of the patients, and have no width without errors.)

    Args:
        statistics: One for each of ``M`` heads, of its out-of-fold predictions, in [0, 1];
            larger is better.
        group: Patient of each row.
        rng: Source of randomness.
        strata: Patients that the statistics rest on; see
            :class:`pipeline.evaluation.intervals.Rate`.
        draws: Bootstrap draws of patients; draws in which the value is undefined in or out of
            bag are left out.

    Returns:
        Number of the head that looks best, its value on the rows that chose it, and the
        corrected value.

    Raises:
        ValueError: In no draw is the value defined in and out of bag.
    """
    drawn = draw_patients(group, rng, draws=draws)
    out_of_bag = drawn.apply(lambda weights: _best_out_of_bag(statistics, weights))
    out_of_bag = out_of_bag[np.isfinite(out_of_bag)]
    if not len(out_of_bag):
        raise ValueError(
            f"none of {draws} draws has a value both in and out of bag: there are too few "
            "patients, or a class has one; use a metric that one class defines, like accuracy"
        )
    apparent = np.array([on_all_rows(statistic, len(group)) for statistic in statistics])
    chosen = int(apparent.argmax())
    best = rate_of(statistics[chosen], group, *strata)
    # An out-of-bag value rests on a share of exp(-1) of the patients, so it varies more.
    longer = np.sqrt(max(1.0, np.exp(-1) * out_of_bag.var() / max(best.variance, 1e-12)))
    corrected = replace(best, estimate=float(out_of_bag.mean()), influence=longer * best.influence)
    return chosen, best.estimate, corrected.interval()


def _best_out_of_bag(
    statistics: Sequence[WeightedStatistic], weights: Weights
) -> NDArray[np.float64]:
    """Out-of-bag value of the best head in bag, ``(b,)``; NaN if one of both is undefined."""
    in_bag = np.stack([statistic(weights) for statistic in statistics])
    out_of_bag = np.stack([statistic((weights == 0) * 1.0) for statistic in statistics])
    defined = (np.isfinite(in_bag) & np.isfinite(out_of_bag)).all(axis=0)
    best = np.where(defined, in_bag, 0.0).argmax(axis=0)
    return np.where(defined, out_of_bag[best, np.arange(best.size)], np.nan)


def confidence_set(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> list[int]:
    """Heads that may be the best: the model confidence set (Hansen, Lunde and Nason 2011).

    Patients are drawn. The worst head is dropped until "all are equally good" is not rejected.

    Args:
        statistics: One for each of ``M`` heads, on the same images; larger is better.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Bootstrap draws of patients.

    Returns:
        Their numbers, ascending; the best is missing with a probability of ``SET_ALPHA``.
    """
    scores = np.array([on_all_rows(statistic, len(group)) for statistic in statistics])
    values = draw_patients(group, rng, draws=draws).apply(_stacked(statistics))
    values = values[:, np.isfinite(values).all(axis=0)]
    alive = list(range(len(scores)))
    while len(alive) > 1:
        worst, chance = _worst_head(scores[alive], values[alive])
        if chance > SET_ALPHA:
            break
        del alive[worst]
    return alive


def _worst_head(scores: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[int, float]:
    """The head farthest below the mean, in units of its spread, and the p of "all are equal"."""
    lag = scores.mean() - scores
    moved = values.mean(axis=0) - values - lag[:, None]
    # Heads with the same predictions have no spread and no distance to the mean.
    spread = np.maximum(np.sqrt((moved**2).mean(axis=1)), 1e-12)
    t = lag / spread
    return int(t.argmax()), float(((moved / spread[:, None]).max(axis=0) >= t.max()).mean())


def _stacked(statistics: Sequence[WeightedStatistic]) -> WeightedStatistic:
    """Values ``(S, b)`` of several statistics on the same draws."""
    return lambda weights: np.stack([statistic(weights) for statistic in statistics])
