"""How the head does in each subgroup, and whether the worst of them is surely worse.

A worst group is picked after looking, so intervals of all groups must hold at once. In
each bootstrap draw of whole patients the largest studentised deviation over the groups is
kept (max-T; Westfall and Young 1993), and its 95 % quantile, ``c``, takes the place of
1.96. Rates near 1 have lopsided errors, so an interval is Wilson's with ``c`` spreads and
as many images as would, being independent, spread as much as the draws do; of a group
with an image a patient and ``c = 1.96`` it is Wilson's own. The difference to the rest is
put together from two such intervals (MOVER; Newcombe 1998, Zou and Donner 2008) with the
correlation of the draws, since a patient can be in a group and in the rest (views).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipeline.groupings import Grouping
from pipeline.metrics import is_right
from pipeline.shift.cohorts import Cohort
from pipeline.shift.gaps import PatientDraws, draw_patients
from pipeline.stats import WEIGHTED, weighted_mean, weighted_ratio
from pipeline.stats.intervals import DRAWS, LEVEL, WeightedStatistic

#: Groups with fewer images or patients get no numbers, and neither does a metric that
#: leans on a class with fewer patients.
FEW_IMAGES, FEW_PATIENTS = 30, 10
_BINARY = 2
_Z = float(norm.isf((1 - LEVEL) / 2))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A group's value minus that of all other images of the domain.

    Attributes:
        low: Lower end of the 95 % interval, simultaneous over the groups.
        high: Upper end.
        below: Whether the whole interval lies below 0.
    """

    estimate: float
    low: float
    high: float
    below: bool


@dataclass(frozen=True, kw_only=True)
class Value:
    """One metric in one group, in [0, 1].

    Attributes:
        low: Lower end of the 95 % interval of this group alone.
        high: Upper end.
        simultaneous: Interval that holds for all groups at once, with 95 %; None where no
            other group has a value.
        rest: Difference to the other images; None where these are too few.
        n: Images that it is made of: all, or those of one class.
    """

    estimate: float
    low: float
    high: float
    n: int
    simultaneous: tuple[float, float] | None = None
    rest: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group.

    Attributes:
        few: Why it has no numbers; None where it has.
        prevalence: Share of the positive class; None for more than two classes.
        metrics: By name.
        missing: Metric to the reason why it has no value.
    """

    name: str
    images: int
    patients: int
    few: str | None = None
    prevalence: Value | None = None
    metrics: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    missing: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class SubgroupTable:
    """One domain, divided by one attribute.

    Attributes:
        domain: ``source`` (scored out of fold) or ``target``.
        threshold: Of sensitivity and specificity, chosen on the source; None for more than
            two classes, which have neither.
        groups: In the order of the attribute.
        worst: Metric to the group with the lowest value; a metric with fewer than two
            groups is missing.
    """

    domain: str
    attribute: str
    threshold: float | None
    groups: tuple[Group, ...]
    worst: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A statistic of row weights, given the rows, and which rows it rests on.

    Attributes:
        statistic: Of chosen rows.
        bases: Shape (n,) each: images without which it is not defined.
    """

    statistic: Callable[[NDArray[Any]], WeightedStatistic]
    bases: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A metric on some rows.

    Attributes:
        draws: Shape (B,); NaN where a draw does not define it.
        effective: Independent images that would spread as much.
    """

    estimate: float
    draws: NDArray[np.float64]
    effective: float
    n: int


def by_attribute(
    cohort: Cohort,
    grouping: Grouping,
    threshold: float | None,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Score every group of a domain whose labels are open.

    Args:
        cohort: Labels, patients and probabilities; out of fold for the source.
        grouping: Of the same images.
        threshold: Chosen on the source, for class 1; None for more than two classes.
        rng: Source of draws.
        draws: Number of draws, B.

    Returns:
        Groups in the order of the grouping, and by metric the name of the worst.
    """
    patients = draw_patients(cohort.groups, rng, draws)
    metrics = _metrics(cohort, threshold)
    members = [grouping.member == k for k in range(len(grouping.names))]
    few = [_too_few(cohort.groups[rows]) for rows in members]
    tables: dict[str, dict[int, Value]] = {}
    missing: list[dict[str, str]] = [{} for _ in members]
    for name, metric in metrics.items():
        found: dict[int, tuple[_Sample, _Sample | None]] = {}
        for k, rows in enumerate(members):
            if few[k] is None:
                why = _too_few_of_a_class(metric, rows, cohort.groups)
                if why is not None:
                    missing[k][name] = why
                    continue
                other = _too_few_of_a_class(metric, ~rows, cohort.groups)
                rest = None if other else _sample(metric, ~rows, cohort.groups, patients)
                found[k] = _sample(metric, rows, cohort.groups, patients), rest
        tables[name] = _together(found, rng)
    worst = {
        name: grouping.names[min(values, key=lambda k, v=values: v[k].estimate)]  # type: ignore[misc]
        for name, values in tables.items()
        if len(values) > 1
    }
    groups = tuple(
        Group(
            name=name,
            images=int(members[k].sum()),
            patients=np.unique(cohort.groups[members[k]]).size,
            few=few[k],
            prevalence=None if few[k] else _prevalence(cohort, members[k], patients),
            metrics={m: values[k] for m, values in tables.items() if k in values},
            missing=missing[k],
        )
        for k, name in enumerate(grouping.names)
    )
    return groups, worst


def score_interval(estimate: float, n: float, z: float = _Z) -> tuple[float, float]:
    """Wilson's interval of a rate, or of another share whose variance is like a rate's.

    Args:
        estimate: In [0, 1].
        n: Effective number of images, above 0; need not be whole.
        z: Half its width in spreads.
    """
    centre = (estimate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(estimate * (1 - estimate) / n + (z / (2 * n)) ** 2)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def critical_value(
    estimates: NDArray[np.float64], draws: NDArray[np.float64], rng: np.random.Generator
) -> float:
    """Half width, in spreads, at which intervals of all groups hold at once with 95 %.

    A group whose draws are all alike (every image right) says nothing of its spread; it
    counts as a normal error that is independent of the others, which is never too little.

    Args:
        estimates: Shape (G,).
        draws: Shape (G, B), of the same patients; NaN where undefined.
        rng: Source of those normal errors.

    Returns:
        Not below 1.96.
    """
    spread = _spread(draws)[:, None]
    moved = draws - estimates[:, None]
    t = np.divide(moved, spread, out=np.zeros_like(moved), where=spread > 0)
    alike = np.broadcast_to(spread == 0, t.shape)
    t = np.where(alike, rng.standard_normal(t.shape), t)
    largest = np.abs(np.nan_to_num(t)).max(axis=0)
    return max(_Z, float(np.quantile(largest, LEVEL)))


def _together(
    found: Mapping[int, tuple[_Sample, _Sample | None]], rng: np.random.Generator
) -> dict[int, Value]:
    """Values of one metric in all groups, with the intervals that hold at once."""
    if not found:
        return {}
    own = [group for group, _ in found.values()]
    c = critical_value(
        np.array([one.estimate for one in own]), np.stack([one.draws for one in own]), rng
    )
    pairs = {k: (a, b) for k, (a, b) in found.items() if b is not None}
    rests = _differences(pairs, rng) if len(found) > 1 else {}
    values = {}
    for k, (one, _) in found.items():
        low, high = score_interval(one.estimate, one.effective)
        values[k] = Value(
            estimate=one.estimate,
            low=low,
            high=high,
            n=one.n,
            simultaneous=score_interval(one.estimate, one.effective, c) if len(found) > 1 else None,
            rest=rests.get(k),
        )
    return values


def _differences(
    pairs: Mapping[int, tuple[_Sample, _Sample]], rng: np.random.Generator
) -> dict[int, Difference]:
    if not pairs:
        return {}
    gaps = np.array([a.estimate - b.estimate for a, b in pairs.values()])
    c = critical_value(gaps, np.stack([a.draws - b.draws for a, b in pairs.values()]), rng)
    return {k: _difference(a, b, c) for k, (a, b) in pairs.items()}


def _difference(one: _Sample, rest: _Sample, z: float) -> Difference:
    """MOVER: each end moves as far as the two estimates may, in opposite directions."""
    l1, u1 = score_interval(one.estimate, one.effective, z)
    l2, u2 = score_interval(rest.estimate, rest.effective, z)
    r = _correlation(one.draws, rest.draws)
    gap = one.estimate - rest.estimate
    low = gap - _length(one.estimate - l1, u2 - rest.estimate, r)
    high = gap + _length(u1 - one.estimate, rest.estimate - l2, r)
    return Difference(estimate=gap, low=max(-1.0, low), high=min(1.0, high), below=high < 0)


def _length(a: float, b: float, r: float) -> float:
    return float(np.sqrt(max(0.0, a * a + b * b - 2 * r * a * b)))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any() or not (np.ptp(a[known]) and np.ptp(b[known])):
        return 0.0
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _metrics(cohort: Cohort, threshold: float | None) -> dict[str, _Metric]:
    """Those that the number of classes allows."""
    labels, proba = cohort.classes(), np.asarray(cohort.probabilities, np.float64)
    classes = proba.shape[1]
    right = is_right(labels, proba)
    of_class = {f"class {k}": labels == k for k in range(classes)}
    area = WEIGHTED["auroc"]
    found = {
        "accuracy": _Metric(
            statistic=lambda rows: weighted_mean(right[rows]),
            bases={"all": np.ones(len(labels), np.bool_)},
        ),
        "auroc": _Metric(
            statistic=lambda rows: area(labels[rows].astype(np.int64), proba[rows]), bases=of_class
        ),
    }
    if threshold is None or classes != _BINARY:
        return found
    called = proba[:, 1] >= threshold
    for name, k, hit in (("sensitivity", 1, called), ("specificity", 0, ~called)):
        found[name] = _share(hit, labels == k, f"class {k}")
    return found


def _share(hit: NDArray[np.bool_], of: NDArray[np.bool_], base: str) -> _Metric:
    return _Metric(
        statistic=lambda rows: weighted_ratio((hit & of)[rows], of[rows]), bases={base: of}
    )


def _prevalence(cohort: Cohort, rows: NDArray[np.bool_], patients: PatientDraws) -> Value | None:
    if cohort.probabilities.shape[1] != _BINARY:
        return None
    everyone = np.ones(len(rows), np.bool_)
    share = _share(cohort.classes() == 1, everyone, "all")
    one = _sample(share, rows, cohort.groups, patients)
    low, high = score_interval(one.estimate, one.effective)
    return Value(estimate=one.estimate, low=low, high=high, n=one.n)


def _sample(
    metric: _Metric, rows: NDArray[np.bool_], groups: NDArray[Any], patients: PatientDraws
) -> _Sample:
    statistic, here = metric.statistic(rows), groups[rows]
    estimate = float(statistic(np.ones((1, len(here))))[0])
    draws = patients.apply(statistic, here)
    bases = [groups[rows & base] for base in metric.bases.values()]
    return _Sample(
        estimate=estimate,
        draws=draws,
        effective=_effective(estimate, draws, bases),
        n=sum(map(len, bases)),
    )


def _effective(estimate: float, draws: NDArray[np.float64], bases: list[NDArray[Any]]) -> float:
    """Independent images that would spread as much as the draws do.

    The bounds are what can be: no fewer than if images of a patient were all alike
    (Kish 1965), which is also what is left where all images are right. A rate of images
    that all have their own patient spreads as a binomial, exactly. The variance of an
    area A is at most A (1 - A) over the images of the rarer class (Birnbaum and Klose 1957).
    """
    sizes = [np.unique(base, return_counts=True)[1] for base in bases]
    least = min(size.sum() ** 2 / (size**2).sum() for size in sizes)
    if len(sizes) == 1 and (sizes[0] == 1).all():
        return float(sizes[0].sum())
    spread = float(_spread(draws[None])[0])
    if not spread:
        return float(least)
    most = np.inf if len(sizes) > 1 else sizes[0].sum()
    return float(np.clip(estimate * (1 - estimate) / spread**2, least, most))


def _spread(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the draws that define the statistic; 0 where they are alike."""
    spread: NDArray[np.float64] = np.nanstd(draws, axis=1)
    return np.where(spread > 1e-12, spread, 0.0)  # noqa: PLR2004 - equal but for rounding


def _too_few(groups: NDArray[Any]) -> str | None:
    images, patients = len(groups), np.unique(groups).size
    if images < FEW_IMAGES:
        return f"too few: {images} of {FEW_IMAGES} images"
    if patients < FEW_PATIENTS:
        return f"too few: {patients} of {FEW_PATIENTS} patients"
    return None


def _too_few_of_a_class(
    metric: _Metric, rows: NDArray[np.bool_], groups: NDArray[Any]
) -> str | None:
    for name, base in metric.bases.items():
        patients = np.unique(groups[rows & base]).size
        if patients < FEW_PATIENTS:
            return f"too few: {patients} of {FEW_PATIENTS} patients of {name}"
    return None
