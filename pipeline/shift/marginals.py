"""Compare two samples one number at a time: scores, classes, features, projections.

The Kolmogorov-Smirnov distance and the 1-d Wasserstein distance are both read off the
gap between two distribution functions, so one sort serves every relabelling.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DIRECTIONS = 256


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What each row adds to the gap between the distribution functions, by labelling.

    A target row adds n_s, a source row takes n_t: integers, so that equal distances are
    equal exactly and permutation ties are counted as such.
    """

    rows: NDArray[np.signedinteger]
    """Shape (n, B): n_s for a target row, -n_t for a source row."""
    unit: NDArray[np.float64]
    """Shape (B,): n_s n_t, what a gap of 1 is in these integers."""


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """n_s n_t (F_target - F_source) at each distinct value, for every labelling."""

    counts: NDArray[np.signedinteger]
    """Shape (u, B), the last row is 0."""
    unit: NDArray[np.float64]
    """Shape (B,): n_s n_t."""
    widths: NDArray[np.float64]
    """Shape (u - 1,): distance from each distinct value to the next."""


@dataclass(frozen=True, kw_only=True)
class FeatureDraws:
    """Per-feature differences."""

    distance: NDArray[np.float64]
    """Shape (d, B): Kolmogorov-Smirnov distance of each feature, in [0, 1]."""
    cohen_d: NDArray[np.float64]
    """Shape (d,): observed difference of means, target - source, in pooled sd."""


def steps_of(labels: NDArray[np.bool_]) -> Steps:
    """Prepare the labellings for :func:`cdf_gaps`; one preparation serves all numbers.

    Args:
        labels: Shape (n, B), True for the target.
    """
    n = len(labels)
    # The largest partial sum is n_s n_t <= n^2 / 4.
    integer = np.int32 if n**2 / 4 < np.iinfo(np.int32).max else np.int64
    n_target = labels.sum(axis=0)
    return Steps(
        rows=labels * integer(n) - n_target.astype(integer),
        unit=(n_target * (n - n_target)).astype(np.float64),
    )


def cdf_gaps(values: NDArray[np.floating], steps: Steps) -> Gaps:
    """Return the gap between the domains' distribution functions of one number.

    Args:
        values: Shape (n,).
        steps: The labellings, from :func:`steps_of`.

    Returns:
        The gaps at the u distinct values, ties taken together.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    counts = steps.rows[order]
    np.cumsum(counts, axis=0, out=counts)
    # Only the last row of a run of equal values is a point of the distribution function:
    # features after a ReLU are tied at 0 by the hundred.
    ends = np.flatnonzero(np.append(ordered[1:] > ordered[:-1], [True]))
    return Gaps(
        counts=counts if len(ends) == len(values) else counts[ends],
        unit=steps.unit,
        widths=np.diff(ordered[ends]).astype(np.float64),
    )


def ks_distance(gaps: Gaps) -> NDArray[np.float64]:
    """Return the Kolmogorov-Smirnov distance of each column.

    Args:
        gaps: From :func:`cdf_gaps`.

    Returns:
        Shape (B,), in [0, 1].
    """
    return np.asarray(np.maximum(gaps.counts.max(axis=0), -gaps.counts.min(axis=0)) / gaps.unit)


def wasserstein(gaps: Gaps) -> NDArray[np.float64]:
    """Return the exact 1-d Wasserstein distance, the area between the two functions.

    Args:
        gaps: From :func:`cdf_gaps`.

    Returns:
        Shape (B,), in units of the values.
    """
    return np.asarray(gaps.widths @ np.abs(gaps.counts[:-1]) / gaps.unit, dtype=np.float64)


def ks_of_scores(
    probabilities: NDArray[np.floating], labels: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the largest KS distance over the classes' probabilities (BBSD, Lipton 2018).

    The permutation of the maximum replaces the Bonferroni correction of Rabanser 2019.

    Args:
        probabilities: Shape (n, K), rows sum to 1.
        labels: Shape (n, B), True for the target.

    Returns:
        Shape (B,), in [0, 1].
    """
    steps = steps_of(labels)
    columns = [ks_distance(cdf_gaps(column, steps)) for column in probabilities.T]
    return np.asarray(np.max(columns, axis=0))


def chi2_of_classes(
    probabilities: NDArray[np.floating], labels: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return Pearson's chi-squared of predicted class against domain (BBSD-hard).

    Its p-value comes from the relabellings, so small cells need no special case.

    Args:
        probabilities: Shape (n, K).
        labels: Shape (n, B), True for the target.

    Returns:
        Shape (B,), >= 0.
    """
    called = np.unique(probabilities.argmax(axis=1), return_inverse=True)[1]
    one_hot = np.eye(called.max() + 1)[called]
    in_target = one_hot.T @ labels
    expected = one_hot.mean(axis=0)[:, None] * labels.sum(axis=0)
    deviation = (in_target - expected) ** 2
    in_source = one_hot.sum(axis=0)[:, None] - expected
    return np.asarray((deviation / expected + deviation / in_source).sum(axis=0))


def sliced_wasserstein(
    rows: NDArray[np.float64], labels: NDArray[np.bool_], seed: int
) -> NDArray[np.float64]:
    """Return 1-d Wasserstein distances along random directions.

    Tests on 1-d projections are as sensitive as their full counterparts and cheaper
    (Grossi 2024, arXiv 2409.16336).

    Args:
        rows: Shape (n, d).
        labels: Shape (n, B), True for the target.
        seed: Seed of the 256 directions.

    Returns:
        Shape (256, B), >= 0.
    """
    directions = np.random.default_rng([seed, 2]).normal(size=(rows.shape[1], _DIRECTIONS))
    projections = rows @ (directions / np.linalg.norm(directions, axis=0))
    steps = steps_of(labels)
    return np.stack([wasserstein(cdf_gaps(column, steps)) for column in projections.T])


def feature_draws(features: NDArray[np.floating], labels: NDArray[np.bool_]) -> FeatureDraws:
    """Return the KS distance of every feature for every labelling, and Cohen's d.

    Args:
        features: Shape (n, d).
        labels: Shape (n, B), True for the target, column 0 observed.

    Returns:
        Both measures; Cohen's d is 0 for a feature that does not vary.
    """
    target, source = features[labels[:, 0]], features[~labels[:, 0]]
    variance = (target.var(axis=0) * len(target) + source.var(axis=0) * len(source)) / len(features)
    spread = np.sqrt(np.where(variance > 0, variance, np.inf))
    steps = steps_of(labels)
    return FeatureDraws(
        distance=np.stack([ks_distance(cdf_gaps(column, steps)) for column in features.T]),
        cohen_d=np.asarray((target.mean(axis=0) - source.mean(axis=0)) / spread, np.float64),
    )


def westfall_young(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust each feature's p-value for all others by the maximum over features.

    Args:
        distances: Shape (d, B + 1), column 0 observed.

    Returns:
        Shape (d,): (1 + #{max_j D_jb >= D_j0}) / (B + 1) (Westfall and Young 1993).
    """
    largest = np.sort(distances[:, 1:].max(axis=0))
    as_large = largest.size - np.searchsorted(largest, distances[:, 0], side="left")
    return np.asarray((1 + as_large) / distances.shape[1], dtype=np.float64)
