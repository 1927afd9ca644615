"""Percentile intervals over draws of whole patients.

Statistics that are evaluated on the same draws are paired: their difference has an interval
of its own, and a further statistic beside them changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, PatientDraws, WeightedStatistic, draw_patients
from pipeline.evaluation.intervals import LEVEL, Interval, percentile_interval
from pipeline.evaluation.metrics import on_all_rows


def bootstrap_values(
    statistics: Sequence[WeightedStatistic], draws: PatientDraws
) -> NDArray[np.float64]:
    """Values of several statistics on the same draws.

    Args:
        statistics: ``S`` of them, for example one for each head.
        draws: Of the patients whose rows the statistics take.

    Returns:
        Shape ``(S, B)``; NaN where a draw does not define a statistic.
    """
    return draws.apply(lambda weights: np.stack([one(weights) for one in statistics]))


def bootstrap_interval(
    statistic: WeightedStatistic,
    group: Sequence[object] | NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """A statistic with its percentile interval.

    Args:
        statistic: For example an entry of ``METRICS`` for one head's probabilities, or the
            ``weighted_difference`` of two heads.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Number of draws.
        level: Nominal coverage, 0 to 1.
    """
    drawn = draw_patients(group, rng, draws=draws)
    low, high = percentile_interval(drawn.apply(statistic), level=level)
    return Interval(
        estimate=on_all_rows(statistic, len(group)),
        low=low,
        high=high,
        images=len(group),
        patients=len(drawn.patients),
        method="patient bootstrap",
        level=level,
    )


def two_way_interval(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[Any],
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
    drawn = draw_patients(group, rng, draws=draws)
    values = bootstrap_values(statistics, drawn)
    # A seed is drawn as a patient is: each of them is a sample of one.
    seeds = draw_patients(np.arange(len(statistics)), rng, draws=draws).weights()
    means = (seeds * values.T).sum(axis=1) / len(statistics)
    low, high = percentile_interval(means, level=level)
    return Interval(
        estimate=float(np.mean([on_all_rows(statistic, len(group)) for statistic in statistics])),
        low=low,
        high=high,
        images=len(group),
        patients=len(drawn.patients),
        method="bootstrap of seeds and patients",
        level=level,
    )
