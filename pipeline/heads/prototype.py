"""Nearest class mean by cosine: the simplest head that learns anything."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.base import Head, numbered_classes
from pipeline.heads.calibrated import fit_sigmoid
from pipeline.heads.preprocessing import times, transposed_times

_TINY = 1e-12


class PrototypeHead(Head):
    """Cosine of a row with the mean of each class's unit rows.

    Probabilities are ``softmax(scale * cosine)``; the scale (one over a temperature) is fitted
    on cosines with means that the row's own group was taken out of, exactly.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        means_: Mean of the unit rows of each class, shape ``(K, d)``.
        sigmoid_: See :class:`pipeline.heads.calibrated.Sigmoid`; its offsets are zero.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, patients ``(n,)`` held out whole.

        Raises:
            ValueError: Not finite, shapes that do not fit, or one class only.
        """
        rows, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_, labels = numbered_classes(y)
        of_class = np.eye(len(self.classes_))[labels]
        share = of_class / _norms(rows)[:, None]
        sums = transposed_times(rows, share).T
        counts = of_class.sum(axis=0)
        numbers = np.arange(len(rows)) if groups is None else _numbers(groups)
        held_out = _held_out_cosines(rows, share, sums, numbers)
        self.means_ = sums / counts[:, None]
        self.sigmoid_ = fit_sigmoid(held_out, labels, offsets=False)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        return self.sigmoid_.proba(self.cosines(X))

    def cosines(self, X: ArrayLike) -> NDArray[np.float64]:
        """Cosine of each row of ``(n, d)`` with each class mean, shape ``(n, K)``."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        length = np.maximum(np.linalg.norm(self.means_, axis=1), _TINY)
        return np.asarray(times(rows, self.means_.T) / length / _norms(rows)[:, None])

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Class with the nearest mean, shape ``(n,)``, whatever the scale."""
        found: NDArray[Any] = self.classes_[self.cosines(X).argmax(axis=1)]
        return found


def _held_out_cosines(
    rows: NDArray[np.float32],
    share: NDArray[np.float64],
    sums: NDArray[np.float64],
    numbers: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Cosines ``(n, K)`` with means without the row's group; NaN where no mean is left."""
    order = np.argsort(numbers, kind="stable")
    found = np.empty(share.shape)
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    present = (share > 0).sum(axis=0)
    for at in np.split(order, cuts):
        mine = rows[at].astype(np.float64)
        left = sums - share[at].T @ mine
        length = np.maximum(np.linalg.norm(left, axis=1), _TINY)
        norm = np.maximum(np.linalg.norm(mine, axis=1), _TINY)
        found[at] = mine @ left.T / length / norm[:, None]
        found[np.ix_(at, present == (share[at] > 0).sum(axis=0))] = np.nan
    return found


def _norms(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.asarray(np.maximum(np.sqrt(squares), _TINY))


def _numbers(groups: ArrayLike) -> NDArray[np.intp]:
    numbers: NDArray[np.intp] = np.unique(np.asarray(groups), return_inverse=True)[1]
    return numbers
