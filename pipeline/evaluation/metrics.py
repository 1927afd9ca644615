"""Metrics of class probabilities against labels, in one table.

A metric is a statistic of row weights: it is built once for labels and probabilities, and
then evaluated for any number of draws of patients at once. With weights of one it is the
value itself (:func:`score`). With two classes the second is the positive one. What the
labels do not define (AUROC where one class is absent) is NaN in a draw and None as a value.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import WeightedStatistic, Weights

Labels = NDArray[np.int64]
Proba = NDArray[np.float64]
Metric = Callable[[Labels, Proba], WeightedStatistic]


def score(metric: str, label: Labels, proba: Proba) -> float | None:
    """The value of an entry of ``METRICS`` for labels ``(n,)`` and probabilities ``(n, K)``.

    None where the labels do not define it; a ValueError where an image has none.
    """
    value = on_all_rows(METRICS[metric](label, proba), len(label))
    return value if np.isfinite(value) else None


def on_all_rows(statistic: WeightedStatistic, n: int) -> float:
    """A statistic with every one of ``n`` rows counted once; NaN where undefined."""
    return float(statistic(np.ones((1, n)))[0])


def is_right(label: Labels, proba: Proba) -> NDArray[np.bool_]:
    """Whether each image's most probable class is its own, shape ``(n,)``."""
    _refuse_unlabelled(label)
    return np.asarray(proba.argmax(axis=1) == label)


# Statistics of row weights, from which the table is built.


def weighted_mean(values: NDArray[np.floating] | NDArray[np.bool_]) -> WeightedStatistic:
    """The statistic "mean of ``values``"."""
    return weighted_ratio(values, np.ones(len(values)))


def weighted_ratio(
    numerator: NDArray[np.floating] | NDArray[np.bool_],
    denominator: NDArray[np.floating] | NDArray[np.bool_],
) -> WeightedStatistic:
    """The statistic "sum of ``numerator`` by sum of ``denominator``", such as sensitivity."""
    over, under = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        total = weights @ under
        return _divided(weights @ over, total, where=total > 0)

    return statistic


def weighted_auroc(positive: NDArray[np.bool_], value: NDArray[np.floating]) -> WeightedStatistic:
    """The statistic "area under the ROC curve", ties counted half."""
    order = np.argsort(value, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(value[order]) > 0])
    sign = positive[order]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        w = weights[:, order]
        up = np.add.reduceat(w * sign, starts, axis=1)
        down = np.add.reduceat(w * ~sign, starts, axis=1)
        below = np.cumsum(down, axis=1) - down
        pairs = up.sum(axis=1) * down.sum(axis=1)
        return _divided((up * (below + down / 2)).sum(axis=1), pairs, where=pairs > 0)

    return statistic


def _weighted_average_precision(
    positive: NDArray[np.bool_], score: NDArray[np.floating]
) -> WeightedStatistic:
    """The statistic "average precision", tied scores called together."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    sign = positive[order]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        w = weights[:, order]
        hits = np.add.reduceat(w * sign, starts, axis=1)
        called = np.cumsum(np.add.reduceat(w, starts, axis=1), axis=1)
        # Before the first row that is in the draw nothing is called and nothing found.
        precision = np.cumsum(hits, axis=1) / np.where(called > 0, called, 1)
        area = (hits * precision).sum(axis=1)
        positives = hits.sum(axis=1)
        return _divided(area, positives, where=(positives > 0) & (positives < called[:, -1]))

    return statistic


# The metrics themselves.


def _balanced_accuracy(label: Labels, proba: Proba) -> WeightedStatistic:
    truth = _one_hot(label, proba.shape[1])[:, np.unique(label)]
    hit = truth * is_right(label, proba)[:, None]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        hits, rows = weights @ hit, weights @ truth
        # A mean over fewer classes is another number: a draw that lost one has none.
        return np.where((rows > 0).all(axis=1), _mean_of_shares(hits, rows), np.nan)

    return statistic


def _f1(label: Labels, proba: Proba) -> WeightedStatistic:
    """Of the positive class; the mean over the classes for more than two."""
    _refuse_unlabelled(label)
    truth = _one_hot(label, proba.shape[1])
    predicted = _one_hot(proba.argmax(axis=1), proba.shape[1])
    twice_hit, size = 2 * truth * predicted, truth + predicted

    def binary(weights: Weights) -> NDArray[np.float64]:
        n = weights @ size[:, 1]
        return (weights @ twice_hit[:, 1]) / np.where(n > 0, n, 1)  # none true, none predicted: 0

    def macro(weights: Weights) -> NDArray[np.float64]:
        return _mean_of_shares(weights @ twice_hit, weights @ size)

    return binary if proba.shape[1] == 2 else macro


def _recall_of(k: int) -> Metric:
    """Share of class ``k`` that is predicted so; undefined for more than two classes."""

    def build(label: Labels, proba: Proba) -> WeightedStatistic:
        of = (label == k) & (proba.shape[1] == 2)
        return weighted_ratio(is_right(label, proba) & of, of)

    return build


def _one_against_rest(
    statistic_of: Callable[[NDArray[np.bool_], NDArray[np.floating]], WeightedStatistic],
) -> Metric:
    """The positive class against the other, or the mean over all classes, each against the rest."""

    def build(label: Labels, proba: Proba) -> WeightedStatistic:
        _refuse_unlabelled(label)
        columns = [1] if proba.shape[1] == 2 else range(proba.shape[1])
        parts = [statistic_of(label == k, proba[:, k]) for k in columns]
        return lambda weights: np.asarray(np.mean([part(weights) for part in parts], axis=0))

    return build


def _brier(label: Labels, proba: Proba) -> WeightedStatistic:
    """Mean squared distance to the truth, 0 to 1: half the sum over classes (Brier 1950)."""
    _refuse_unlabelled(label)
    distance = ((proba - _one_hot(label, proba.shape[1])) ** 2).sum(axis=1) / 2
    return weighted_mean(distance)


def _log_loss(label: Labels, proba: Proba) -> WeightedStatistic:
    """Mean negative log probability of the true class, nats; probabilities >= 1e-15."""
    _refuse_unlabelled(label)
    return weighted_mean(-np.log(np.clip(proba[np.arange(len(label)), label], 1e-15, 1.0)))


#: To add a metric: a function above and one line here; the tests run over the table.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": lambda y, p: weighted_mean(is_right(y, p)),
        "balanced_accuracy": _balanced_accuracy,
        "auroc": _one_against_rest(weighted_auroc),
        "average_precision": _one_against_rest(_weighted_average_precision),
        "sensitivity": _recall_of(1),
        "specificity": _recall_of(0),
        "f1": _f1,
        "brier": _brier,
        "log_loss": _log_loss,
    }
)


def _refuse_unlabelled(label: Labels) -> None:
    """A missing label would count as a wrong one, or as the last class."""
    if len(label) and label.min() < 0:
        raise ValueError("an image without a label has no right and no wrong: leave it out")


def _one_hot(label: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    return np.asarray(np.eye(classes)[label])


def _mean_of_shares(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes ``(B, K)`` that a draw has of ``over / under``."""
    present = under > 0
    shares = np.where(present, over / np.where(present, under, 1), 0.0)
    return np.asarray(shares.sum(axis=1) / present.sum(axis=1))


def _divided(
    over: NDArray[np.float64], under: NDArray[np.float64], *, where: NDArray[np.bool_]
) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.full(over.shape, np.nan)
    np.divide(over, under, out=shares, where=where)
    return shares
