"""Metrics of class probabilities against labels, in one table.

A metric is a statistic of row weights: it is built once from labels and probabilities, and then
evaluated for many draws of patients at once. With all weights 1 it gives the value itself
(:func:`score`). With two classes the second is the positive one. A metric that the labels do not
define (AUROC without one of the classes) is NaN in a draw and None as a value.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import WeightedStatistic, Weights

Labels = NDArray[np.int64]
Proba = NDArray[np.float64]
Metric = Callable[[Labels, Proba], WeightedStatistic]


def score(metric: str, label: Labels, proba: Proba) -> float | None:
    """The value of an entry of ``METRICS`` for labels ``(n,)`` and probabilities ``(n, K)``.

    None if the labels do not define it; a ValueError if an image has no label.
    """
    value = on_all_rows(METRICS[metric](label, proba), len(label))
    return value if np.isfinite(value) else None


def on_all_rows(statistic: WeightedStatistic, n: int) -> float:
    """The value of a statistic with each of ``n`` rows counted once; NaN if undefined."""
    return float(statistic(np.ones((1, n)))[0])


def is_correct(label: Labels, proba: Proba) -> NDArray[np.bool_]:
    """Whether each image's most probable class is its label, shape ``(n,)``."""
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
        return _ratio(weights @ over, total, where=total > 0)

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
        return _ratio((up * (below + down / 2)).sum(axis=1), pairs, where=pairs > 0)

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
        true_positives = np.add.reduceat(w * sign, starts, axis=1)
        called = np.cumsum(np.add.reduceat(w, starts, axis=1), axis=1)
        # Before the first row of the draw nothing is predicted positive, so precision is 0 / 0.
        precision = np.cumsum(true_positives, axis=1) / np.where(called > 0, called, 1)
        area = (true_positives * precision).sum(axis=1)
        positives = true_positives.sum(axis=1)
        return _ratio(area, positives, where=(positives > 0) & (positives < called[:, -1]))

    return statistic


# The metrics themselves.


def _balanced_accuracy(label: Labels, proba: Proba) -> WeightedStatistic:
    """Mean recall of the classes; undefined in a draw that lost a class."""
    right = is_correct(label, proba)
    return _mean_statistic(
        [weighted_ratio(right & (label == k), label == k) for k in np.unique(label)]
    )


def _f1(label: Labels, proba: Proba) -> WeightedStatistic:
    """F1 of the positive class; with more than two classes, the mean over those that occur."""
    _refuse_unlabelled(label)
    positive = slice(1, 2) if proba.shape[1] == 2 else slice(None)
    truth, called = (
        _one_hot(of, proba.shape[1])[:, positive] for of in (label, proba.argmax(axis=1))
    )

    twice, either = 2 * truth * called, truth + called

    def statistic(weights: Weights) -> NDArray[np.float64]:
        size = weights @ either
        shares = weights @ twice / np.where(size > 0, size, 1)  # none true, none called: 0
        return np.asarray(shares.sum(axis=1) / np.maximum(1, (size > 0).sum(axis=1)))

    return statistic


def _recall_of(k: int) -> Metric:
    """Recall of class ``k``; undefined for more than two classes."""

    def build(label: Labels, proba: Proba) -> WeightedStatistic:
        of = (label == k) & (proba.shape[1] == 2)
        return weighted_ratio(is_correct(label, proba) & of, of)

    return build


def _one_against_rest(
    statistic_of: Callable[[NDArray[np.bool_], NDArray[np.floating]], WeightedStatistic],
) -> Metric:
    """The positive class against the other, or the mean over all classes, each against the rest."""

    def build(label: Labels, proba: Proba) -> WeightedStatistic:
        _refuse_unlabelled(label)
        columns = [1] if proba.shape[1] == 2 else range(proba.shape[1])
        return _mean_statistic([statistic_of(label == k, proba[:, k]) for k in columns])

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
        "accuracy": lambda y, p: weighted_mean(is_correct(y, p)),
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


def _mean_statistic(parts: Sequence[WeightedStatistic]) -> WeightedStatistic:
    return lambda weights: np.asarray(np.mean([part(weights) for part in parts], axis=0))


def _ratio(
    over: NDArray[np.float64], under: NDArray[np.float64], *, where: NDArray[np.bool_]
) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.full(over.shape, np.nan)
    np.divide(over, under, out=shares, where=where)
    return shares
