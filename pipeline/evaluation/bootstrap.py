"""Percentile intervals over draws of whole patients.

Statistics that are evaluated on the same draws are paired: their difference has an interval
of its own, and a further statistic beside them changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, PatientDraws, WeightedStatistic, draw_patients
from pipeline.evaluation.intervals import LEVEL, Interval
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


def percentile_interval(
    values: NDArray[np.float64], *, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bounds of bootstrap values; undefined draws (NaN) are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Mean over seeds of a statistic, with seeds and patients both drawn again.

    One statistic alone is drawn by patient. A few seeds are a small sample: below about ten
    the seeds' share of the width is too small.

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
        method="patient bootstrap" if len(statistics) == 1 else "bootstrap of seeds and patients",
        level=level,
    )
