"""Intervals: for plain rates in closed form, for the rest by resampling patients.

Images of one patient are not independent, so whole patients are drawn. A draw is a
row of weights (how often each image is in it), made once and shared by all heads and
metrics, which keeps comparisons paired.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.data.patients import DRAWS, Weights, draw_patients

LEVEL = 0.95
#: Patients below which an interval by patient is called rough.
ROUGH_BELOW = 100
#: Spreads to either side of an estimate, at that level.
Z = float(norm.isf((1 - LEVEL) / 2))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        low: Lower bound; NaN where no interval can be given.
        high: Upper bound.
        images: How many it rests on.
        patients: How many they are of.
        method: How the interval was made.
        level: Its nominal coverage.
    """

    estimate: float
    low: float
    high: float
    images: int
    patients: int
    method: str
    level: float = LEVEL


def wilson(hits: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a rate of ``n`` independent trials (Wilson 1927).

    Raises:
        ValueError: ``hits`` is not in 0 to ``n``, or ``n`` is 0.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} hits of {n}: allowed are 0 to n hits of at least 1 trial")
    return score_interval(hits / n, n, norm.isf((1 - level) / 2))


def score_interval(rate: float, n: float, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a rate, or of another share whose variance is like a rate's.

    Args:
        rate: In [0, 1].
        n: Effective number of trials, above 0; need not be whole.
        z: Half its width in spreads.
    """
    centre = (n * rate + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * rate * (1 - rate) + z * z / 4)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def unseen(patients: int) -> float:
    """Highest rate that may well be of which none was seen: Wilson's bound of 0 hits."""
    return wilson(0, patients)[1]


def lengthened(
    estimate: float, low: float, high: float, *, below: float = 0.0, above: float = 0.0
) -> tuple[float, float]:
    """An interval with what resampling cannot show, such as an error that nobody made yet.

    Each end moves out as independent errors add, the square of its distance from the
    estimate and the square of what is missing (MOVER; Zou and Donner 2008).

    Args:
        estimate: A difference of rates.
        low: Lower end, from resampling.
        high: Upper end.
        below: How far the estimate may be too high by what was not seen.
        above: How far it may be too low.

    Returns:
        (low, high), not beyond -1 and 1.
    """
    return (
        max(-1.0, estimate - float(np.hypot(estimate - low, below))) if below else low,
        min(1.0, estimate + float(np.hypot(high - estimate, above))) if above else high,
    )


def newcombe_paired(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired rates (Newcombe 1998, method 10).

    Args:
        both: Images that both heads have right.
        first: Only the first.
        second: Only the second.
        neither: Neither of them.

    Returns:
        Bounds of rate(first) - rate(second).
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (l1, u1), (l2, u2) = wilson(both + first, n), wilson(both + second, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross: float = both * neither - first * second
    if cross > 0:  # the continuity correction of the phi coefficient
        cross = max(cross - n / 2, 0)
    phi = cross / np.sqrt(margins) if margins else 0.0
    d = p1 - p2
    low = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    high = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return float(d - np.sqrt(low)), float(d + np.sqrt(high))


def patient_draws(
    group: Sequence[object] | NDArray[np.generic], rng: np.random.Generator, *, draws: int = DRAWS
) -> Weights:
    """Old form of :func:`pipeline.data.patients.draw_patients`: the weights of all draws."""
    return draw_patients(group, rng, draws=draws).weights()


def percentile_interval(
    values: NDArray[np.float64], *, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bounds of bootstrap values; undefined draws (NaN) are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# Intervals of several shares that hold at once, so that one may be picked after looking.


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
