"""Compare two samples one number at a time: scores, classes, features, projections.

The Kolmogorov-Smirnov distance and the 1-d Wasserstein distance are both read off the
gap between two distribution functions, so one sort serves every relabelling.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
