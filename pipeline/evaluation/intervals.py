"""Intervals of shares: of one, of a difference, and of several at once.

A share is a number in [0, 1] that is made of images: an accuracy, an area under a curve, a
mean of rates. Its interval is the one of a rate of independent trials, with as many trials as
the patients are worth. The jackknife by patient says how much each of them moves the share,
which gives its variance and, of two shares, their correlation. No interval has a width of
zero: where no patient moves the share, because no error was seen, the patients themselves
are the trials.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import scipy  # its parts are imported when they are called: to draw takes none
from numpy.typing import NDArray

from pipeline.data.patients import WeightedStatistic, leave_out_patients
from pipeline.evaluation.metrics import on_all_rows, weighted_mean

LEVEL = 0.95
#: Patients below which an interval by patient is called rough.
ROUGH_BELOW = 100
#: Method of an interval that cannot be given.
TOO_FEW = "too few patients"
#: Standard errors to either side of an estimate, at that level.
Z = 1.959963984540054  # -ndtri((1 - LEVEL) / 2)
Patients = tuple[NDArray[Any], ...]
_Key = TypeVar("_Key", bound=Hashable)
_ROUNDING = 1e-12
#: How finely a p is searched, in standard errors.
_Z_STEP = 1e-6


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        low: Lower bound; NaN where no interval can be given.
        high: Upper bound.
        images: How many it rests on.
        patients: How many they are of.
        method: How the interval was made; ``TOO_FEW`` where one patient, or one of a class,
            cannot give any; ``none`` where all draws are equal.
    """

    estimate: float
    low: float
    high: float
    images: int
    patients: int
    method: str

    @classmethod
    def of(
        cls, estimate: float, ends: tuple[float, float], group: NDArray[Any], method: str
    ) -> "Interval":
        """Of images of these patients; without bounds where they are NaN."""
        low, high = ends
        patients = np.unique(group).size
        return cls(
            estimate=estimate,
            low=low,
            high=high,
            images=len(group),
            patients=patients,
            method=method,
        )

    def record(self) -> dict[str, Any]:
        """One flat row."""
        return asdict(self)

    def ends(self) -> dict[str, float]:
        """The numbers alone, for a record that says once how its intervals are made."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def wilson(hits: float, n: float, *, z: float = Z) -> tuple[float, float]:
    """Score interval of a rate of ``n`` independent trials (Wilson 1927).

    Args:
        hits: 0 to ``n``; neither need be whole, if ``n`` is an effective number.
        n: Above 0.
        z: Half its width in standard errors.
    """
    rate, centre = hits / n, (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * rate * (1 - rate) + z * z / 4)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def clopper_pearson(hits: float, n: float, *, z: float = Z) -> tuple[float, float]:
    """Interval of a rate that holds at least as often as it says (Clopper and Pearson 1934).

    Args:
        hits: 0 to ``n``, see :func:`wilson`.
        n: Above 0.
        z: Half the width, in standard errors, of an interval of as high a level.
    """
    tail = float(scipy.special.ndtr(-z))
    low = float(scipy.special.betaincinv(hits, n - hits + 1, tail)) if hits > _ROUNDING else 0.0
    high = (
        float(scipy.special.betaincinv(hits + 1, n - hits, 1 - tail))
        if n - hits > _ROUNDING
        else 1.0
    )
    return low, high


@dataclass(frozen=True, kw_only=True)
class Share:
    """A number in [0, 1] that is made of images.

    Attributes:
        moves: Shape (P,): by how much it is larger than without each patient; the patients
            are the same, in the same order, for all shares that are compared. NaN where it
            is undefined without one.
        bases: Patient ids of the images that it rests on: one array for a rate, one for
            each class for what is built of classes, such as an area under the ROC curve.
        reported: The rising function of it that its own interval is of.
    """

    estimate: float
    moves: NDArray[np.float64]
    bases: Patients
    reported: Callable[[float], float] = float

    @cached_property
    def group(self) -> NDArray[Any]:
        """Patient of each image that it is made of."""
        return np.concatenate(self.bases)

    @cached_property
    def patients(self) -> int:
        """Patients of these images."""
        return len(np.unique(self.group))

    @cached_property
    def variance(self) -> float:
        """The jackknife's."""
        left_out = min(len(self.moves), self.patients)
        return float((left_out - 1) / left_out * (self.moves**2).sum())

    @cached_property
    def freedom(self) -> int:
        """Degrees of freedom of that variance."""
        return self.patients - len(self.bases)

    @cached_property
    def trials(self) -> float:
        """Independent images that would make it vary as much.

        The variance is the jackknife's. Where c patients carry it, it has c - 1 degrees of
        freedom, and counts so often against the largest one that it could be, that of
        patients whose images are all alike (Kish 1965), which counts once. Carriers are
        counted by the participation ratio of their squared moves. Where no patient moves the
        estimate, the patients are the trials.
        """
        alike = len(self.bases) ** 2 / sum(1 / _kish(base) for base in self.bases)
        largest, square = self.estimate * (1 - self.estimate) / alike, self.moves**2
        if largest <= _ROUNDING or square.sum() <= _ROUNDING**2:
            return alike
        variance = self.variance
        if len(self.bases) == 1:  # a rate: between images all alike and all independent
            variance = min(max(variance, largest * alike / len(self.group)), largest)
        carriers = square.sum() ** 2 / (square**2).sum()
        mixed = ((carriers - 1) * variance + largest) / carriers
        return float(self.estimate * (1 - self.estimate) / mixed)

    def bounds(self, z: float = Z) -> tuple[float, float]:
        """Where it may lie, ``z`` standard errors to either side; NaN for one patient's images.

        It is Clopper and Pearson's interval with ``trials`` (Korn and Graubard 1998).
        """
        if not self._is_defined():
            return float("nan"), float("nan")
        hits = self.estimate * self.trials
        low, high = clopper_pearson(hits, self.trials, z=z)
        return self.reported(low), self.reported(high)

    def interval(self) -> Interval:
        """The share with its 95 % interval."""
        method = by_patient("Clopper-Pearson", self.group) if self._is_defined() else TOO_FEW
        return Interval.of(self.reported(self.estimate), self.bounds(), self.group, method)

    def _is_defined(self) -> bool:
        return bool(np.isfinite(self.moves).all()) and self.patients > 1


def shares_of(
    group: NDArray[Any], parts: Mapping[_Key, tuple[WeightedStatistic, Patients]]
) -> dict[_Key, Share]:
    """Statistics in [0, 1] as shares, every patient left out once for all of them.

    Args:
        group: Patient of each row.
        parts: Statistics of the weights of these rows, each with its :class:`Share`'s ``bases``.
    """
    if not parts:
        return {}
    left_out = leave_out_patients(group).apply(
        lambda weights: np.stack([statistic(weights) for statistic, _ in parts.values()])
    )
    shares = {}
    for (key, (statistic, bases)), values in zip(parts.items(), left_out, strict=True):
        estimate = on_all_rows(statistic, len(group))
        shares[key] = Share(estimate=estimate, moves=estimate - values, bases=bases)
    return shares


def share_of(statistic: WeightedStatistic, group: NDArray[Any], *bases: NDArray[Any]) -> Share:
    """One of :func:`shares_of`; it rests on all rows where no bases are given."""
    return shares_of(group, {None: (statistic, bases or (group,))})[None]


def rate_interval(hit: NDArray[np.bool_], group: NDArray[Any]) -> Interval:
    """The rate of ``hit``, shape ``(n,)``, of images of these patients, with its interval."""
    return share_of(weighted_mean(hit), group).interval()


def by_patient(method: str, group: NDArray[Any]) -> str:
    """The name of a method, which says so where images of a patient are several."""
    return f"{method} by patient" if len(group) > np.unique(group).size else method


def mean_interval(parts: Sequence[Share], group: NDArray[Any]) -> Interval:
    """A mean of shares of the same patients, such as the rates of the classes, with its interval.

    Each end is as far as all may move that way, given how much they move together when a
    patient is left out (MOVER; Zou and Donner 2008).

    Args:
        parts: The shares; an image may be in several.
        group: Patients of the images that they rest on together.
    """
    estimates = np.array([part.reported(part.estimate) for part in parts])
    ends = np.array([part.bounds() for part in parts]).T
    moves = np.stack([part.moves for part in parts])
    length = np.sqrt((moves**2).sum(axis=1))[:, None]
    unit = np.divide(moves, length, out=np.zeros_like(moves), where=length > _ROUNDING)
    together = unit @ unit.T
    np.fill_diagonal(together, 1.0)
    gaps = np.abs(ends - estimates)
    below, above = (
        float(np.sqrt(np.clip(gap @ together @ gap, 0, None))) / len(parts) for gap in gaps
    )
    mean = float(estimates.mean())
    low, high = (float(end) for end in np.clip([mean - below, mean + above], 0, 1))
    method = by_patient("MOVER", group) if np.isfinite(gaps).all() else TOO_FEW
    return Interval.of(mean, (low, high), group, method)


def difference_bounds(
    first: Share, second: Share, z: float = Z, *, paired: bool = True
) -> tuple[float, float]:
    """Where first minus second may lie: MOVER (Zou and Donner 2008).

    ``z`` is half the width in standard errors; ``paired`` whether both have the same patients:
    those of two domains are independent.
    """
    # Wilson's ends, as Newcombe 1998 takes them: shorter than Clopper and Pearson's, and enough
    # with the quantile of t, since a difference is not kept from 0 and 1 as a share is.
    z *= _student(min(first.freedom, second.freedom))
    (l1, u1), (l2, u2) = (wilson(s.estimate * s.trials, s.trials, z=z) for s in (first, second))
    r = _correlation(first.moves, second.moves) if paired else 0.0
    gap = first.estimate - second.estimate
    low = gap - _length(first.estimate - l1, u2 - second.estimate, r)
    high = gap + _length(u1 - first.estimate, second.estimate - l2, r)
    # Where they differ on no patient, they may yet differ on others.
    if paired and np.abs(first.moves - second.moves).max() <= _ROUNDING:
        room = wilson(0, first.patients, z=z)[1]
        low, high = min(low, gap - room), max(high, gap + room)
    return max(-1.0, low), min(1.0, high)


def difference_p(first: Share, second: Share) -> float:
    """Two-sided p of "two sets of patients have the same share".

    It is the level at which :func:`difference_bounds` just reach 0: a variance of either alone
    would take a share without an error for a certain one.
    """
    reached, beyond = 0.0, 10.0
    while beyond - reached > _Z_STEP:
        z = (reached + beyond) / 2
        low, high = difference_bounds(first, second, z, paired=False)
        reached, beyond = (z, beyond) if low > 0 or high < 0 else (reached, z)
    return float(2 * scipy.special.ndtr(-reached))


# Simultaneous intervals of several shares: that of any one may be picked after a look.


def critical_value(
    moves: NDArray[np.float64], rng: np.random.Generator, *, draws: int = 2000
) -> float:
    """Half width, in standard errors, at which the 95 % intervals of all groups hold at once.

    The largest of the groups' standardised errors is drawn with normal multipliers of the
    patients (Chernozhukov, Chetverikov and Kato 2013), and not below that of one interval. A
    group that no patient moves (every image right) says nothing of its spread; it counts as a
    normal error that is independent of the others, which is never too little.

    Args:
        moves: Shape (G, P), of the same patients.
        rng: Source of the multipliers.
        draws: Number of draws.
    """
    length = np.sqrt((moves**2).sum(axis=1))[:, None]
    errors = moves @ rng.standard_normal((moves.shape[1], draws))
    alone = rng.standard_normal(errors.shape)
    t = np.divide(errors, length, out=alone, where=length > _ROUNDING)
    return max(Z, float(np.quantile(np.abs(t).max(axis=0), LEVEL)))


def _kish(base: NDArray[Any]) -> float:
    """Patients, if all images of a patient are alike and some have more of them (Kish 1965)."""
    size = np.unique(base, return_counts=True)[1]
    return float(size.sum() ** 2 / (size**2).sum())


def _student(freedom: int) -> float:
    """How much longer an interval is whose variance is estimated from few patients."""
    return float(-scipy.special.stdtrit(max(1, freedom), (1 - LEVEL) / 2) / Z)


def _length(a: float, b: float, r: float) -> float:
    return float(np.sqrt(max(0.0, a * a + b * b - 2 * r * a * b)))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > _ROUNDING**2 else 0.0
