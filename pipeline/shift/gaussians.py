"""Compare two samples by mean and covariance: the Frechet distance.

It is biased upwards for small samples (Chong and Forsyth 2020), so it is only ever
shown beside the band that relabelling gives.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

_COMPONENTS = 64


def shrunk_covariance(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the Ledoit-Wolf shrunk covariance (Ledoit and Wolf 2004).

    (1 - s) S + s tr(S)/d I, with s from the spread of the x_i x_i' about S. The spread
    needs only sum_i |x_i|^4, where scikit-learn forms a second d x d product for the
    same number: 0.7 s against 0.1 s for 2000 x 1280.

    Args:
        rows: Shape (n, d), n > 1.

    Returns:
        Shape (d, d), positive definite unless nothing shrinks it: rows that coincide, or
        two of them.
    """
    centred = np.asarray(rows - rows.mean(axis=0, dtype=np.float64), dtype=np.float64)
    n, d = centred.shape
    sample = centred.T @ centred / n
    mean_variance = np.trace(sample) / d
    norm = np.sum(sample**2)
    away_from_identity = norm - d * mean_variance**2
    spread = (np.mean(np.einsum("ij,ij->i", centred, centred) ** 2) - norm) / n
    shrink = np.clip(spread / away_from_identity, 0, 1) if away_from_identity > 0 else 0.0
    sample *= 1 - shrink
    sample.flat[:: d + 1] += shrink * mean_variance
    return np.asarray(sample, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and covariance of a sample."""

    mean: NDArray[np.float64]
    """Shape (d,)."""
    covariance: NDArray[np.float64]
    """Shape (d, d), Ledoit-Wolf shrunk: positive definite unless the rows hardly differ."""


def moments(rows: NDArray[np.floating]) -> Moments:
    """Return the mean and the Ledoit-Wolf shrunk covariance of the rows.

    Args:
        rows: Shape (n, d), n > 1.
    """
    doubles = np.asarray(rows, dtype=np.float64)
    return Moments(mean=doubles.mean(axis=0), covariance=shrunk_covariance(doubles))


def frechet(a: Moments, b: Moments) -> float:
    """Return |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau 1982).

    The trace of the root is the sum of the roots of the eigenvalues of RBR, A = RR with R
    symmetric. R exists where A is singular too, as when the rows of a few patients
    coincide; a Cholesky factor does not.

    Args:
        a: Moments of one sample.
        b: Moments of the other.

    Returns:
        Squared distance, >= 0 up to rounding.
    """
    root = _root(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric root; eigenvalues that rounding made negative count as 0."""
    eigenvalues, axes = np.linalg.eigh(covariance)
    return np.asarray((axes * np.sqrt(np.clip(eigenvalues, 0, None))) @ axes.T)


def frechet_draws(rows: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the Frechet distance on the first 64 pooled components, for every labelling.

    Args:
        rows: Shape (n, d), from :func:`pipeline.shift.kernels.global_scale`.
        labels: Shape (n, B), True for the target.

    Returns:
        Shape (B,).
    """
    components = min(_COMPONENTS, *rows.shape)
    reduced = PCA(components, svd_solver="covariance_eigh").fit_transform(rows)
    return np.array(
        [frechet(moments(reduced[label]), moments(reduced[~label])) for label in labels.T]
    )
