"""Linear discriminant with a shrunk covariance, from blocks of rows.

The same answer as scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr")``, which makes
several copies of the rows of each class, and decomposes a matrix that need only be solved.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve
from sklearn.utils.validation import validate_data

from pipeline.heads.base import LinearScores, numbered_classes
from pipeline.heads.preprocessing import rows_in_blocks, scatter

LEDOIT_WOLF = "auto"


class DiscriminantHead(LinearScores):
    """Gaussian classes with one covariance.

    Args:
        shrinkage: Share of a multiple of the identity in the covariance of each class, in
            (0, 1]; ``"auto"``: as Ledoit and Wolf (2004) estimate it, of columns at the
            same scale.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        coef_: Shape ``(1, d)`` for two classes, else ``(K, d)``.
        intercept_: Shape ``(1,)`` or ``(K,)``.
    """

    def __init__(self, *, shrinkage: float | str = LEDOIT_WOLF) -> None:
        self.shrinkage = shrinkage

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``.

        Raises:
            ValueError: Not finite, shapes that do not fit, one class only, or a shrinkage
                that is not allowed.
            LinAlgError: No row differs from its class's mean.
        """
        rows, y = validate_data(self, X, y, dtype=np.float32)
        allowed = self.shrinkage == LEDOIT_WOLF
        if not (allowed or (not isinstance(self.shrinkage, str) and 0 < self.shrinkage <= 1)):
            raise ValueError(f"shrinkage {self.shrinkage!r}: allowed are above 0 to 1, or 'auto'")
        self.classes_, labels = numbered_classes(y)
        prior = np.bincount(labels) / len(labels)
        means = np.empty((len(prior), rows.shape[1]))
        covariance = np.zeros((rows.shape[1], rows.shape[1]))
        for k, share in enumerate(prior):
            of_class = _Class(rows, np.flatnonzero(labels == k))
            means[k] = of_class.mean
            covariance += share * of_class.covariance(self.shrinkage)
        coef = solve(covariance, means.T, assume_a="pos", overwrite_a=True).T
        intercept = np.log(prior) - (means * coef).sum(axis=1) / 2
        if len(prior) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = coef, intercept
        return self


class _Class:
    """Mean and scatter of the rows ``at`` of ``X``, in float64."""

    def __init__(self, X: NDArray[np.float32], at: NDArray[np.intp]) -> None:
        self.X, self.at = X, at
        self.mean = np.zeros(X.shape[1])
        for rows in rows_in_blocks(X, at):
            self.mean += X[rows].sum(axis=0, dtype=np.float64) / len(at)
        self.empirical = scatter(X, self.mean, at) / len(at)

    def covariance(self, shrinkage: float | str) -> NDArray[np.float64]:
        """Shrunk towards a multiple of the identity; with Ledoit and Wolf, of equal scales."""
        if not isinstance(shrinkage, str):
            return _shrunk(self.empirical, shrinkage)
        variance = self.empirical.diagonal()
        # A constant column has a variance of rounding errors; as scikit-learn's scaler has it.
        rounding = np.finfo(np.float64).eps * len(self.at)
        constant = variance <= rounding * variance + (rounding * self.mean) ** 2
        scale = np.where(constant, 1, np.sqrt(variance))
        correlation = self.empirical / np.outer(scale, scale)
        shrunk = _shrunk(correlation, self._ledoit_wolf(correlation, scale))
        return np.asarray(shrunk * np.outer(scale, scale))

    def _ledoit_wolf(self, correlation: NDArray[np.float64], scale: NDArray[np.float64]) -> float:
        """The share with the least expected squared error (Ledoit and Wolf 2004, lemma 3.3)."""
        n, d = len(self.at), len(correlation)
        fourth = 0.0
        for rows in rows_in_blocks(self.X, self.at):
            squares = np.square((self.X[rows] - self.mean) / scale).sum(axis=1)
            fourth += float(np.square(squares).sum()) / n
        total, trace = float(np.square(correlation).sum()), float(correlation.trace())
        spread = (total - trace**2 / d) / d
        error = min((fourth - total) / (d * n), spread)
        return error / spread if error > 0 else 0.0


def _shrunk(covariance: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    found = (1 - share) * covariance
    np.fill_diagonal(found, found.diagonal() + share * covariance.trace() / len(covariance))
    return found
