"""The patient bootstrap itself: statistics evaluated on shared draws, in bounded memory.

All statistics given to one call see the same draws, so their difference is a paired one,
and which other heads are in the call changes nothing. A single head gets the same draws
again from a generator in the same state.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import (
    DRAWS,
    LEVEL,
    Interval,
    WeightedStatistic,
    Weights,
    patient_draws,
    percentile_interval,
)
from pipeline.evaluation.metrics import weighted_difference

#: Draws for an interval that decides between two heads: its ends must hardly move.
PAIRED_DRAWS = 10_000
# 2 MB of weights, which stay in a core's cache from one statistic to the next.
_BLOCK_CELLS = 1 << 18


def patient_blocks(
    group: Sequence[object] | NDArray[np.generic], rng: np.random.Generator, *, draws: int = DRAWS
) -> Iterator[Weights]:
    """The draws of :func:`patient_draws`, some at a time, so that n may be large.

    Args:
        group: ``n`` patient ids.
        rng: Source of randomness; the same state gives the same draws.
        draws: Number of draws, ``B``.

    Yields:
        Weights ``(b, n)`` of about 2 MB; together ``B`` draws.
    """
    step = max(1, _BLOCK_CELLS // max(1, len(group)))
    for start in range(0, draws, step):
        yield patient_draws(group, rng, draws=min(step, draws - start))


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
        statistic: For example an entry of ``WEIGHTED``, for one head's probabilities.
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
        n=len(group),
        groups=len(np.unique(np.asarray(group))),
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


def on_all_rows(statistic: WeightedStatistic, n: int) -> float:
    """The statistic on the data themselves, every row once; NaN where undefined."""
    return float(statistic(np.ones((1, n)))[0])
