"""Intervals of rates in closed form, and of several shares at once.

Images of one patient are not independent, so patients are the unit: they are drawn with
replacement (:mod:`pipeline.evaluation.bootstrap`), or count as the trials of a rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.data.patients import PatientDraws

LEVEL = 0.95
#: Patients below which an interval by patient is called rough.
ROUGH_BELOW = 100
#: Standard errors to either side of an estimate, at that level.
Z = float(norm.isf((1 - LEVEL) / 2))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        low: Lower bound; NaN where no interval can be given.
        high: Upper bound.
        images: How many it rests on.
        patients: How many they are of.
        method: How the interval was made; ``none`` where there is none.
        level: Its nominal coverage.
    """

    estimate: float
    low: float
    high: float
    images: int
    patients: int
    method: str
    level: float = LEVEL

    def record(self) -> dict[str, Any]:
        """One flat row."""
        return asdict(self)


def wilson(hits: float, n: float, *, z: float = Z) -> tuple[float, float]:
    """Score interval of a rate of ``n`` independent trials (Wilson 1927).

    Args:
        hits: 0 to ``n``; neither need be whole, if ``n`` is an effective number.
        n: Above 0.
        z: Half its width in standard errors.

    Raises:
        ValueError: ``hits`` is not in 0 to ``n``, or ``n`` is 0.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} hits of {n}: allowed are 0 to n hits of at least 1 trial")
    rate, centre = hits / n, (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * rate * (1 - rate) + z * z / 4)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def rate_interval(
    hit: NDArray[np.bool_], group: NDArray[Any], draw: Callable[[], PatientDraws]
) -> Interval:
    """A rate with its interval: Wilson's where each patient has one row, else by patient.

    Where all rows agree the patients are the trials: all draws agree too, which is not
    certainty.

    Args:
        hit: Shape ``(n,)``, n >= 1.
        group: Shape ``(n,)``, patients.
        draw: Draws of these patients, and of others perhaps; called only if they are needed.
    """
    n, patients = len(hit), len(np.unique(group))
    if n == patients:
        (low, high), method = wilson(int(hit.sum()), n), "Wilson"
    elif hit.all() or not hit.any():
        low, high = wilson(patients if hit.any() else 0, patients)
        method = "Wilson, patients as trials"
    else:
        low, high = percentile_interval(draw().of(group).mean(hit))
        method = "patient bootstrap"
    return Interval(
        estimate=float(hit.mean()), low=low, high=high, images=n, patients=patients, method=method
    )


def percentile_interval(
    values: NDArray[np.float64], *, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bounds of bootstrap values; undefined draws (NaN) are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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


# Simultaneous intervals of several shares: that of any one may be picked after a look.


_ROUNDING = 1e-12


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
    def images(self) -> int:
        """Images that it is made of."""
        return sum(map(len, self.bases))

    def interval(self, z: float = Z) -> tuple[float, float]:
        """Where it may lie, ``z`` standard errors to either side."""
        error, odds = float(_standard_error(self.draws)), self.estimate * (1 - self.estimate)
        if len(self.bases) == 1 or not error or not odds:
            n = self._effective(error)
            return wilson(self.estimate * n, n, z=z)
        centre, half = logit(self.estimate), z * error / odds
        return float(expit(centre - half)), float(expit(centre + half))

    def _effective(self, error: float) -> float:
        """Independent images that would vary as much as the draws do.

        No fewer than if the images of a patient were all alike (Kish 1965), which is also
        what is taken where every image is right; no more than there are.
        """
        sizes = [np.unique(base, return_counts=True)[1] for base in self.bases]
        if len(sizes) == 1 and (sizes[0] == 1).all():
            return float(len(sizes[0]))
        least = min(float(size.sum() ** 2 / (size**2).sum()) for size in sizes)
        if not error:
            return least
        variance = self.estimate * (1 - self.estimate)
        return float(np.clip(variance / error**2, least, min(size.sum() for size in sizes)))


def critical_value(
    estimates: NDArray[np.float64],
    draws: NDArray[np.float64],
    rng: np.random.Generator,
    level: float = LEVEL,
) -> float:
    """Half width, in standard errors, at which the intervals of all groups hold at once.

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
    error = _standard_error(draws)[:, None]
    moved = draws - estimates[:, None]
    t = np.divide(moved, error, out=np.zeros_like(moved), where=error > 0)
    t = np.where(error > 0, t, rng.standard_normal(t.shape))
    largest = np.abs(np.nan_to_num(t)).max(axis=0)
    return max(float(norm.isf((1 - level) / 2)), float(np.quantile(largest, level)))


def simultaneous_intervals(
    shares: Sequence[Share], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """95 % intervals of shares, which hold together; that of any one may be picked."""
    if not shares:
        return []
    estimates = np.array([one.estimate for one in shares])
    c = critical_value(estimates, np.stack([one.draws for one in shares]), rng)
    return [one.interval(c) for one in shares]


def simultaneous_differences(
    pairs: Sequence[tuple[Share, Share]], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """95 % intervals of first minus second, which hold together for all pairs."""
    if not pairs:
        return []
    estimates = np.array([one.estimate - other.estimate for one, other in pairs])
    c = critical_value(estimates, np.stack([one.draws - other.draws for one, other in pairs]), rng)
    return [difference_interval(one, other, c) for one, other in pairs]


def difference_interval(first: Share, second: Share, z: float = Z) -> tuple[float, float]:
    """MOVER: each end is as far as two estimates may move in opposite directions."""
    (l1, u1), (l2, u2) = first.interval(z), second.interval(z)
    r, gap = _correlation(first.draws, second.draws), first.estimate - second.estimate
    low = gap - _length(first.estimate - l1, u2 - second.estimate, r)
    high = gap + _length(u1 - first.estimate, second.estimate - l2, r)
    return max(-1.0, low), min(1.0, high)


def _length(a: float, b: float, r: float) -> float:
    return float(np.sqrt(max(0.0, a * a + b * b - 2 * r * a * b)))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    if not (_standard_error(a) and _standard_error(b)):
        return 0.0
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _standard_error(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the draws that define a statistic; 0 where they are alike.

    Args:
        draws: Shape (..., B).
    """
    error: NDArray[np.float64] = np.nanstd(draws, axis=-1)
    return np.where(error > _ROUNDING, error, 0.0)
