"""Scores to probabilities, by a rule fitted on scores of rows that were held out.

``p = softmax(a * s + b)`` with one scale ``a >= 0`` for all classes and, where asked for,
one offset for each: with two classes this is Platt's sigmoid. Targets are smoothed as Platt
(1999) does, so that separated classes have a finite answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.data.patients import Fold, patient_folds
from pipeline.heads.base import Head
from pipeline.heads.preprocessing import TreatedRows, untreated


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """The fitted rule.

    Attributes:
        scale: Not negative: a higher score never means a lower probability.
        offset: Shape ``(K,)``.
        loss: Mean log loss of the rows that it was fitted on, in nats.
    """

    scale: float
    offset: NDArray[np.float64]
    loss: float

    def proba(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities ``(n, K)`` of scores ``(n, K)``."""
        found: NDArray[np.float64] = softmax(self.scale * scores + self.offset, axis=1)
        return found


def fit_sigmoid(
    scores: NDArray[np.floating], y: NDArray[np.integer], *, offsets: bool = True
) -> Sigmoid:
    """Fit the rule by maximum likelihood.

    Args:
        scores: Of rows that the scorer did not see, shape ``(n, K)``; rows that are not
            finite are left out.
        y: Labels 0 to K - 1, shape ``(n,)``.
        offsets: Whether each class has an offset; without them only the scale is fitted.

    Raises:
        ValueError: No row is left, or one class only.
    """
    good = np.isfinite(scores).all(axis=1)
    scores, y = np.asarray(scores, np.float64)[good], y[good]
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
    return Sigmoid(scale=float(x[0] / unit), offset=x[1:], loss=loss)


# Scorers without probabilities of their own (support vectors) as heads.


class CalibratedHead(Head):
    """A classifier with ``decision_function``, its scores made probabilities by a sigmoid.

    Args:
        estimator: Unfitted; fitted on each fold and then on all rows.
        candidates: Parameters of the estimator to choose between, by the log loss of the
            calibrated held-out scores; empty: as it is.
        random_state: Of the folds.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        estimator_: Fitted on all rows.
        sigmoid_: See :class:`pipeline.heads.calibrated.Sigmoid`.
        best_params_: The candidate taken.
    """

    def __init__(
        self, estimator: Any, *, candidates: Sequence[dict[str, Any]] = (), random_state: int = 0
    ) -> None:
        self.estimator = estimator
        self.candidates = candidates
        self.random_state = random_state

    def fit(
        self, X: ArrayLike | TreatedRows, y: ArrayLike, groups: ArrayLike | None = None
    ) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, patients ``(n,)`` held out whole.

        Features may also be :class:`pipeline.heads.preprocessing.TreatedRows`.

        Raises:
            ValueError: A class has fewer than two patients, or what the estimator says.
        """
        if isinstance(X, TreatedRows):
            rows, self.n_features_in_ = X, X.shape[1]
        else:
            given, y = validate_data(self, X, y, dtype=np.float32)
            rows = untreated(given)
        self.classes_, labels = np.unique(y, return_inverse=True)
        patients = np.arange(len(rows)) if groups is None else np.asarray(groups)
        folds = patient_folds(labels, patients, seed=self.random_state)
        tried: list[tuple[float, int, Any, dict[str, Any], Any]] = []
        for candidate in self.candidates or ({},):
            head = clone(self.estimator).set_params(**candidate)
            held_out = np.empty((len(rows), len(self.classes_)))
            for in_, out in folds:
                held_out[out] = _held_out(clone(head), rows, labels, (in_, out))
            rule = fit_sigmoid(held_out, labels)
            tried.append((rule.loss, len(tried), rule, candidate, head))
        _, _, self.sigmoid_, self.best_params_, best = min(tried, key=lambda one: one[:2])
        self.estimator_ = best.fit(rows.take(slice(None), np.float64), labels)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        rule: Sigmoid = self.sigmoid_
        return rule.proba(_scores(self.estimator_, rows))


def _held_out(
    head: Any, rows: TreatedRows, labels: NDArray[np.intp], fold: Fold
) -> NDArray[np.float64]:
    """Scores of the fold's outside; what was fitted, with rows of its own, ends here."""
    in_, out = fold
    return _scores(head.fit(rows.take(in_, np.float64), labels[in_]), rows[out])


def _scores(head: Any, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """One score for each class, shape ``(n, K)``; of two classes the first has zero."""
    scores = np.asarray(head.decision_function(rows), np.float64)
    return np.column_stack([np.zeros(len(scores)), scores]) if scores.ndim == 1 else scores
