"""Intervals of rates: of one rate, of a difference, and of several at once.

A rate is a statistic of images in [0, 1]: an accuracy, an area under a curve, a mean of rates.
Its interval is that of a rate of independent trials; the number of trials is effective. The
jackknife by patient measures how much each patient moves the rate, which gives its variance and
the correlation of two rates. No interval has a width of zero: if no patient moves the rate,
because there was no error, the patients are the trials.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import scipy  # its parts are imported when they are called: drawing needs none of them
from numpy.typing import NDArray

from pipeline.data.patients import WeightedStatistic, leave_out_patients
from pipeline.evaluation.metrics import on_all_rows, weighted_mean

LEVEL = 0.95
#: Patients below which an interval by patient is called rough.
ROUGH_BELOW = 100
#: Method of an estimate for which no interval can be given.
TOO_FEW = "too few patients"
#: Standard errors to either side of an estimate, at that level.
Z = 1.959963984540054  # -ndtri((1 - LEVEL) / 2)
Patients = tuple[NDArray[Any], ...]
_Key = TypeVar("_Key", bound=Hashable)
_ROUNDING = 1e-12
#: Precision of the search for p, in standard errors.
_Z_STEP = 1e-6


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        low: Lower bound; NaN if no interval can be given.
        high: Upper bound.
        images: Number of images that it rests on.
        patients: Number of their patients.
        method: How the interval was made; ``TOO_FEW`` if all images, or those of a class, are of
            one patient; ``none`` if all draws are equal.
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
        """Make an interval for images of these patients; NaN bounds mean there is none."""
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

    def numbers(self) -> dict[str, float]:
        """The numbers without the method, for a record that names it once for all."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def wilson(successes: float, n: float, *, z: float = Z) -> tuple[float, float]:
    """Score interval of a rate of ``n`` independent trials (Wilson 1927).

    Args:
        successes: 0 to ``n``; both may be fractions, since ``n`` may be an effective number.
        n: Number of trials, above 0.
        z: Half the width in standard errors.
    """
    rate, centre = successes / n, (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * rate * (1 - rate) + z * z / 4)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def clopper_pearson(successes: float, n: float, *, z: float = Z) -> tuple[float, float]:
    """Exact interval of a rate, with at least the nominal coverage (Clopper and Pearson 1934).

    Args:
        successes: 0 to ``n``, see :func:`wilson`.
        n: Number of trials, above 0.
        z: Quantile of the normal law that has the level of the interval.
    """
    tail = float(scipy.special.ndtr(-z))
    low = (
        float(scipy.special.betaincinv(successes, n - successes + 1, tail))
        if successes > _ROUNDING
        else 0.0
    )
    high = (
        float(scipy.special.betaincinv(successes + 1, n - successes, 1 - tail))
        if n - successes > _ROUNDING
        else 1.0
    )
    return low, high


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A statistic of images in [0, 1].

    Attributes:
        influence: Shape (P,): how much larger it is than without each patient; rates that are
            compared have the same patients in the same order. NaN if it is undefined without
            a patient.
        strata: Patient ids of the images that it rests on: one array for a mean, one array per
            class for statistics of several classes, such as an area under the ROC curve.
        reported: Increasing function of the rate whose interval is reported.
    """

    estimate: float
    influence: NDArray[np.float64]
    strata: Patients
    reported: Callable[[float], float] = float

    @cached_property
    def group(self) -> NDArray[Any]:
        """Patient of each image that it rests on."""
        return np.concatenate(self.strata)

    @cached_property
    def patients(self) -> int:
        """Patients of these images."""
        return len(np.unique(self.group))

    @cached_property
    def variance(self) -> float:
        """Jackknife variance."""
        left_out = min(len(self.influence), self.patients)
        return float((left_out - 1) / left_out * (self.influence**2).sum())

    @cached_property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of that variance."""
        return self.patients - len(self.strata)

    @cached_property
    def trials(self) -> float:
        """Effective trials: the number of independent images that would give its variance.

        The jackknife variance has c - 1 degrees of freedom if c patients carry it. It is averaged
        with weight c - 1 with the largest possible variance, with weight 1: that of patients
        whose images are all alike (Kish 1965). c is the participation ratio of the squared
        influence. If no patient moves the estimate, the patients are the trials.
        """
        alike = len(self.strata) ** 2 / sum(1 / _effective_size(stratum) for stratum in self.strata)
        largest, square = self.estimate * (1 - self.estimate) / alike, self.influence**2
        if largest <= _ROUNDING or square.sum() <= _ROUNDING**2:
            return alike
        variance = self.variance
        if len(self.strata) == 1:  # a rate: between images all alike and all independent
            variance = min(max(variance, largest * alike / len(self.group)), largest)
        carriers = square.sum() ** 2 / (square**2).sum()
        mixed = ((carriers - 1) * variance + largest) / carriers
        return float(self.estimate * (1 - self.estimate) / mixed)

    def bounds(self, z: float = Z) -> tuple[float, float]:
        """Bounds of the rate, ``z`` standard errors to either side; NaN with one patient.

        It is Clopper and Pearson's interval with ``trials`` (Korn and Graubard 1998).
        """
        if not self._is_defined():
            return float("nan"), float("nan")
        successes = self.estimate * self.trials
        low, high = clopper_pearson(successes, self.trials, z=z)
        return self.reported(low), self.reported(high)

    def interval(self) -> Interval:
        """The rate with its 95 % interval."""
        method = by_patient("Clopper-Pearson", self.group) if self._is_defined() else TOO_FEW
        return Interval.of(self.reported(self.estimate), self.bounds(), self.group, method)

    def _is_defined(self) -> bool:
        return bool(np.isfinite(self.influence).all()) and self.patients > 1


def rates_of(
    group: NDArray[Any], parts: Mapping[_Key, tuple[WeightedStatistic, Patients]]
) -> dict[_Key, Rate]:
    """Statistics in [0, 1] as rates; each patient is left out once for all of them.

    Args:
        group: Patient of each row.
        parts: Statistics of row weights, each with the ``strata`` of its :class:`Rate`.
    """
    if not parts:
        return {}
    left_out = leave_out_patients(group).apply(
        lambda weights: np.stack([statistic(weights) for statistic, _ in parts.values()])
    )
    rates = {}
    for (key, (statistic, strata)), values in zip(parts.items(), left_out, strict=True):
        estimate = on_all_rows(statistic, len(group))
        rates[key] = Rate(estimate=estimate, influence=estimate - values, strata=strata)
    return rates


def rate_of(statistic: WeightedStatistic, group: NDArray[Any], *strata: NDArray[Any]) -> Rate:
    """A single rate, see :func:`rates_of`; without ``strata`` it rests on all rows."""
    return rates_of(group, {None: (statistic, strata or (group,))})[None]


def rate_interval(event: NDArray[np.bool_], group: NDArray[Any]) -> Interval:
    """The rate of ``event``, shape ``(n,)``, in images of these patients, with its interval."""
    return rate_of(weighted_mean(event), group).interval()


def by_patient(method: str, group: NDArray[Any]) -> str:
    """The name of a method, with "by patient" if a patient has several images."""
    return f"{method} by patient" if len(group) > np.unique(group).size else method


def mean_interval(parts: Sequence[Rate], group: NDArray[Any]) -> Interval:
    """A mean of rates of the same patients, such as the rates of the classes, with its interval.

    The bounds combine those of the rates, given their correlation when a patient is left out
    (MOVER; Zou and Donner 2008).

    Args:
        parts: The rates; an image may be in several.
        group: Patients of the images that they rest on together.
    """
    estimates = np.array([part.reported(part.estimate) for part in parts])
    ends = np.array([part.bounds() for part in parts]).T
    influence = np.stack([part.influence for part in parts])
    length = np.sqrt((influence**2).sum(axis=1))[:, None]
    unit = np.divide(influence, length, out=np.zeros_like(influence), where=length > _ROUNDING)
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
    first: Rate, second: Rate, z: float = Z, *, paired: bool = True
) -> tuple[float, float]:
    """Bounds of first minus second: MOVER (Zou and Donner 2008).

    ``z`` is half the width in standard errors. ``paired`` says whether both have the same
    patients; rates of two domains are independent.
    """
    # Wilson's bounds, as in Newcombe 1998: shorter than Clopper and Pearson's, and wide enough with
    # the quantile of t, because a difference is not limited to 0 to 1 as a rate is.
    z *= _t_factor(min(first.degrees_of_freedom, second.degrees_of_freedom))
    (l1, u1), (l2, u2) = (wilson(s.estimate * s.trials, s.trials, z=z) for s in (first, second))
    r = _correlation(first.influence, second.influence) if paired else 0.0
    gap = first.estimate - second.estimate
    low = gap - _spread_of_difference(first.estimate - l1, u2 - second.estimate, r)
    high = gap + _spread_of_difference(u1 - first.estimate, second.estimate - l2, r)
    # If they differ on no patient, they may still differ on other patients.
    if paired and np.abs(first.influence - second.influence).max() <= _ROUNDING:
        room = wilson(0, first.patients, z=z)[1]
        low, high = min(low, gap - room), max(high, gap + room)
    return max(-1.0, low), min(1.0, high)


def difference_p(first: Rate, second: Rate) -> float:
    """Two-sided p of "two sets of patients have the same rate".

    It is the level at which :func:`difference_bounds` just reach 0. (A variance alone would
    treat a rate without any error as certain.)
    """
    reached, beyond = 0.0, 10.0
    while beyond - reached > _Z_STEP:
        z = (reached + beyond) / 2
        low, high = difference_bounds(first, second, z, paired=False)
        reached, beyond = (z, beyond) if low > 0 or high < 0 else (reached, z)
    return float(2 * scipy.special.ndtr(-reached))


# Simultaneous intervals of several rates: any of them may be picked after looking at all.


def critical_value(
    influence: NDArray[np.float64], rng: np.random.Generator, *, draws: int = 2000
) -> float:
    """Half width, in standard errors, at which the 95 % intervals of all groups hold at once.

    The largest standardised error of all groups is drawn with normal multipliers of the patients
    (Chernozhukov, Chetverikov and Kato 2013); the result is at least that of one interval. A
    group that no patient moves (every image is right) shows no spread; it counts as an
    independent normal error, which is never too small.

    Args:
        influence: That of each group, by the same patients, shape (G, P).
        rng: Source of the multipliers.
        draws: Number of draws.
    """
    length = np.sqrt((influence**2).sum(axis=1))[:, None]
    errors = influence @ rng.standard_normal((influence.shape[1], draws))
    alone = rng.standard_normal(errors.shape)
    t = np.divide(errors, length, out=alone, where=length > _ROUNDING)
    return max(Z, float(np.quantile(np.abs(t).max(axis=0), LEVEL)))


def _effective_size(stratum: NDArray[Any]) -> float:
    """Effective number of patients with unequal numbers of equal images (Kish 1965)."""
    size = np.unique(stratum, return_counts=True)[1]
    return float(size.sum() ** 2 / (size**2).sum())


def _t_factor(degrees_of_freedom: int) -> float:
    """Factor by which an interval is longer if its variance comes from few patients."""
    return float(-scipy.special.stdtrit(max(1, degrees_of_freedom), (1 - LEVEL) / 2) / Z)


def _spread_of_difference(a: float, b: float, r: float) -> float:
    return float(np.sqrt(max(0.0, a * a + b * b - 2 * r * a * b)))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > _ROUNDING**2 else 0.0
