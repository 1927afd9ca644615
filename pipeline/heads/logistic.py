"""Newton's method with conjugate gradients for many logistic regressions on one matrix.

See :func:`pipeline.heads.logistic.solve_path` for what is solved. Directions are found in
float32, which is twice as fast; gradients are float64, which makes the answer exact.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.heads.preprocessing import row_blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import validate_data

from pipeline.heads.base import LinearScores, probabilities
from pipeline.heads.preprocessing import times

_NEWTON_STEPS = 100
_CG_STEPS = 40
_HALVINGS = 30
_FORCING = 0.1
#: Features up to so many numbers have a float64 copy: 128 MB.
_HELD = 16 << 20
#: A step holds a dozen arrays of the scores of its problems: 32 MB each.
_SCORES = 4 << 20


class FeatureRows:
    """Features and a last column of ones, multiplied in float64 or float32.

    A float64 copy is held only where it is small; otherwise blocks of rows are converted as
    they are needed, so that the solver takes no more memory than the features themselves.
    """

    def __init__(self, X: "Tensor") -> None:
        self.shape, self.device = (X.shape[0], X.shape[1] + 1), X.device
        self.kept = X if X.numel() > _HELD else X.double()
        self.single = X.float()
        self.blocks = list(row_blocks(X.shape)) if X.numel() > _HELD else [slice(0, len(X))]

    def times(self, w: "Tensor") -> "Tensor":
        """Scores ``(n, V, K')`` of columns ``(d + 1, V, K')``, in the dtype of ``w``."""
        import torch

        columns = w.reshape(len(w), -1)
        found = torch.empty((self.shape[0], columns.shape[1]), dtype=w.dtype, device=self.device)
        for rows, block in self._as(w.dtype):
            torch.addmm(columns[-1:], block, columns[:-1], out=found[rows])
        return found.reshape(-1, *w.shape[1:])

    def transposed(self, v: "Tensor", *, squared: bool = False) -> "Tensor":
        """Columns ``(d + 1, V, K')`` of ``(n, V, K')``; of the squares where asked for."""
        import torch

        values = v.reshape(len(v), -1)
        found = torch.zeros((self.shape[1], values.shape[1]), dtype=v.dtype, device=self.device)
        for rows, block in self._as(v.dtype, small=squared):
            left = block.square() if squared else block
            found[:-1] += (values[rows].T @ left).T  # a quarter faster than left.T @ values
        found[-1] = values.sum(0)
        return found.reshape(-1, *v.shape[1:])

    def _as(self, dtype: Any, *, small: bool = False) -> Iterator[tuple[slice, "Tensor"]]:
        """Blocks of rows in a dtype; what has it already is one block, unless small is asked."""
        whole = self.kept if self.kept.dtype == dtype else self.single
        blocks = self.blocks if small or whole.dtype != dtype else [slice(0, len(whole))]
        for rows in blocks:
            yield rows, whole[rows].to(dtype)


class NewtonSolver:
    """Newton-CG on columns ``(d + 1, V, K')``; ``K'`` is 1 for two classes."""

    def __init__(
        self, *, A: FeatureRows, y: "Tensor", C: "Tensor", s: "Tensor", **rest: Any
    ) -> None:
        import torch

        self.A, self.C, self.s, self.tol = A, C, s, rest["tol"]
        classes = rest["classes"]
        self.binary = classes == 2
        one_hot = torch.nn.functional.one_hot(y, classes).to(C.dtype)
        self.target = one_hot[:, None, 1:] if self.binary else one_hot[:, None, :]
        self.penalty = torch.ones(A.shape[1], 1, 1, dtype=C.dtype, device=A.device)
        self.penalty[-1] = 0.0

    def solve(self) -> tuple["Tensor", int]:
        """Columns of all problems, and the Newton steps until the last was solved."""
        import torch

        width = self.A.shape[1], len(self.C), self.target.shape[2]
        w = torch.zeros(width, dtype=self.C.dtype, device=self.A.device)
        open_ = torch.arange(len(self.C), device=self.A.device)
        together = max(1, _SCORES // (self.A.shape[0] * width[2]))
        steps = 0
        while len(open_) and steps < _NEWTON_STEPS:
            steps += 1
            solved = []
            for part in torch.split(open_, together):
                w[:, part], done = self._newton(w[:, part], part)
                solved.append(done)
            open_ = open_[~torch.cat(solved)]
        return w, steps

    def _newton(self, w: "Tensor", at: "Tensor") -> tuple["Tensor", "Tensor"]:
        """One step for the problems ``at``; also whether each was already solved."""
        C, s = self.C[at][:, None], self.s[:, at, None]
        z = self.A.times(w)
        p = self._link(z)
        g = self.penalty * w + self.A.transposed(C * s * (p - self.target))
        near = self.tol * _norm(w * self.penalty).clamp_min(1e-12)
        there = _norm(g) <= near
        step = self._direction(g, (C * s).float(), p.float())
        slope = (g * step).sum((0, 2))
        dz = self.A.times(step)
        t = self._step_length(w, step, z, dz, C * s, slope)
        # The decrement is the distance in the norm of H, which is 1 or more in all directions;
        # twice, because the direction is rough; and this last step is still taken.
        last = 2 * slope.clamp_max(0).neg().sqrt() <= near
        return w + (~there * t)[:, None] * step, there | last

    def _step_length(
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
        diagonal = penalty + self.A.transposed(cs * p * (1 - p), squared=True) + 1e-8
        r = -g.float()
        x = torch.zeros_like(r)
        q = r / diagonal
        d, rq = q, (r * q).sum((0, 2))
        enough = _FORCING * _norm(r)
        for _ in range(_CG_STEPS):
            going = _norm(r) > enough
            if not going.any():
                break
            h = penalty * d + self.A.transposed(cs * self._curved(d, p))
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
        u = p * self.A.times(d)
        return u * (1 - p) if self.binary else u - p * u.sum(2, keepdim=True)

    def _link(self, z: "Tensor") -> "Tensor":
        return z.sigmoid() if self.binary else z.softmax(2)


def _norm(columns: "torch.Tensor") -> "torch.Tensor":
    return columns.square().sum((0, 2)).sqrt()


# Logistic regression for many penalties, folds and seeds at once.


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


def solve_path(
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
        if len(np.unique(y[row > 0])) < 2:
            raise ValueError(f"problem {number} has rows of one class only; a head needs two")
