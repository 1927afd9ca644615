"""Scores of class probabilities against labels: one table, pure functions.

With two classes the second is the positive one. A score that the labels at hand do
not define (AUROC where one class is absent) is None, never a number.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

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
