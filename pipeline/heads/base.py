"""What the project's own heads share: classes, probabilities, and calibration of scores.

A calibration is ``p = softmax(a s + b)`` with one scale ``a >= 0`` for all classes and, where
asked for, one offset for each: with two classes this is Platt's sigmoid. It is fitted to
scores of rows that were held out. Targets are smoothed as Platt (1999) does, so that
separated classes have a finite answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier with ``predict_proba`` whose fit leaves ``classes_``."""

    classes_: NDArray[Any]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class of each row, shape ``(n,)``."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


def number_classes(y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Class labels ``(K,)``, and the number of each row's class, ``(n,)``.

    Raises:
        ValueError: One class only.
    """
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"one class only ({classes[0]}); a head needs two or more")
    return classes, numbers


def softmax_or_sigmoid(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities ``(..., K)`` of scores ``(..., K)``, or ``(..., 1)`` of two classes."""
    if scores.shape[-1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=-1)
    return np.asarray(softmax(scores.astype(np.float64), axis=-1))


class BlockScaler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """One number for each block of columns, so that joined backbones weigh the same.

    Args:
        widths: Columns of each block, in order.

    Attributes:
        scale_: Root mean variance of each block's columns, repeated, shape ``(d,)``.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = widths

    def fit(self, X: ArrayLike, _y: object = None) -> Self:
        """Learn from features ``(n, d)``."""
        rows = validate_data(self, X, dtype=np.float32)
        variances = np.split(rows.var(axis=0, dtype=np.float64), np.cumsum(self.widths)[:-1])
        scales = [np.sqrt(v.mean()) or 1.0 for v in variances]
        self.scale_ = np.repeat(scales, self.widths).astype(np.float32)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Features ``(n, d)`` with every block at the same scale."""
        check_is_fitted(self)
        rows: NDArray[np.float32] = validate_data(self, X, dtype=np.float32, reset=False)
        return rows / self.scale_


class Standardiser(StandardScaler):  # type: ignore[misc]
    """scikit-learn's, but a column that hardly varies is not blown up.

    A filter of the network that answers to no training image leaves a column of almost equal
    numbers. Divided by their tiny standard deviation, one image that it does answer to would
    lie ten thousands of deviations out and decide everything. Columns below a thousandth of
    their backbone's median deviation are divided by that median.

    Args:
        widths: Columns of each backbone, in order; None: there is one.
    """

    def __init__(self, widths: Sequence[int] | None = None) -> None:
        super().__init__()
        self.widths = widths

    def partial_fit(self, X: ArrayLike, y: object = None, sample_weight: object = None) -> Self:
        """Learn from further features ``(n, d)``; ``fit`` comes here too."""
        super().partial_fit(X, y, sample_weight)
        ends = np.cumsum(self.widths or [len(self.var_)])[:-1]
        for deviation, scale in zip(
            np.split(np.sqrt(self.var_), ends), np.split(self.scale_, ends), strict=True
        ):
            median = np.median(deviation[deviation > 0]) if deviation.any() else 1.0
            scale[deviation < median / 1000] = median  # a view of the attribute
        return self


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted map from scores to probabilities.

    Attributes:
        scale: Not negative: a higher score never means a lower probability.
        offset: Shape ``(K,)``.
        loss: Mean log loss of the rows that it was fitted to, in nats.
    """

    scale: float
    offset: NDArray[np.float64]
    loss: float

    def proba(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities ``(n, K)`` of scores ``(n, K)``."""
        return np.asarray(softmax(self.scale * scores + self.offset, axis=1))


def fit_calibration(
    scores: NDArray[np.floating], y: NDArray[np.integer], *, offsets: bool = True
) -> Calibration:
    """Fit the map by maximum likelihood.

    Args:
        scores: Of rows that the scorer was not fitted to, shape ``(n, K)``; rows that are not
            finite are left out.
        y: Labels 0 to K - 1, shape ``(n,)``.
        offsets: Whether each class has an offset; without them only the scale is fitted.

    Raises:
        ValueError: No row is left, or one class only.
    """
    finite = np.isfinite(scores).all(axis=1)
    scores, y = np.asarray(scores, np.float64)[finite], y[finite]
    counts = np.bincount(y, minlength=scores.shape[1])
    if (counts > 0).sum() < 2:
        raise ValueError("the held-out rows are of one class only: no probability can be fitted")
    # A common unit: the optimiser must not care whether scores are margins or cosines.
    unit = float((scores - scores.mean(axis=1, keepdims=True)).std()) or 1.0
    scores = scores / unit
    targets = np.repeat((1 / (counts + len(counts)))[y][:, None], len(counts), axis=1)
    targets[np.arange(len(y)), y] *= counts[y] + 1

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_p = log_softmax(x[0] * scores + x[1:], axis=1)
        gradient = (np.exp(log_p) - targets) / len(y)
        slope = np.r_[(gradient * scores).sum(), gradient.sum(axis=0) * offsets]
        return float(-(targets * log_p).sum() / len(y)), slope

    start = np.r_[1.0, np.zeros(len(counts))]
    bounds = [(0, None), *[(None, None)] * len(counts)]
    options = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9}
    x = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    log_p = log_softmax(x[0] * scores + x[1:], axis=1)
    loss = -float(log_p[np.arange(len(y)), y].mean())
    return Calibration(scale=float(x[0] / unit), offset=x[1:], loss=loss)
