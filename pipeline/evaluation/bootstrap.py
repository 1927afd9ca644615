"""The patient bootstrap itself: statistics evaluated on shared draws, in bounded memory.

All statistics given to one call see the same draws, so their difference is a paired one,
and which other heads are in the call changes nothing. A single head gets the same draws
again from a generator in the same state.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, WeightedStatistic, Weights, draw_patients
from pipeline.evaluation.intervals import (
    LEVEL,
    Interval,
    percentile_interval,
)
from pipeline.evaluation.metrics import on_all_rows, weighted_difference

#: Draws for an interval that decides between two heads: its ends must hardly move.
PAIRED_DRAWS = 10_000


def patient_blocks(
    group: Sequence[object] | NDArray[np.generic], rng: np.random.Generator, *, draws: int = DRAWS
) -> Iterator[Weights]:
    """Old form of :class:`pipeline.data.patients.PatientDraws`: its weights in blocks."""
    drawn = draw_patients(group, rng, draws=draws)
    return (drawn.weights(which) for which in drawn.blocks())


def bootstrap_values(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Values of several statistics on the same draws of patients.

    Args:
        statistics: ``S`` of them, for example one for each head.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Number of draws, ``B``.

    Returns:
        Shape ``(S, B)``; NaN where a draw does not define a statistic.
    """
    blocks = [
        np.stack([statistic(weights) for statistic in statistics])
        for weights in patient_blocks(group, rng, draws=draws)
    ]
    return np.concatenate(blocks, axis=1)


def bootstrap_interval(
    statistic: WeightedStatistic,
    group: Sequence[object] | NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """A statistic with its percentile interval over draws of whole patients.

    Args:
        statistic: For example an entry of ``METRICS``, for one head's probabilities.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Number of draws.
        level: Nominal coverage, 0 to 1.
    """
    values = bootstrap_values([statistic], group, rng, draws=draws)[0]
    low, high = percentile_interval(values, level=level)
    return Interval(
        estimate=on_all_rows(statistic, len(group)),
        low=low,
        high=high,
        images=len(group),
        patients=len(np.unique(np.asarray(group))),
        method="patient bootstrap",
        level=level,
    )


def paired_bootstrap(
    first: WeightedStatistic,
    second: WeightedStatistic,
    group: Sequence[object] | NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = PAIRED_DRAWS,
) -> Interval:
    """Difference of a statistic of two heads on the same images, 95 % by patients.

    Args:
        first: Of the first head.
        second: The same statistic of the second.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Number of draws.

    Returns:
        First minus second; :func:`pipeline.evaluation.paired_tests.verdict` reads it.
    """
    return bootstrap_interval(weighted_difference(first, second), group, rng, draws=draws)
