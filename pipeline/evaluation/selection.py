"""What the best of several heads is worth, and which heads may be the best.

The best of many looks better than it is, because the choice was made on the same patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, WeightedStatistic, Weights, draw_patients
from pipeline.evaluation.bootstrap import bootstrap_values
from pipeline.evaluation.intervals import Interval, share_of
from pipeline.evaluation.metrics import on_all_rows


@dataclass(frozen=True, kw_only=True)
class SelectionCorrected:
    """What the best of several heads is worth on new patients.

    Attributes:
        chosen: Number of the head that looks best.
        apparent: Its value on the rows that chose it: too good.
        interval: The corrected value.
    """

    chosen: int
    apparent: float
    interval: Interval


def bbc_cv(
    statistics: Sequence[WeightedStatistic],
    group: NDArray[Any],
    rng: np.random.Generator,
    *bases: NDArray[Any],
    draws: int = 500,
) -> SelectionCorrected:
    """Bootstrap bias corrected cross-validation (Tsamardinos et al. 2018).

    The estimate is the mean value out of bag of whatever is best in bag. Its interval is that
    of the chosen head, or longer where the choice varies. (Percentiles of the values out of
    bag, as in the paper, are those of a third of the patients, and have no width where nobody
    erred.)

    Args:
        statistics: Of ``M`` heads' out-of-fold predictions, in [0, 1], larger is better.
        group: Patient of each row.
        rng: Source of randomness.
        bases: Patients that the statistics rest on; see :class:`Share`.
        draws: Bootstrap draws of patients; those that define no value in or out of bag
            are left out.

    Raises:
        ValueError: Fewer than two patients, so nothing is ever out of bag; or no draw
            defines the value on both sides.
    """
    drawn = draw_patients(group, rng, draws=draws)
    if len(drawn.patients) < 2:
        raise ValueError("a selection-corrected value needs images of two patients or more")
    outside = drawn.apply(lambda weights: _best_out_of_bag(statistics, weights))
    outside = outside[np.isfinite(outside)]
    if not len(outside):
        raise ValueError(
            f"none of {draws} draws defines the value in and out of bag: too few patients, or "
            "a class in one patient only; use a metric that one class defines, as accuracy"
        )
    apparent = np.array([on_all_rows(statistic, len(group)) for statistic in statistics])
    chosen = int(apparent.argmax())
    best = share_of(statistics[chosen], group, *bases)
    # A value out of bag is one of exp(-1) of the patients, and varies so much more.
    longer = np.sqrt(max(1.0, np.exp(-1) * outside.var() / max(best.variance, 1e-12)))
    corrected = replace(best, estimate=float(outside.mean()), moves=longer * best.moves)
    return SelectionCorrected(chosen=chosen, apparent=best.estimate, interval=corrected.interval())


def _best_out_of_bag(
    statistics: Sequence[WeightedStatistic], weights: Weights
) -> NDArray[np.float64]:
    """Value out of bag of the best in bag, ``(b,)``; NaN for a draw that lacks one of both."""
    inside = np.stack([statistic(weights) for statistic in statistics])
    outside = np.stack([statistic((weights == 0) * 1.0) for statistic in statistics])
    defined = (np.isfinite(inside) & np.isfinite(outside)).all(axis=0)
    best = np.where(defined, inside, 0.0).argmax(axis=0)
    return np.where(defined, outside[best, np.arange(best.size)], np.nan)


#: Chance that the best head is not among those that may be the best.
ALPHA = 0.1


def confidence_set(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> list[int]:
    """Heads that may be the best: the model confidence set (Hansen, Lunde and Nason 2011).

    By patient; the worst head is dropped as long as the rest are surely not all equally good.

    Args:
        statistics: Of ``M`` heads on the same images, larger is better.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Bootstrap draws of patients.

    Returns:
        Their numbers, ascending.
    """
    scores = np.array([on_all_rows(statistic, len(group)) for statistic in statistics])
    values = bootstrap_values(statistics, draw_patients(group, rng, draws=draws))
    values = values[:, np.isfinite(values).all(axis=0)]
    alive = list(range(len(scores)))
    while len(alive) > 1:
        worst, chance = _worst(scores[alive], values[alive])
        if chance > ALPHA:
            break
        del alive[worst]
    return alive


def _worst(scores: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[int, float]:
    """The head farthest below the mean in its own spreads, and the p of "all are equal"."""
    lag = scores.mean() - scores
    moved = values.mean(axis=0) - values - lag[:, None]
    # Heads with the same predictions have no spread, and no lag either.
    spread = np.maximum(np.sqrt((moved**2).mean(axis=1)), 1e-12)
    t = lag / spread
    return int(t.argmax()), float(((moved / spread[:, None]).max(axis=0) >= t.max()).mean())
