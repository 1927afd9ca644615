"""Logistic regression for many penalties, folds and seeds at once.

All problems share one feature matrix and differ in their penalty ``C`` and in the
weights of the rows (a fold is a mask of zeros and ones). They are solved together by
Newton's method with conjugate gradients, so each step is one product of the matrix
with as many columns as there are unfinished problems:

    minimise  |w|^2 / 2 + C * sum_i s_i * loss(y_i, x_i w + b)

which is scikit-learn's convention, with the intercept ``b`` not penalised. The
objective is 1-strongly convex in ``w``, so ``|g| <= tol * |w|`` bounds the relative
error of the coefficients by ``tol``: this is the stopping rule, for the gradient ``g`` or,
where many rows make ``g`` large, for Newton's decrement ``sqrt(g' H^-1 g)``. Directions are found
in float32, which is twice as fast; gradients are float64, which makes the answer
exact. The same code runs on a CPU and on CUDA.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import validate_data

from pipeline.heads.base import LinearScores, probabilities
from pipeline.heads.blocks import times
from pipeline.heads.newton import FeatureRows, NewtonSolver


@dataclass(frozen=True, kw_only=True)
class Path:
    """Solutions of ``V`` problems on features of width ``d``.

    Attributes:
        coef: Shape ``(V, K, d)``, or ``(V, 1, d)`` for two classes.
        intercept: Shape ``(V, K)`` or ``(V, 1)``.
        steps: Newton steps until the last problem was solved.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    steps: int

    def some(self, which: slice) -> "Path":
        """Some of the problems."""
        return Path(coef=self.coef[which], intercept=self.intercept[which], steps=self.steps)

    def proba(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities ``(V, n, K)`` of features ``(n, d)``."""
        V, K, d = self.coef.shape
        scores = times(X, self.coef.reshape(-1, d).T).reshape(len(X), V, K)
        return probabilities(scores.swapaxes(0, 1) + self.intercept[:, None])


def solve_path(  # noqa: PLR0913 - one problem is five arrays and a tolerance
    X: NDArray[np.floating],
    y: NDArray[np.integer],
    *,
    C: NDArray[np.floating],
    weights: NDArray[np.floating],
    tol: float = 1e-5,
    device: str = "cpu",
) -> Path:
    """Solve all problems together.

    Args:
        X: Features, shape ``(n, d)``.
        y: Labels 0 to K - 1, shape ``(n,)``.
        C: Penalty of each problem, shape ``(V,)``, positive: small is strong.
        weights: Row weights of each problem, shape ``(V, n)``, not negative.
        tol: Bound on the relative error of the coefficients.
        device: Where torch computes.

    Raises:
        ValueError: A problem whose rows are all of one class.
    """
    import torch

    _check_classes(y, weights)
    solver = NewtonSolver(
        A=FeatureRows(torch.as_tensor(X).to(device)),
        y=torch.as_tensor(y).long().to(device),
        C=torch.as_tensor(C, dtype=torch.float64).to(device),
        # Weights are few different numbers: as float32 they are exact and half as large.
        s=torch.as_tensor(weights).T.contiguous().to(device),
        classes=int(y.max()) + 1,
        tol=tol,
    )
    with torch.no_grad():
        w, steps = solver.solve()
    found = w.permute(1, 2, 0).cpu().numpy()
    return Path(coef=found[:, :, :-1], intercept=found[:, :, -1], steps=steps)


class LogisticHead(LinearScores):
    """Logistic regression with an L2 penalty: scikit-learn's, by the batched solver.

    Args:
        C: Inverse strength of the penalty, positive.
        tol: Bound on the relative error of the coefficients.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        coef_: Shape ``(1, d)`` for two classes, else ``(K, d)``.
        intercept_: Shape ``(1,)`` or ``(K,)``.
        path_: Mean log loss on inner folds for each ``C``, where that was chosen by folds.
    """

    path_: list[dict[str, float]]

    def __init__(self, *, C: float = 1.0, tol: float = 1e-5) -> None:
        self.C = C
        self.tol = tol

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, each row counted with its weight.

        Raises:
            ValueError: Not finite, shapes that do not fit, or one class only.
        """
        rows, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_, labels = np.unique(y, return_inverse=True)
        weights = np.ones(len(rows)) if sample_weight is None else np.asarray(sample_weight)
        path = solve_path(rows, labels, C=np.array([self.C]), weights=weights[None], tol=self.tol)
        self.coef_, self.intercept_ = path.coef[0], path.intercept[0]
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores of features ``(n, d)``: ``(n,)`` for two classes, else ``(n, K)``."""
        scores = self.scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores


def _check_classes(y: NDArray[np.integer], weights: NDArray[np.floating]) -> None:
    for number, row in enumerate(weights):
        if len(np.unique(y[row > 0])) < 2:  # noqa: PLR2004 - a choice needs two
            raise ValueError(f"problem {number} has rows of one class only; a head needs two")
