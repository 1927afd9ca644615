"""Percentile intervals over draws of whole patients.

Statistics that are evaluated on the same draws are paired: their difference has an interval
of its own, and a further statistic beside them changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, PatientDraws, WeightedStatistic, draw_patients
from pipeline.evaluation.intervals import LEVEL, Interval, wilson
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
    return draws.apply(lambda weights: np.stack([statistic(weights) for statistic in statistics]))


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

    Where all are equal, those of images that were not drawn may yet be others: of as many
    patients, so many more as Wilson's bound of a rate of 0 allows.
    """
    low, high = percentile_interval(draws.mean(values))
    if np.ptp(values) == 0:
        room = wilson(0, len(draws.patients))[1]
        low, high = max(-1.0, low - room), min(1.0, high + room)
    return low, high


def interval_of_draws(
    estimate: float,
    data: DomainData,
    values: NDArray[np.float64] | None = None,
    *,
    method: str = "patient bootstrap",
) -> Interval:
    """A number of some rows with the percentiles of its draws, or without an interval.

    Args:
        estimate: The number.
        data: The rows.
        values: Its draws; None, or none that is defined: the bounds are NaN.
        method: What was drawn.
    """
    low, high = percentile_interval(np.empty(0) if values is None else values)
    return Interval(
        estimate=estimate,
        low=low,
        high=high,
        images=len(data),
        patients=data.patients,
        method=method if np.isfinite(low) else "none",
    )


def bootstrap_interval(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> Interval:
    """Mean over seeds of a statistic, with seeds and patients both drawn again.

    One statistic alone is drawn by patient. A few seeds are a small sample: below about ten
    the seeds' share of the width is too small.

    Args:
        statistics: ``S`` of them, one for each seed.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Number of draws.
    """
    drawn = draw_patients(group, rng, draws=draws)
    values = bootstrap_values(statistics, drawn)
    # A seed is drawn as a patient is: each of them is a sample of one.
    seeds = draw_patients(np.arange(len(statistics)), rng, draws=draws).weights()
    means = (seeds * values.T).sum(axis=1) / len(statistics)
    low, high = percentile_interval(means)
    return Interval(
        estimate=float(np.mean([on_all_rows(statistic, len(group)) for statistic in statistics])),
        low=low,
        high=high,
        images=len(group),
        patients=len(drawn.patients),
        method="patient bootstrap" if len(statistics) == 1 else "bootstrap of seeds and patients",
    )
