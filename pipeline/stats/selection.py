"""The honest value of "the best of M": the choice itself is resampled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.stats.intervals import patient_draws, percentile_interval


@dataclass(frozen=True, kw_only=True)
class HonestBest:
    """What the best of several heads is worth on new patients.

    Attributes:
        apparent: Its mean score on the rows that chose it: too good.
        honest: Mean score out of bag of whatever is best in bag (BBC-CV).
        low: Lower bound, 95 % percentile.
        high: Upper bound.
        chosen: Column of the apparent best.
    """

    apparent: float
    honest: float
    low: float
    high: float
    chosen: int

    @property
    def optimism(self) -> float:
        """How much the apparent value promises too much."""
        return self.apparent - self.honest


def honest_best(
    score: NDArray[np.floating],
    group: NDArray[np.generic],
    rng: np.random.Generator,
    *,
    draws: int = 500,
) -> HonestBest:
    """Bootstrap bias corrected cross-validation (Tsamardinos et al. 2018).

    Args:
        score: Out-of-fold scores, shape ``(n, M)``: of each image under each head,
            larger is better, for example 1 where it is right.
        group: Patient of each image.
        rng: Source of randomness.
        draws: Bootstrap draws of patients.

    Raises:
        ValueError: Fewer than two patients, so nothing is ever out of bag.
    """
    if len(np.unique(group)) < 2:  # noqa: PLR2004 - in bag and out of bag
        raise ValueError("the honest best needs images of two patients or more")
    weights = patient_draws(group, rng, draws=draws)
    out = (weights == 0).astype(np.float64)
    usable = out.sum(axis=1) > 0
    weights, out = weights[usable], out[usable]
    best = (weights @ score).argmax(axis=1)
    outside = (out @ score)[np.arange(len(best)), best] / out.sum(axis=1)
    low, high = percentile_interval(outside)
    mean = score.mean(axis=0)
    chosen = int(mean.argmax())
    return HonestBest(
        apparent=float(mean[chosen]),
        honest=float(outside.mean()),
        low=low,
        high=high,
        chosen=chosen,
    )
