"""What heads have in common: classes told from labels, and the class that is most probable."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.preprocessing import times


def numbered_classes(y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Class labels ``(K,)``, and the number of each row's class, ``(n,)``.

    Raises:
        ValueError: One class only.
    """
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"one class only ({classes[0]!r}); a head needs two or more")
    return classes, numbers


def probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sigmoid of one score or softmax of several, along the last axis."""
    if scores.shape[-1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=-1)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: NDArray[np.float64] = scores / scores.sum(axis=-1, keepdims=True)
    return found


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier with ``predict_proba`` whose fit leaves ``classes_``."""

    classes_: NDArray[Any]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class of each row, shape ``(n,)``."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class LinearScores(Head):
    """A head whose fit leaves ``classes_``, ``coef_`` and ``intercept_``.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        coef_: Shape ``(1, d)`` for two classes, else ``(K, d)``.
        intercept_: Shape ``(1,)`` or ``(K,)``.
    """

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def scores(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores ``(n, 1)`` for two classes, else ``(n, K)``, of features ``(n, d)``."""
        check_is_fitted(self)
        rows: NDArray[np.float32] = validate_data(self, X, dtype=np.float32, reset=False)
        return np.asarray(times(rows, self.coef_.T) + self.intercept_)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        return probabilities(self.scores(X))
