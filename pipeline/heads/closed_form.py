"""Heads with a closed form: ridge regression, linear discriminant, nearest class mean.

Ridge regresses the columns of the one-hot labels; the intercept is not penalised. With
centred rows ``X``, ``X'X = V L V'`` (or ``XX' = U L U'`` where there are fewer rows than
columns), every penalty ``a`` has ``w = V (L + a)^-1 V' X' y`` and the hat matrix

    H_a = 1 1' / n + Z D_a Z',   Z = X V, D = (L + a)^-1,   or   Z = U, D = L / (L + a).

A new fit without the rows ``g`` of one patient predicts these rows exactly as

    yhat_g = y_g - (I - H_gg)^-1 (y_g - (H y)_g)

(Sherman-Morrison-Woodbury; with one row, the PRESS residual). The penalty and the
calibration are chosen from these, so no fold is ever fitted.

A calibration turns a head's scores into probabilities: ``p = softmax(a s + b)``, with one scale
``a >= 0`` for all classes and, optionally, an offset for each. With two classes this is Platt's
sigmoid. It is fitted to scores of held-out rows. Targets are smoothed as in Platt (1999), so that
separated classes have a finite solution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, solve
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from pipeline.heads.base import Head, Parameters, row_blocks

_PENALTIES = tuple(float(a) for a in np.logspace(0, 6, 13))
#: Patients with equally many rows are solved together, with this many numbers in memory.
_HELD = 1 << 20
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Calibration(Parameters):
    """A fitted map from scores to probabilities.

    Attributes:
        scale: Not negative, so a higher score never means a lower probability.
        offset: Shape ``(K,)``.
        loss: Mean log loss of the rows that it was fitted to.
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
    """Fit the map to held-out scores ``(n, K)`` by maximum likelihood; NaN rows are left out."""
    finite = np.isfinite(scores).all(axis=1)
    scores, y = np.asarray(scores, np.float64)[finite], y[finite]
    counts = np.bincount(y, minlength=scores.shape[1])
    if (counts > 0).sum() < 2:
        raise ValueError("the held-out rows are of one class only: no probability can be fitted")
    # A common unit, so that margins and cosines are the same for the optimiser.
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


def _ridge_path(
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    penalties: NDArray[np.floating],
    groups: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients ``(P, d, K)``, intercepts ``(P, K)``, and held-out predictions ``(P, n, K)``.

    Each row is predicted by a fit without its group. No float64 copy of ``X``, ``(n, d)``, is made
    unless ``n < d``.
    """
    wide = len(X) < X.shape[1]
    centre, mean = X.mean(axis=0, dtype=np.float64), Y.mean(axis=0)
    if wide:
        centred = X - centre
        values, vectors = eigh(centred @ centred.T, driver="evd", overwrite_a=True)
        projected = vectors.T @ (Y - mean)
    else:
        values, vectors = eigh(_scatter(X, centre), driver="evd", overwrite_a=True)
        # The columns of Y - mean have mean zero, so the centre cancels.
        projected = vectors.T @ _transposed_times(X, Y - mean)
    values = np.maximum(values, 0)
    shrunk = 1 / (values + penalties[:, None])
    back = (centred.T @ vectors) if wide else vectors
    coef = np.tensordot(shrunk[:, :, None] * projected, back, (1, 1)).swapaxes(1, 2)
    hat = values * shrunk if wide else shrunk
    # (p, r, K): factors of a row of Z that give its fitted values.
    fitting = hat[:, :, None] * projected
    held_out = np.empty((len(penalties), *Y.shape))
    for rows in _same_sized_groups(groups, len(values) + len(penalties)):
        at = rows.ravel()
        Z = vectors[at] if wide else (X[at] - centre) @ vectors
        fitted = np.einsum("nr,prk->pnk", Z, fitting, optimize=True) + mean
        residual = Y[rows] - fitted.reshape(len(penalties), *rows.shape, -1)
        # The hat matrices of all penalties in one product, from the pairs of rows of a group.
        Z = Z.reshape(*rows.shape, -1)
        pairs = Z[:, :, None] * Z[:, None]
        H = (pairs.reshape(-1, len(values)) @ hat.T).reshape(*pairs.shape[:3], -1) + 1 / len(X)
        left = np.eye(rows.shape[1]) - np.moveaxis(H, -1, 0)
        held_out[:, rows] = Y[rows] - np.linalg.solve(left, residual)
    return coef, mean - centre @ coef, held_out


def _ridge(
    X: NDArray[np.floating], Y: NDArray[np.floating], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients ``(d, K)`` and intercept ``(K,)`` of one penalty, in a sixth of the time."""
    centre, mean = X.mean(axis=0, dtype=np.float64), Y.mean(axis=0)
    scatter = _scatter(X, centre)
    np.fill_diagonal(scatter, scatter.diagonal() + penalty)
    coef = solve(scatter, _transposed_times(X, Y - mean), assume_a="pos", overwrite_a=True)
    return coef, mean - centre @ coef


def _scatter(
    X: NDArray[np.floating],
    centres: NDArray[np.floating],
    labels: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Sum ``(d, d)`` of outer products of rows minus the mean of all rows, or of their class."""
    total = np.zeros((X.shape[1], X.shape[1]))
    for rows in row_blocks(X.shape):
        centred = X[rows] - (centres if labels is None else centres[labels[rows]])
        total += centred.T @ centred
    return total


def _transposed_times(X: NDArray[np.floating], v: NDArray[Any]) -> NDArray[np.float64]:
    """``X.T @ v`` in float64; shapes ``(n, d)`` and ``(n, k)``."""
    total = np.zeros((X.shape[1], v.shape[1]))
    for rows in row_blocks(X.shape):
        total += X[rows].T.astype(np.float64) @ v[rows]
    return total


def _same_sized_groups(groups: NDArray[Any], width: int) -> Iterator[NDArray[np.intp]]:
    """Row numbers ``(G, m)`` of groups with equally many rows ``m``, in blocks for the memory."""
    numbers = np.unique(groups, return_inverse=True)[1]
    order = np.argsort(numbers, kind="stable")
    sizes = np.bincount(numbers)
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes):
        at = order[starts[sizes == size][:, None] + np.arange(size)]
        step = max(1, _HELD // (int(size) ** 2 * width))
        for start in range(0, len(at), step):
            yield at[start : start + step]


@dataclass(kw_only=True, eq=False)
class RidgeHead(Head):
    """Ridge regression on the classes; the fit chooses one of several penalties.

    It takes the penalty with the lowest log loss of held-out rows, after the calibration that is
    fitted to the same held-out scores.

    Args:
        penalties: Penalties on the sum of squares, positive.
        calibration: From an earlier fit with one penalty; then no rows are held out.

    Attributes:
        coef_: Shape ``(d, K)``.
        intercept_: Shape ``(K,)``.
        calibration_: From scores to probabilities.
        fixed_params_: Arguments of the constructor that make the same choice again.
    """

    penalties: tuple[float, ...] = _PENALTIES
    calibration: Calibration | None = None

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, patients ``(n,)`` held out whole."""
        rows, labels = self._rows_to_fit(X, y)
        if min(self.penalties, default=0) <= 0:
            raise ValueError(f"penalties {self.penalties}: allowed are positive numbers")
        targets = np.eye(len(self.classes_))[labels]
        if self.calibration:
            (penalty,) = self.penalties
            self.coef_, self.intercept_ = _ridge(rows, targets, penalty)
            self.calibration_ = self.calibration
            return self
        patients = self._patients(groups, len(rows))
        coef, intercept, held_out = _ridge_path(rows, targets, np.asarray(self.penalties), patients)
        calibrations = [fit_calibration(scores, labels) for scores in held_out]
        best = int(np.argmin([calibration.loss for calibration in calibrations]))
        self.calibration_ = calibrations[best]
        penalty = self.penalties[best]
        self.best_params_ = {"penalty": penalty}
        self.fixed_params_ = {"penalties": (penalty,), "calibration": self.calibration_}
        self.coef_, self.intercept_ = coef[best], intercept[best]
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        rows = self._rows(X)
        return self.calibration_.proba(rows @ self.coef_ + self.intercept_)


@dataclass(kw_only=True, eq=False)
class DiscriminantHead(Head):
    """Gaussian classes with one shrunk covariance.

    With a given shrinkage the result is that of scikit-learn's
    ``LinearDiscriminantAnalysis(solver="lsqr")``, which solves by singular values and takes 0.65 s
    for 1,280 features instead of 0.1 s. One covariance is estimated from all rows around the means
    of their classes, because a class may have only a few rows.

    Args:
        shrinkage: Share of a multiple of the identity in the covariance, in (0, 1]; ``"auto"``:
            the estimate of Ledoit and Wolf (2004), with all columns at the same scale.

    Attributes:
        coef_: Shape ``(d, K)``.
        intercept_: Shape ``(K,)``.
    """

    shrinkage: float | str = "auto"
    coef_: NDArray[np.float64] = field(init=False, repr=False)
    intercept_: NDArray[np.float64] = field(init=False, repr=False)

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit features ``(n, d)`` to labels; a LinAlgError if no row differs from its mean."""
        _fit_discriminants([self], X, y)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        rows = self._rows(X)
        return np.asarray(softmax(rows @ self.coef_ + self.intercept_, axis=1))


def discriminant_path(
    heads: Sequence[DiscriminantHead], X: ArrayLike, y: ArrayLike, other: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Fit heads that differ in shrinkage; their probabilities ``(heads, m, K)`` of other rows."""
    _fit_discriminants(heads, X, y)
    return np.stack([head.predict_proba(other) for head in heads])


def _fit_discriminants(heads: Sequence[DiscriminantHead], X: ArrayLike, y: ArrayLike) -> None:
    """Fit several heads from the same products of rows, which take most of the time."""
    for head in heads:
        rows, labels = head._rows_to_fit(X, y)  # noqa: SLF001 - of the same module
        allowed = head.shrinkage == "auto"
        if not (allowed or (not isinstance(head.shrinkage, str) and 0 < head.shrinkage <= 1)):
            raise ValueError(f"shrinkage {head.shrinkage!r}: allowed are above 0 to 1, or 'auto'")
    counts = np.bincount(labels)
    means = (_transposed_times(rows, np.eye(len(counts))[labels]) / counts).T
    # Products in float32 take half the time and change probabilities by a millionth.
    covariance = _scatter(rows, means.astype(np.float32), labels) / len(rows)
    for head in heads:
        shrunk = _shrunk(covariance, rows, means, labels, head.shrinkage)
        head.coef_ = cho_solve(cho_factor(shrunk.T, overwrite_a=True), means.T)
        head.intercept_ = np.log(counts / len(rows)) - (means.T * head.coef_).sum(axis=0) / 2


def _shrunk(
    covariance: NDArray[np.float64],
    X: NDArray[np.float32],
    means: NDArray[np.float64],
    labels: NDArray[np.intp],
    share: float | str,
) -> NDArray[np.float64]:
    """The shrunk covariance of rows around the means of their classes."""
    scale = np.ones(len(covariance))
    if isinstance(share, str):
        scale = np.sqrt(covariance.diagonal())
        # The deviation of a constant column is a rounding error.
        scale[scale <= 1e-6 * np.abs(means).max(axis=0)] = 1
        covariance = covariance / np.outer(scale, scale)
        # Ledoit and Wolf 2004, lemma 3.3: the share with the least expected squared error.
        n, d = X.shape
        fourth = sum(
            float((np.square((X[rows] - means[labels[rows]]) / scale).sum(axis=1) ** 2).sum()) / n
            for rows in row_blocks(X.shape)
        )
        total, trace = float(np.square(covariance).sum()), float(covariance.trace())
        spread = (total - trace**2 / d) / d
        error = min((fourth - total) / (d * n), spread)
        share = error / spread if error > 0 else 0.0
    shrunk = (1 - share) * covariance
    np.fill_diagonal(shrunk, shrunk.diagonal() + share * covariance.trace() / len(covariance))
    return np.asarray(shrunk * np.outer(scale, scale))


@dataclass(kw_only=True, eq=False)
class PrototypeHead(Head):
    """Cosine of a row with the mean of each class's unit rows.

    Probabilities are ``softmax(scale * cosine)``. The scale (an inverse temperature) is fitted to
    cosines with means from which the row's own group was removed exactly.

    Args:
        calibration: From an earlier fit; then no rows are held out.

    Attributes:
        means_: Mean of the unit rows of each class, shape ``(K, d)``.
        calibration_: From cosines to probabilities; its offsets are zero.
        fixed_params_: See :class:`RidgeHead`.
    """

    calibration: Calibration | None = None

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, patients ``(n,)`` held out whole."""
        rows, labels = self._rows_to_fit(X, y)
        of_class = np.eye(len(self.classes_))[labels]
        share = of_class / _norms(rows)[:, None]
        sums = _transposed_times(rows, share).T
        self.means_ = sums / of_class.sum(axis=0)[:, None]
        if self.calibration:
            self.calibration_ = self.calibration
        else:
            patients = self._patients(groups, len(rows))
            held_out = _held_out_cosines(rows, share, sums, patients)
            self.calibration_ = fit_calibration(held_out, labels, offsets=False)
        self.fixed_params_ = {"calibration": self.calibration_}
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        rows = self._rows(X)
        cosines = rows @ self.means_.T / _norms(self.means_) / _norms(rows)[:, None]
        return self.calibration_.proba(cosines)


def _held_out_cosines(
    rows: NDArray[np.float32],
    share: NDArray[np.float64],
    sums: NDArray[np.float64],
    patients: NDArray[Any],
) -> NDArray[np.float64]:
    """Cosines ``(n, K)`` with means without the row's patient; NaN if no rows are left."""
    numbers = np.unique(patients, return_inverse=True)[1]
    order = np.argsort(numbers, kind="stable")
    cosines = np.empty(share.shape)
    present = (share > 0).sum(axis=0)
    for at in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        of_patient = rows[at].astype(np.float64)
        left = sums - share[at].T @ of_patient
        cosines[at] = of_patient @ left.T / _norms(left) / _norms(of_patient)[:, None]
        cosines[np.ix_(at, present == (share[at] > 0).sum(axis=0))] = np.nan
    return cosines


def _norms(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.asarray(np.maximum(np.sqrt(squares), _TINY))
