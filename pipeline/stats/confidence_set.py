"""Which heads cannot be told from the best: the model confidence set.

P. R. Hansen, A. Lunde and J. M. Nason, The model confidence set, Econometrica 2011,
with the statistic T_max.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.stats.bootstrap import bootstrap_values, on_all_rows
from pipeline.stats.intervals import DRAWS, WeightedStatistic


@dataclass(frozen=True, kw_only=True)
class ConfidenceSet:
    """Heads among which the best is, with a probability of ``1 - alpha`` or more.

    Attributes:
        members: Columns that stay, ascending.
        p: Of each head, shape ``(M,)``: it stays at every alpha below.
        alpha: Chance that the best is not among the members.
    """

    members: tuple[int, ...]
    p: NDArray[np.float64]
    alpha: float


def confidence_set(
    statistics: Sequence[WeightedStatistic],
    group: Sequence[object] | NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
    alpha: float = 0.1,
) -> ConfidenceSet:
    """Drop the worst head as long as the rest are surely not all equally good.

    Args:
        statistics: Of ``M`` heads on the same images, larger is better.
        group: ``n`` patient ids.
        rng: Source of randomness.
        draws: Bootstrap draws of patients.
        alpha: Chance of losing the best, 0 to 1.
    """
    scores = np.array([on_all_rows(statistic, len(group)) for statistic in statistics])
    values = bootstrap_values(statistics, group, rng, draws=draws)
    values = values[:, np.isfinite(values).all(axis=0)]
    p, alive, reached = np.ones(len(scores)), list(range(len(scores))), 0.0
    while len(alive) > 1:
        worst, chance = _worst(scores[alive], values[alive])
        # A head stays at most as surely as those dropped before it: p never falls.
        reached = max(reached, chance)
        p[alive.pop(worst)] = reached
    members = tuple(int(k) for k in np.flatnonzero(p > alpha))
    return ConfidenceSet(members=members, p=p, alpha=alpha)


def _worst(scores: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[int, float]:
    """The head farthest below the mean in its own spreads, and the p of "all are equal"."""
    lag = scores.mean() - scores
    moved = values.mean(axis=0) - values - lag[:, None]
    # Heads with the same predictions have no spread, and no lag either.
    spread = np.maximum(np.sqrt((moved**2).mean(axis=1)), 1e-12)
    t = lag / spread
    return int(t.argmax()), float(((moved / spread[:, None]).max(axis=0) >= t.max()).mean())
