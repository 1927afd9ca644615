"""Ask whether the domain and the task point the same way, and erase the domain.

LEACE moves every row along one direction so that the two domains' means coincide,
as little as possible (Belrose et al. 2023, arXiv 2306.03819).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.shift.gaussians import shrunk_covariance
from pipeline.shift.kernels import Place
from pipeline.shift.ridge_test import auc_columns, cross_validated


@dataclass(frozen=True, kw_only=True)
class Eraser:
    """The map x -> x - d (w'(x - m)) / (w'd), with d the difference of the domain means."""

    centre: NDArray[np.float64]
    """Shape (d,): m."""
    direction: NDArray[np.float64]
    """Shape (d,): d / (w'd), or 0 when the means coincide already."""
    weight: NDArray[np.float64]
    """Shape (d,): w = Sigma^-1 d."""

    def __call__(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the rows, shape (n, d), with the domain's mean difference removed."""
        along = (rows - self.centre) @ self.weight
        return np.asarray(rows - np.outer(along, self.direction), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How much of the task lies along the domain."""

    cosine: float
    """In [0, 1], after whitening: 1 if the domains differ along the task's own direction."""
    task_auc: float
    """Out-of-fold AUC of the source's labels, one class against the rest, averaged."""
    task_auc_erased: float
    """The same after erasing the domain."""
    pseudo_labels: bool
    """True if the target's classes are predictions, not labels."""


@dataclass(frozen=True, kw_only=True)
class TwoDomains:
    """Rows of source and target with their classes."""

    features: NDArray[np.floating]
    """Shape (n, d)."""
    target: NDArray[np.bool_]
    """Shape (n,), True for the target."""
    classes: NDArray[np.integer]
    """Shape (n,), 0 to K - 1; of target rows labels, or predictions."""


def class_means(
    features: NDArray[np.floating], weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the weighted mean of the rows for each class, shape (K, d).

    Args:
        features: Shape (n, d).
        weights: Shape (n, K), how much each row counts for each class, >= 0.
    """
    totals = weights.sum(axis=0)
    return np.asarray(weights.T @ features / np.where(totals > 0, totals, 1)[:, None], np.float64)


def fit_eraser(
    pooled: NDArray[np.floating],
    source_mean: NDArray[np.floating],
    target_mean: NDArray[np.floating],
) -> Eraser:
    """Return the map that makes two domain means equal and changes rows least.

    Any positive definite Sigma erases exactly; the shrunk covariance is used because with
    fewer rows than features the plain one has no inverse.

    Args:
        pooled: Shape (n, d), rows of both domains.
        source_mean: Shape (d,).
        target_mean: Shape (d,); need not be the plain mean (see F10 in ``fixes``).
    """
    difference = np.asarray(target_mean - source_mean, dtype=np.float64)
    covariance = shrunk_covariance(pooled)
    weight = np.linalg.solve(covariance, difference)
    length = float(weight @ difference)
    return Eraser(
        centre=np.asarray(source_mean + target_mean, dtype=np.float64) / 2,
        direction=difference / length if length > 0 else np.zeros_like(difference),
        weight=np.asarray(weight, dtype=np.float64),
    )


def alignment(
    domains: TwoDomains, source_folds: NDArray[np.intp], where: Place, *, pseudo_labels: bool
) -> Alignment:
    """Compare the direction between the domains with the directions between the classes.

    Both are whitened by the shrunk covariance within (domain, class); the domain's is
    the mean over classes of its difference inside the class, so a different class mix
    alone does not count.

    Args:
        domains: Rows of both domains; every class occurs in the source.
        source_folds: Shape (n_source,), folds by patient for the out-of-fold AUC.
        where: Where the products run.
        pseudo_labels: Recorded: the target's classes are predictions.

    Returns:
        The cosine and what erasing the domain costs the task *in the source*.
    """
    source, target = (_part(domains, chosen) for chosen in (~domains.target, domains.target))
    one_hot_s, one_hot_t = (_one_hot(part, domains.classes) for part in (source, target))
    means_s = class_means(source.features, one_hot_s)
    means_t = class_means(target.features, one_hot_t)
    shared = one_hot_t.any(axis=0)
    within = np.vstack(
        [source.features - one_hot_s @ means_s, target.features - one_hot_t @ means_t]
    )
    root = np.linalg.cholesky(shrunk_covariance(within))
    domain_way = np.linalg.solve(root, (means_t - means_s)[shared].mean(axis=0))
    task_ways = np.linalg.qr(np.linalg.solve(root, (means_s[1:] - means_s[0]).T))[0]
    length = np.linalg.norm(domain_way)
    labels = one_hot_s.astype(np.bool_)
    eraser = fit_eraser(
        domains.features, source.features.mean(axis=0), target.features.mean(axis=0)
    )
    before, after = (
        auc_columns(cross_validated(rows, labels, source_folds, where), labels).mean()
        for rows in (source.features, eraser(source.features))
    )
    return Alignment(
        cosine=float(np.linalg.norm(task_ways.T @ domain_way) / length) if length > 0 else 0.0,
        task_auc=float(before),
        task_auc_erased=float(after),
        pseudo_labels=pseudo_labels,
    )


def _part(domains: TwoDomains, rows: NDArray[np.bool_]) -> TwoDomains:
    return TwoDomains(
        features=domains.features[rows],
        target=domains.target[rows],
        classes=domains.classes[rows],
    )


def _one_hot(part: TwoDomains, classes: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.asarray(np.eye(int(classes.max()) + 1)[part.classes], dtype=np.float64)
