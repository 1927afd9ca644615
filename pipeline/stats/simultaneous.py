"""Intervals of several shares that hold at once, so that one may be picked after looking.

In each bootstrap draw of whole patients the largest studentised deviation over the groups
is kept (max-T; Westfall and Young 1993), and its 95 % quantile, ``c``, takes the place of
1.96. Shares near 1 have lopsided errors. The interval of a rate is Wilson's with ``c``
spreads and as many images as would, being independent, spread as much as the draws do; with
an image a patient and ``c = 1.96`` it is Wilson's own. That of an area under a ROC curve is
taken on the scale of its log odds. A difference is put together from two such intervals
(MOVER; Newcombe 1998, Zou and Donner 2008) with the correlation of the draws, since a
patient can have images on both sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.stats.intervals import LEVEL, Z, score_interval

_ALIKE = 1e-12  # a spread that is nothing but rounding


@dataclass(frozen=True, kw_only=True)
class Share:
    """A number in [0, 1] that is made of images: a rate, or an area under a ROC curve.

    Attributes:
        draws: Shape (B,), the same draws of patients for all that are compared; NaN where
            a draw does not define it.
        bases: Patient ids of the images that it rests on: one array for a rate, one for
            each class for an area.
    """

    estimate: float
    draws: NDArray[np.float64]
    bases: tuple[NDArray[Any], ...]

    @property
    def n(self) -> int:
        """Images that it is made of."""
        return sum(map(len, self.bases))

    def interval(self, z: float = Z) -> tuple[float, float]:
        """Where it may lie, ``z`` spreads to either side."""
        spread, odd = float(_spread(self.draws[None])[0]), self.estimate * (1 - self.estimate)
        if len(self.bases) == 1 or not spread or not odd:
            return score_interval(self.estimate, self._effective(spread), z)
        centre, half = logit(self.estimate), z * spread / odd
        return float(expit(centre - half)), float(expit(centre + half))

    def _effective(self, spread: float) -> float:
        """Independent images that would spread as much as the draws do.

        No fewer than if the images of a patient were all alike (Kish 1965), which is also
        what is taken where every image is right; no more than there are.
        """
        sizes = [np.unique(base, return_counts=True)[1] for base in self.bases]
        if len(sizes) == 1 and (sizes[0] == 1).all():
            return float(len(sizes[0]))
        least = min(float(size.sum() ** 2 / (size**2).sum()) for size in sizes)
        if not spread:
            return least
        odd = self.estimate * (1 - self.estimate)
        return float(np.clip(odd / spread**2, least, min(size.sum() for size in sizes)))


def critical_value(
    estimates: NDArray[np.float64],
    draws: NDArray[np.float64],
    rng: np.random.Generator,
    level: float = LEVEL,
) -> float:
    """Half width, in spreads, at which the intervals of all groups hold at once.

    A group whose draws are all alike (every image right) says nothing of its spread; it
    counts as a normal error that is independent of the others, which is never too little.

    Args:
        estimates: Shape (G,).
        draws: Shape (G, B), of the same patients; NaN where undefined.
        rng: Source of those normal errors.
        level: Nominal coverage of all together.

    Returns:
        Not below that of a single interval.
    """
    spread = _spread(draws)[:, None]
    moved = draws - estimates[:, None]
    t = np.divide(moved, spread, out=np.zeros_like(moved), where=spread > 0)
    t = np.where(spread > 0, t, rng.standard_normal(t.shape))
    largest = np.abs(np.nan_to_num(t)).max(axis=0)
    return max(float(norm.isf((1 - level) / 2)), float(np.quantile(largest, level)))


def intervals_at_once(
    shares: Sequence[Share], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """95 % intervals of shares, which hold together; that of any one may be picked."""
    c = _critical(shares, lambda one: one.estimate, lambda one: one.draws, rng)
    return [one.interval(c) for one in shares]


def differences_at_once(
    pairs: Sequence[tuple[Share, Share]], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """95 % intervals of first minus second, which hold together for all pairs."""
    c = _critical(
        pairs,
        lambda pair: pair[0].estimate - pair[1].estimate,
        lambda pair: pair[0].draws - pair[1].draws,
        rng,
    )
    return [difference_interval(first, second, c) for first, second in pairs]


def difference_interval(first: Share, second: Share, z: float = Z) -> tuple[float, float]:
    """MOVER: each end is as far as two estimates may move in opposite directions."""
    (l1, u1), (l2, u2) = first.interval(z), second.interval(z)
    r, gap = _correlation(first.draws, second.draws), first.estimate - second.estimate
    low = gap - _length(first.estimate - l1, u2 - second.estimate, r)
    high = gap + _length(u1 - first.estimate, second.estimate - l2, r)
    return max(-1.0, low), min(1.0, high)


def _critical(
    items: Sequence[Any],
    estimate: Callable[[Any], float],
    draws: Callable[[Any], NDArray[np.float64]],
    rng: np.random.Generator,
) -> float:
    if not items:
        return Z
    return critical_value(
        np.array([estimate(i) for i in items]), np.stack([*map(draws, items)]), rng
    )


def _length(a: float, b: float, r: float) -> float:
    return float(np.sqrt(max(0.0, a * a + b * b - 2 * r * a * b)))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    if not (_spread(a[None])[0] and _spread(b[None])[0]):
        return 0.0
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _spread(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the draws that define the statistic; 0 where they are alike."""
    spread: NDArray[np.float64] = np.nanstd(draws, axis=1)
    return np.where(spread > _ALIKE, spread, 0.0)
