"""Scores of class probabilities against labels: one table, pure functions.

With two classes the second is the positive one. A score that the labels at hand do
not define (AUROC where one class is absent) is None, never a number.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from pipeline.evaluation.intervals import (
    WeightedStatistic,
    Weights,
    weighted_auroc,
    weighted_mean,
    weighted_ratio,
)

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Metric = Callable[[Labels, Probabilities], float | None]

_BINARY = 2
#: Bins of the calibration error, of equal mass.
ECE_BINS = 15


def is_right(y: Labels, proba: Probabilities) -> NDArray[np.bool_]:
    """Whether each image's most probable class is its own, shape ``(n,)``.

    Raises:
        ValueError: An image has no label.
    """
    _refuse_unlabelled(y)
    right: NDArray[np.bool_] = proba.argmax(axis=1) == y
    return right


def squared_distance(y: Labels, proba: Probabilities) -> NDArray[np.float64]:
    """Half the squared distance to the truth of each image, shape ``(n,)``, 0 to 1."""
    _refuse_unlabelled(y)
    truth = np.eye(proba.shape[1])[y]
    distance: NDArray[np.float64] = ((proba - truth) ** 2).sum(axis=1) / 2
    return distance


def surprise(y: Labels, proba: Probabilities) -> NDArray[np.float64]:
    """Negative log probability of each image's class, ``(n,)``, nats, 0 to 34.5 (1e-15)."""
    _refuse_unlabelled(y)
    nats: NDArray[np.float64] = -np.log(np.clip(proba[np.arange(len(y)), y], 1e-15, 1.0))
    return nats


def accuracy(y: Labels, proba: Probabilities) -> float:
    """Share of images whose most probable class is theirs."""
    return float(is_right(y, proba).mean())


def balanced_accuracy(y: Labels, proba: Probabilities) -> float:
    """Mean over the classes present of the share found."""
    hit = is_right(y, proba)
    return float(np.mean([hit[y == k].mean() for k in np.unique(y)]))


def auroc(y: Labels, proba: Probabilities) -> float | None:
    """Area under the ROC curve; macro one-vs-rest for more than two classes."""
    if not _all_present(y, proba):
        return None
    columns = [1] if proba.shape[1] == _BINARY else range(proba.shape[1])
    return float(np.mean([sk.roc_auc_score(y == k, proba[:, k]) for k in columns]))


def average_precision(y: Labels, proba: Probabilities) -> float | None:
    """Area under the precision-recall curve; macro one-vs-rest for more than two."""
    if not _all_present(y, proba):
        return None
    columns = [1] if proba.shape[1] == _BINARY else range(proba.shape[1])
    return float(np.mean([sk.average_precision_score(y == k, proba[:, k]) for k in columns]))


def sensitivity(y: Labels, proba: Probabilities) -> float | None:
    """Share of the positive images called positive; two classes only."""
    return _share_found(y, proba, 1)


def specificity(y: Labels, proba: Probabilities) -> float | None:
    """Share of the negative images called negative; two classes only."""
    return _share_found(y, proba, 0)


def f1(y: Labels, proba: Probabilities) -> float:
    """F1 of the positive class; macro for more than two classes."""
    _refuse_unlabelled(y)
    average = "binary" if proba.shape[1] == _BINARY else "macro"
    return float(sk.f1_score(y, proba.argmax(axis=1), average=average, zero_division=0.0))


def brier(y: Labels, proba: Probabilities) -> float:
    """Mean squared distance to the truth, 0 to 1: half the sum over classes (Brier 1950)."""
    return float(squared_distance(y, proba).mean())


def log_loss(y: Labels, proba: Probabilities) -> float:
    """Mean negative log probability of the true class, nats; probabilities >= 1e-15."""
    return float(surprise(y, proba).mean())


def ece(y: Labels, proba: Probabilities) -> float:
    """Expected calibration error of the top class, 15 bins of equal mass (Naeini 2015).

    Images of one confidence that two bins share stand in each with their mean.
    """
    confidence = proba.max(axis=1)
    order = np.argsort(confidence, kind="stable")
    gap = mean_of_ties(confidence[order], (is_right(y, proba) - confidence)[order])
    gaps = [abs(b.sum()) for b in np.array_split(gap, ECE_BINS)]
    return float(sum(gaps) / len(y))


def mean_of_ties(key: NDArray[np.floating], rows: NDArray[Any]) -> NDArray[np.float64]:
    """Each number replaced by the mean of those of the same key, so that none comes first.

    Args:
        key: Ascending, shape ``(n,)``, not empty.
        rows: Shape ``(..., n)``.
    """
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    sizes = np.diff(np.r_[starts, len(key)])
    means = np.add.reduceat(rows, starts, axis=-1, dtype=np.float64) / sizes
    return np.asarray(np.repeat(means, sizes, axis=-1))


def confusion(y: Labels, proba: Probabilities) -> NDArray[np.int64]:
    """Counts of shape ``(K, K)``: true class by row, called class by column."""
    _refuse_unlabelled(y)
    classes = proba.shape[1]
    counts = np.bincount(y * classes + proba.argmax(axis=1), minlength=classes**2)
    return counts.reshape(classes, classes)


def _refuse_unlabelled(y: Labels) -> None:
    """A missing label would count as a wrong one, or as the last class."""
    if len(y) and y.min() < 0:
        raise ValueError("an image without a label has no right and no wrong: leave it out")


def _all_present(y: Labels, proba: Probabilities) -> bool:
    _refuse_unlabelled(y)
    return bool(np.unique(y).size == proba.shape[1])


def _share_found(y: Labels, proba: Probabilities, k: int) -> float | None:
    _refuse_unlabelled(y)
    if proba.shape[1] != _BINARY or not (y == k).any():
        return None
    return float((proba.argmax(axis=1)[y == k] == k).mean())


#: To add a metric: a function above and one line here; the tests run over the table.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy,
        "auroc": auroc,
        "average_precision": average_precision,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": f1,
        "brier": brier,
        "log_loss": log_loss,
        "ece": ece,
    }
)


# Every metric as a statistic of row weights, for thousands of bootstrap draws at once.


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


def _share_found_weighted(k: int) -> Callable[[Labels, Probabilities], WeightedStatistic]:
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
        "sensitivity": _share_found_weighted(1),
        "specificity": _share_found_weighted(0),
        "f1": _f1,
        "brier": lambda y, p: weighted_mean(squared_distance(y, p)),
        "log_loss": lambda y, p: weighted_mean(surprise(y, p)),
        "ece": lambda y, p: weighted_ece(p.max(axis=1), is_right(y, p)),
    }
)
