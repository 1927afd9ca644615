"""Logistic regression for many penalties, folds and seeds at once.

All problems share one feature matrix and differ in their penalty ``C`` and in the
weights of the rows (a fold is a mask of zeros and ones). They are solved together by
Newton's method with conjugate gradients, so each step is one product of the matrix
with as many columns as there are unfinished problems:

    minimise  |w|^2 / 2 + C * sum_i s_i * loss(y_i, x_i w + b)

which is scikit-learn's convention, with the intercept ``b`` not penalised. The
objective is 1-strongly convex in ``w``, so ``|g| <= tol * |w|`` bounds the relative
error of the coefficients by ``tol``: this is the stopping rule. Directions are found
in float32, which is twice as fast; gradients are float64, which makes the answer
exact. The same code runs on a CPU and on CUDA.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NEWTON_STEPS = 100
_CG_STEPS = 40
_HALVINGS = 30
_FORCING = 0.1


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

    def proba(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities ``(V, n, K)`` of features ``(n, d)``."""
        scores = np.einsum("nd,vkd->vnk", X, self.coef, optimize=True) + self.intercept[:, None]
        return _probabilities(scores)


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
    solver = _Solver(
        A=torch.as_tensor(np.column_stack([X, np.ones(len(X))]), dtype=torch.float64).to(device),
        y=torch.as_tensor(y).long().to(device),
        C=torch.as_tensor(C, dtype=torch.float64).to(device),
        s=torch.as_tensor(weights, dtype=torch.float64).T.contiguous().to(device),
        classes=int(y.max()) + 1,
        tol=tol,
    )
    with torch.no_grad():
        w, steps = solver.solve()
    found = w.permute(1, 2, 0).cpu().numpy()
    return Path(coef=found[:, :, :-1], intercept=found[:, :, -1], steps=steps)


class _Solver:
    """Newton-CG on columns ``(d + 1, V, K')``; ``K'`` is 1 for two classes."""

    def __init__(self, *, A: "Tensor", y: "Tensor", C: "Tensor", s: "Tensor", **rest: Any) -> None:
        import torch

        self.A, self.C, self.s, self.tol = A, C, s, rest["tol"]
        self.A32 = A.float()
        self.squares32 = self.A32.square()
        classes = rest["classes"]
        self.binary = classes == 2  # noqa: PLR2004 - a sigmoid instead of a softmax
        one_hot = torch.nn.functional.one_hot(y, classes).to(A.dtype)
        self.target = one_hot[:, None, 1:] if self.binary else one_hot[:, None, :]
        self.penalty = torch.ones(A.shape[1], 1, 1, dtype=A.dtype, device=A.device)
        self.penalty[-1] = 0.0

    def solve(self) -> tuple["Tensor", int]:
        import torch

        width = self.A.shape[1], len(self.C), self.target.shape[2]
        w = torch.zeros(width, dtype=self.A.dtype, device=self.A.device)
        open_ = torch.arange(len(self.C), device=self.A.device)
        steps = 0
        while len(open_) and steps < _NEWTON_STEPS:
            steps += 1
            w[:, open_], done = self._newton(w[:, open_], open_)
            open_ = open_[~done]
        return w, steps

    def _newton(self, w: "Tensor", at: "Tensor") -> tuple["Tensor", "Tensor"]:
        """One step for the problems ``at``; also whether each was already solved."""
        C, s = self.C[at][:, None], self.s[:, at, None]
        z = self._times(self.A, w)
        p = self._link(z)
        g = self.penalty * w + self._transposed(self.A, C * s * (p - self.target))
        done = _norm(g) <= self.tol * _norm(w * self.penalty).clamp_min(1e-12)
        step = self._direction(g, (C * s).float(), p.float())
        dz = self._times(self.A, step)
        t = self._step_length(w, step, z, dz, C * s, (g * step).sum((0, 2)))
        return w + (~done * t)[:, None] * step, done

    def _step_length(  # noqa: PLR0913, PLR0917 - the line through one point of all problems
        self, w: "Tensor", step: "Tensor", z: "Tensor", dz: "Tensor", cs: "Tensor", slope: "Tensor"
    ) -> "Tensor":
        """Halve each problem's step until its objective falls enough (Armijo)."""
        import torch

        start = self._objective(w, z, cs)
        t = torch.ones_like(slope)
        for _ in range(_HALVINGS):
            now = self._objective(w + t[:, None] * step, z + t[:, None] * dz, cs)
            # A last step at the limit of rounding must not be halved for ever.
            bad = now > start + 1e-4 * t * slope + 1e-12 * start.abs()
            if not bad.any():
                break
            t = torch.where(bad, t / 2, t)
        return t

    def _objective(self, w: "Tensor", z: "Tensor", cs: "Tensor") -> "Tensor":
        import torch

        if self.binary:
            loss = torch.nn.functional.softplus(z) - self.target * z
        else:
            loss = torch.logsumexp(z, dim=2, keepdim=True) - (self.target * z).sum(2, keepdim=True)
        return (self.penalty * w.square()).sum((0, 2)) / 2 + (cs * loss).sum((0, 2))

    def _direction(self, g: "Tensor", cs: "Tensor", p: "Tensor") -> "Tensor":
        """Solve ``H step = -g`` roughly, by conjugate gradients scaled by H's diagonal."""
        import torch

        penalty = self.penalty.float()
        diagonal = penalty + self._transposed(self.squares32, cs * p * (1 - p)) + 1e-8
        r = -g.float()
        x = torch.zeros_like(r)
        q = r / diagonal
        d, rq = q, (r * q).sum((0, 2))
        enough = _FORCING * _norm(r)
        for _ in range(_CG_STEPS):
            going = _norm(r) > enough
            if not going.any():
                break
            h = penalty * d + self._transposed(self.A32, cs * self._curved(d, p))
            curvature = (d * h).sum((0, 2))
            # A solved problem rests. Adding a constant to all intercepts of a softmax changes
            # nothing: along that line there is no curvature, and no step.
            a = torch.where(going & (curvature > 0), rq / curvature.clamp_min(1e-30), 0.0)[:, None]
            x, r = x + a * d, r - a * h
            q = r / diagonal
            rq, before = (r * q).sum((0, 2)), rq
            d = q + torch.where(going, rq / before.clamp_min(1e-30), 0.0)[:, None] * d
        return x.to(g.dtype)

    def _curved(self, d: "Tensor", p: "Tensor") -> "Tensor":
        """Second derivative of the loss at the scores, times the change of the scores."""
        u = p * self._times(self.A32, d)
        return u * (1 - p) if self.binary else u - p * u.sum(2, keepdim=True)

    def _link(self, z: "Tensor") -> "Tensor":
        return z.sigmoid() if self.binary else z.softmax(2)

    @staticmethod
    def _times(A: "Tensor", w: "Tensor") -> "Tensor":
        return (A @ w.reshape(len(w), -1)).reshape(len(A), *w.shape[1:])

    @staticmethod
    def _transposed(A: "Tensor", v: "Tensor") -> "Tensor":
        return (A.T @ v.reshape(len(v), -1)).reshape(A.shape[1], *v.shape[1:])


class LogisticHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression with an L2 penalty: scikit-learn's, by the batched solver.

    Args:
        C: Inverse strength of the penalty, positive.
        tol: Bound on the relative error of the coefficients.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        coef_: Shape ``(1, d)`` for two classes, else ``(K, d)``.
        intercept_: Shape ``(1,)`` or ``(K,)``.
    """

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
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        return _probabilities(self._scores(X))

    def _scores(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows: NDArray[np.float32] = validate_data(self, X, dtype=np.float32, reset=False)
        scores: NDArray[np.float64] = rows @ self.coef_.T + self.intercept_
        return scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class of each row, shape ``(n,)``."""
        found: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return found


def _probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sigmoid of one score or softmax of several, along the last axis."""
    if scores.shape[-1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=-1)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = scores / scores.sum(axis=-1, keepdims=True)
    return probabilities


def _norm(columns: "torch.Tensor") -> "torch.Tensor":
    return columns.square().sum((0, 2)).sqrt()


def _check_classes(y: NDArray[np.integer], weights: NDArray[np.floating]) -> None:
    for number, row in enumerate(weights):
        if len(np.unique(y[row > 0])) < 2:  # noqa: PLR2004 - a choice needs two
            raise ValueError(f"problem {number} has rows of one class only; a head needs two")
