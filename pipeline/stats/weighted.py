"""Every metric as a statistic of row weights, for thousands of bootstrap draws at once.

A row of weight 3 counts as three equal rows and one of weight 0 is not there, so each
entry of :data:`WEIGHTED` equals the metric of the same name in ``pipeline.stats.metrics`` on
the repeated rows, and is NaN for a draw in which that metric is undefined.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.stats.intervals import (
    WeightedStatistic,
    Weights,
    weighted_auroc,
    weighted_mean,
    weighted_ratio,
)
from pipeline.stats.metrics import (
    ECE_BINS,
    Labels,
    Probabilities,
    is_right,
    squared_distance,
    surprise,
)

_BINARY = 2


def weighted_difference(first: WeightedStatistic, second: WeightedStatistic) -> WeightedStatistic:
    """The statistic "first minus second", both on the same draws."""

    def statistic(weights: Weights) -> NDArray[np.float64]:
        return first(weights) - second(weights)

    return statistic


def weighted_average_precision(
    positive: NDArray[np.bool_], score: NDArray[np.floating]
) -> WeightedStatistic:
    """The statistic "average precision", tied scores called together."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    sign = positive[order]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        w = weights[:, order]
        found = np.add.reduceat(w * sign, starts, axis=1)
        called = np.cumsum(np.add.reduceat(w, starts, axis=1), axis=1)
        # Before the first row that is in the draw nothing is called and nothing found.
        precision = np.cumsum(found, axis=1) / np.where(called > 0, called, 1)
        area = (found * precision).sum(axis=1)
        positives = found.sum(axis=1)
        return _share(area, positives, known=(positives > 0) & (positives < called[:, -1]))

    return statistic


def weighted_ece(
    confidence: NDArray[np.floating], hit: NDArray[np.bool_], *, bins: int = ECE_BINS
) -> WeightedStatistic:
    """The statistic "calibration error in bins of equal mass"; weights are whole numbers."""
    order = np.argsort(confidence, kind="stable")
    gap = (hit - confidence)[order]
    steps = confidence[order]
    # Rows of one confidence stand in a bin with their mean, in whatever order they come.
    ends = np.r_[0, 1 + np.flatnonzero(np.r_[steps[1:] != steps[:-1], True])]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        w = np.pad(weights[:, order], ((0, 0), (1, 0)))
        rows, drift = np.cumsum(w, axis=1), np.cumsum(w * np.r_[0.0, gap], axis=1)
        if ends.size <= gap.size:  # a copy of both that is not needed without ties
            rows, drift = rows[:, ends], drift[:, ends]
        # The sum of the gaps over the first t repeated rows is linear in t between two
        # ends, so a bin that ends among the copies of a row is cut there exactly.
        cuts = _bin_edges(rows[:, -1], bins)
        # One search for all draws: each has its own stretch of the axis, whole numbers too.
        stretch = np.arange(len(rows))[:, None] * (rows.max() + 1)
        at = np.interp((cuts + stretch).ravel(), (rows + stretch).ravel(), drift.ravel())
        parts = np.abs(np.diff(at.reshape(cuts.shape), axis=1))
        error: NDArray[np.float64] = parts.sum(axis=1) / rows[:, -1]
        return error

    return statistic


def _bin_edges(n: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Where ``numpy.array_split`` cuts ``n`` rows: the first ``n % bins`` hold one more.

    Shape ``(B, bins + 1)`` for ``n`` of shape ``(B,)``.
    """
    number = np.arange(bins + 1)
    size, more = n[:, None] // bins, n[:, None] % bins
    edges: NDArray[np.float64] = number * size + np.minimum(number, more)
    return edges


def _accuracy(y: Labels, proba: Probabilities) -> WeightedStatistic:
    return weighted_mean(is_right(y, proba))


def _balanced_accuracy(y: Labels, proba: Probabilities) -> WeightedStatistic:
    truth = _one_hot(y, proba.shape[1])[:, np.unique(y)]
    hit = truth * is_right(y, proba)[:, None]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        found, there = weights @ hit, weights @ truth
        # A mean over fewer classes is another number: a draw that lost one has none.
        return np.where((there > 0).all(axis=1), _mean_of_shares(found, there), np.nan)

    return statistic


def _f1(y: Labels, proba: Probabilities) -> WeightedStatistic:
    truth, call = _one_hot(y, proba.shape[1]), _one_hot(proba.argmax(axis=1), proba.shape[1])
    twice_hit, size = 2 * truth * call, truth + call

    def binary(weights: Weights) -> NDArray[np.float64]:
        n = weights @ size[:, 1]
        return (weights @ twice_hit[:, 1]) / np.where(n > 0, n, 1)  # nothing there or called: 0

    def macro(weights: Weights) -> NDArray[np.float64]:
        return _mean_of_shares(weights @ twice_hit, weights @ size)

    return binary if proba.shape[1] == _BINARY else macro


def _share_found(k: int) -> Callable[[Labels, Probabilities], WeightedStatistic]:
    def build(y: Labels, proba: Probabilities) -> WeightedStatistic:
        of = (y == k) & (proba.shape[1] == _BINARY)  # undefined for more classes: nothing of it
        return weighted_ratio(is_right(y, proba) & of, of)

    return build


def _one_against_rest(
    one: Callable[[NDArray[np.bool_], NDArray[np.floating]], WeightedStatistic],
) -> Callable[[Labels, Probabilities], WeightedStatistic]:
    """The positive class against the other, or the mean over all classes, each against the rest."""

    def build(y: Labels, proba: Probabilities) -> WeightedStatistic:
        columns = [1] if proba.shape[1] == _BINARY else range(proba.shape[1])
        return _mean_statistic([one(y == k, proba[:, k]) for k in columns])

    return build


def _mean_statistic(parts: Sequence[WeightedStatistic]) -> WeightedStatistic:
    def statistic(weights: Weights) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = np.mean([part(weights) for part in parts], axis=0)
        return mean

    return statistic


def _one_hot(y: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    hot: NDArray[np.float64] = np.eye(classes)[y]
    return hot


def _mean_of_shares(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes ``(B, K)`` that a draw has of ``over / under``."""
    present = under > 0
    shares = np.where(present, over / np.where(present, under, 1), 0.0)
    mean: NDArray[np.float64] = shares.sum(axis=1) / present.sum(axis=1)
    return mean


def _share(
    over: NDArray[np.float64], under: NDArray[np.float64], *, known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.full(over.shape, np.nan)
    np.divide(over, under, out=shares, where=known)
    return shares


#: Metric name, the same as in ``METRICS``, to its statistic for labels ``(n,)`` and
#: probabilities ``(n, K)``. A metric added there needs a line here; a test compares both.
WEIGHTED: Mapping[str, Callable[[Labels, Probabilities], WeightedStatistic]] = MappingProxyType(
    {
        "accuracy": _accuracy,
        "balanced_accuracy": _balanced_accuracy,
        "auroc": _one_against_rest(weighted_auroc),
        "average_precision": _one_against_rest(weighted_average_precision),
        "sensitivity": _share_found(1),
        "specificity": _share_found(0),
        "f1": _f1,
        "brier": lambda y, p: weighted_mean(squared_distance(y, p)),
        "log_loss": lambda y, p: weighted_mean(surprise(y, p)),
        "ece": lambda y, p: weighted_ece(p.max(axis=1), is_right(y, p)),
    }
)
