"""Ridge regression on the classes: every penalty from one eigendecomposition.

Targets are the columns of the one-hot labels, the intercept is not penalised. With centred
rows ``X``, ``X'X = V L V'`` (or ``XX' = U L U'`` where there are fewer rows than columns),
every penalty ``a`` has ``w = V (L + a)^-1 V' X' y`` and the hat matrix

    H_a = 1 1' / n + Z D_a Z',   Z = X V, D = (L + a)^-1,   or   Z = U, D = L / (L + a).

Leaving out the rows ``g`` of one patient and fitting anew gives them exactly

    yhat_g = y_g - (I - H_gg)^-1 (y_g - (H y)_g)

(Sherman-Morrison-Woodbury; with one row, the PRESS residual). The penalty and the rule that
makes probabilities of scores are chosen from these, so no fold is ever fitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.base import Head, numbered_classes
from pipeline.heads.calibrated import fit_sigmoid
from pipeline.heads.preprocessing import scatter, times, transposed_times

PENALTIES = tuple(float(a) for a in np.logspace(0, 6, 13))
#: Patients of one size are solved together, so many at a time that this many numbers are held.
_HELD = 4 << 20


@dataclass(frozen=True, kw_only=True)
class RidgePath:
    """All penalties of one ridge regression.

    Attributes:
        coef: Shape ``(P, d, K)``.
        intercept: Shape ``(P, K)``.
        held_out: What a fit without the row's group says of each row, ``(P, n, K)``.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    held_out: NDArray[np.float64]


def ridge_path(
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    penalties: NDArray[np.floating],
    groups: NDArray[Any] | None = None,
) -> RidgePath:
    """Solve every penalty, and leave every group out exactly.

    Args:
        X: Features, shape ``(n, d)``; never copied as a whole unless ``n < d``.
        Y: Targets, shape ``(n, K)``.
        penalties: Shape ``(P,)``, positive; of the sum of squares, as scikit-learn's ``alpha``.
        groups: Patients, shape ``(n,)``; None: every row is its own.
    """
    numbers = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1]
    middle = X.mean(axis=0, dtype=np.float64)
    solved = (_Wide if len(X) < X.shape[1] else _Tall)(X, middle)
    mean = Y.mean(axis=0)
    residual_of = solved.against(Y - mean)
    shrunk = [solved.shrink(a) for a in penalties]
    coef = np.stack([solved.coef(residual_of, a) for a in penalties])
    held_out = np.empty((len(penalties), *Y.shape))
    D = np.stack(shrunk)
    for rows in _same_sized_groups(numbers, solved.width, len(penalties)):
        Z = solved.rows(rows.ravel()).reshape(*rows.shape, -1)
        for p, d in enumerate(D):
            weighted = Z * d
            H = weighted @ Z.swapaxes(1, 2) + 1 / len(X)
            fitted = weighted @ residual_of + mean
            left = Y[rows] - fitted
            held_out[p, rows] = Y[rows] - np.linalg.solve(np.eye(rows.shape[1]) - H, left)
    return RidgePath(coef=coef, intercept=mean - middle @ coef, held_out=held_out)


class _Tall:
    """At least as many rows as columns: the eigenvectors of ``X'X``."""

    def __init__(self, X: NDArray[np.floating], middle: NDArray[np.float64]) -> None:
        self.X, self.middle = X, middle
        self.width = X.shape[1]
        self.values, self.vectors = eigh(scatter(X, middle), overwrite_a=True)
        self.values = np.maximum(self.values, 0)

    def against(self, Y: NDArray[np.float64]) -> NDArray[np.float64]:
        """``Z' y``; the columns of ``Y`` have mean zero, so the middle falls out."""
        return np.asarray(self.vectors.T @ transposed_times(self.X, Y))

    def shrink(self, penalty: float) -> NDArray[np.float64]:
        return np.asarray(1 / (self.values + penalty))

    def rows(self, at: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.asarray((self.X[at] - self.middle) @ self.vectors)

    def coef(self, against: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        return np.asarray(self.vectors @ (against / (self.values + penalty)[:, None]))


class _Wide:
    """Fewer rows than columns: the eigenvectors of ``XX'``."""

    def __init__(self, X: NDArray[np.floating], middle: NDArray[np.float64]) -> None:
        self.X = X - middle
        self.width = len(X)
        self.values, self.vectors = eigh(self.X @ self.X.T, overwrite_a=True)
        self.values = np.maximum(self.values, 0)

    def against(self, Y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.vectors.T @ Y)

    def shrink(self, penalty: float) -> NDArray[np.float64]:
        return np.asarray(self.values / (self.values + penalty))

    def rows(self, at: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.asarray(self.vectors[at])

    def coef(self, against: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        return np.asarray(self.X.T @ (self.vectors @ (against / (self.values + penalty)[:, None])))


def _same_sized_groups(
    numbers: NDArray[np.intp], width: int, penalties: int
) -> Iterator[NDArray[np.intp]]:
    """Row numbers ``(G, m)`` of groups that all have ``m`` rows, some groups at a time."""
    order = np.argsort(numbers, kind="stable")
    sizes = np.bincount(numbers)
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes[sizes > 0]):
        at = order[starts[sizes == size][:, None] + np.arange(size)]
        step = max(1, _HELD // (int(size) * (width + penalties)))
        for start in range(0, len(at), step):
            yield at[start : start + step]


class RidgeHead(Head):
    """Ridge regression on the classes; chooses its penalty among several as it is fitted.

    The choice is by the log loss of rows held out with their group, after the sigmoid that is
    fitted on the same held-out scores.

    Args:
        penalties: Of the sum of squares, positive.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        best_params_: The chosen penalty.
        coef_: Shape ``(d, K)``.
        intercept_: Shape ``(K,)``.
        sigmoid_: See :class:`pipeline.heads.calibrated.Sigmoid`.
        path_: Held-out log loss of every penalty.
    """

    def __init__(self, *, penalties: tuple[float, ...] = PENALTIES) -> None:
        self.penalties = penalties

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, patients ``(n,)`` held out whole.

        Raises:
            ValueError: Not finite, shapes that do not fit, one class only, or a penalty
                that is not positive.
        """
        rows, y = validate_data(self, X, y, dtype=np.float32)
        if min(self.penalties, default=0) <= 0:
            raise ValueError(f"penalties {self.penalties}: allowed are positive numbers")
        self.classes_, labels = numbered_classes(y)
        targets = np.eye(len(self.classes_))[labels]
        held = None if groups is None else np.asarray(groups)
        path = ridge_path(rows, targets, np.asarray(self.penalties), held)
        rules = [fit_sigmoid(scores, labels) for scores in path.held_out]
        losses = [rule.loss for rule in rules]
        best = int(np.argmin(losses))
        self.path_ = [
            {"penalty": penalty, "log_loss": loss}
            for penalty, loss in zip(self.penalties, losses, strict=True)
        ]
        self.best_params_ = {"penalty": self.penalties[best]}
        self.sigmoid_ = rules[best]
        self.coef_, self.intercept_ = path.coef[best], path.intercept[best]
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        return self.sigmoid_.proba(times(rows, self.coef_) + self.intercept_)
