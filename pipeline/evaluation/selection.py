"""The honest value of "the best of M": the choice itself is resampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, WeightedStatistic, Weights
from pipeline.evaluation.bootstrap import bootstrap_values, patient_blocks
from pipeline.evaluation.intervals import percentile_interval
from pipeline.evaluation.metrics import on_all_rows, weighted_mean


@dataclass(frozen=True, kw_only=True)
class HonestBest:
    """What the best of several heads is worth on new patients.

    Attributes:
        apparent: Its mean score on the rows that chose it: too good.
        honest: Mean score out of bag of whatever is best in bag (BBC-CV).
        low: Lower bound, 95 % percentile.
        high: Upper bound.
        chosen: Column of the apparent best.
    """

    apparent: float
    honest: float
    low: float
    high: float
    chosen: int

    @property
    def optimism(self) -> float:
        """How much the apparent value promises too much."""
        return self.apparent - self.honest


def honest_best(
    score: NDArray[np.floating],
    group: NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = 500,
) -> HonestBest:
    """Bootstrap bias corrected cross-validation (Tsamardinos et al. 2018) of mean scores.

    Args:
        score: Out-of-fold scores, shape ``(n, M)``: of each image under each head,
            larger is better, for example 1 where it is right.
        group: Patient of each image.
        rng: Source of randomness.
        draws: Bootstrap draws of patients.

    Raises:
        ValueError: Fewer than two patients, so nothing is ever out of bag.
    """
    return honest_best_by([weighted_mean(column) for column in score.T], group, rng, draws=draws)


def honest_best_by(
    statistics: Sequence[WeightedStatistic],
    group: NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = 500,
) -> HonestBest:
    """The same for any statistic: the AUROC that the head of the best AUROC really has.

    Args:
        statistics: Of ``M`` heads' out-of-fold predictions, larger is better.
        group: Patient of each image.
        rng: Source of randomness.
        draws: Bootstrap draws of patients; those that define no score in or out of bag
            are left out.

    Raises:
        ValueError: Fewer than two patients, so nothing is ever out of bag; or no draw
            defines the score on both sides.
    """
    if len(np.unique(group)) < 2:
        raise ValueError("the honest best needs images of two patients or more")
    blocks = patient_blocks(group, rng, draws=draws)
    outside = np.concatenate([_best_out_of_bag(statistics, weights) for weights in blocks])
    if not len(outside):
        raise ValueError(
            f"none of {draws} draws defines the score in and out of bag: too few patients, or "
            "a class in one patient only; use a metric that one class defines, as accuracy"
        )
    low, high = percentile_interval(outside)
    apparent = np.array([on_all_rows(statistic, len(group)) for statistic in statistics])
    chosen = int(apparent.argmax())
    return HonestBest(
        apparent=float(apparent[chosen]),
        honest=float(outside.mean()),
        low=low,
        high=high,
        chosen=chosen,
    )


def _best_out_of_bag(
    statistics: Sequence[WeightedStatistic], weights: Weights
) -> NDArray[np.float64]:
    """Score out of bag of the best in bag, for each draw that defines both."""
    inside = np.stack([statistic(weights) for statistic in statistics])
    outside = np.stack([statistic((weights == 0) * 1.0) for statistic in statistics])
    known = (np.isfinite(inside) & np.isfinite(outside)).all(axis=0)
    best = inside[:, known].argmax(axis=0)
    found: NDArray[np.float64] = outside[:, known][best, np.arange(best.size)]
    return found


# Which heads cannot be told from the best: the model confidence set.


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
