"""Compare two predictors on the same images, patient by patient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A mean difference with its interval and p-value."""

    estimate: float
    """Mean over rows."""
    low: float
    """Lower end of the percentile interval."""
    high: float
    """Upper end."""
    p: float
    """Two-sided sign-flip p-value."""


def paired_difference(
    differences: NDArray[np.floating],
    groups: NDArray[Any],
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> PairedDifference:
    """Return the mean of paired differences; patients are the units of both answers.

    The interval resamples whole patients. The p-value flips the sign of whole patients,
    p = (1 + #{|T_b| >= |T_0|}) / (draws + 1).

    Args:
        differences: Shape (n,), one predictor's score minus the other's, per image.
        groups: Shape (n,), patient ids.
        rng: Source of the draws.
        draws: Bootstrap draws, and as many sign flips.
        confidence: Of the interval, in (0, 1).
    """
    patients = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(patients).astype(np.float64)
    sums = np.bincount(patients, weights=differences)
    counts = rng.multinomial(sizes.size, np.full(sizes.size, 1 / sizes.size), size=draws)
    resampled = (counts @ sums) / (counts @ sizes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    flipped = np.abs(rng.choice([-1.0, 1.0], size=(draws, sums.size)) @ sums)
    # The tolerance counts equal sums as equal, whatever the order they were added in.
    as_large = np.count_nonzero(flipped >= abs(sums.sum()) * (1 - 1e-9) - 1e-12)
    return PairedDifference(
        estimate=float(sums.sum() / sizes.sum()),
        low=float(low),
        high=float(high),
        p=float((1 + as_large) / (draws + 1)),
    )
