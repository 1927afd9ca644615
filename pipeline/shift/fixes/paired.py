"""Compare two predictors on the same images, patient by patient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stats import bootstrap_interval, sign_flip, weighted_mean


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
    interval = bootstrap_interval(
        weighted_mean(differences), groups, rng, draws=draws, level=confidence
    )
    return PairedDifference(
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        p=sign_flip(differences, groups, rng, draws=draws),
    )
