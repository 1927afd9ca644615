"""Scorers without probabilities of their own (support vectors) as heads.

The scores that the sigmoid is fitted on are of rows held out by patient. Parameters that
are compared share those folds: the score of each fold serves the choice and the sigmoid.

What is fitted here computes in float64, so rows are taken in it, those of one fit at a time.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.base import Head
from pipeline.heads.folds import Fold, patient_folds
from pipeline.heads.sigmoid import Sigmoid, fit_sigmoid
from pipeline.heads.treated import TreatedRows, untreated


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
        sigmoid_: See :class:`pipeline.heads.sigmoid.Sigmoid`.
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

        Features may also be :class:`pipeline.heads.treated.TreatedRows`.

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
        folds = patient_folds(labels, patients, self.random_state)
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
