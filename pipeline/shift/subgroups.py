"""What is known of the subgroups of one domain: numbers, their intervals, the worst."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.attributes import UNKNOWN, Grouping
from pipeline.data.patients import DRAWS, PatientDraws, WeightedStatistic, draw_patients
from pipeline.evaluation.intervals import Share, simultaneous_differences, simultaneous_intervals
from pipeline.evaluation.metrics import METRICS, is_right, weighted_ratio
from pipeline.shift.domains import Cohort
from pipeline.shift.operating import Scores, choose_threshold
from pipeline.words import counted

_NOTHING: Mapping[str, Any] = MappingProxyType({})


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
        n: Images that it is made of: all, or those of one class.
        simultaneous: Interval that holds for all groups at once, with 95 %; None where no
            other group has a value.
        rest: Difference to all other images; None where these are too few.
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
    metrics: Mapping[str, Value] = field(default_factory=lambda: _NOTHING)
    missing: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, kw_only=True)
class Subgroups:
    """One domain, divided by one attribute.

    Attributes:
        domain: ``source`` (scored out of fold) or ``target``.
        threshold: Of sensitivity and specificity, chosen on the source; None for more than
            two classes, which have neither.
        groups: In the order of the attribute.
        worst: Metric to the group with the lowest value; a metric that fewer than two
            groups have is missing. ``unknown`` is never it.
    """

    domain: str
    attribute: str
    threshold: float | None
    groups: tuple[Group, ...]
    worst: Mapping[str, str]


# How the head does in each subgroup, and whether the worst of them is surely worse.


#: Groups with fewer images or patients get no numbers, and neither does a metric that
#: leans on a class with fewer patients.
FEW_IMAGES, FEW_PATIENTS = 30, 10
#: How the threshold of sensitivity and specificity is chosen on the source.
RULE = "youden"
_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is the same for every group.

    Attributes:
        classes: Names, for messages.
        threshold: Chosen on the source, for class 1; None for more than two classes.
        seed: Of the draws.
        draws: Bootstrap draws of patients.
    """

    classes: tuple[str, ...]
    threshold: float | None
    seed: int = 0
    draws: int = DRAWS


def terms_of(source: Cohort, classes: tuple[str, ...], seed: int) -> Terms:
    """The threshold of the default rule on the source's out-of-fold scores, and the rest."""
    if len(classes) != _BINARY:
        return Terms(classes=classes, threshold=None, seed=seed)
    scores = Scores(
        probability=np.clip(source.probabilities[:, 1], 0, 1),
        positive=source.classes() == 1,
        groups=source.groups,
    )
    return Terms(classes=classes, threshold=choose_threshold(RULE, scores), seed=seed)


def subgroups(
    domain: str, cohort: Cohort, groupings: Sequence[Grouping], terms: Terms
) -> tuple[Subgroups, ...]:
    """Score every group of a domain whose labels are open.

    Args:
        domain: ``source`` or ``target``.
        cohort: Labels, patients and probabilities; out of fold for the source.
        groupings: Of the same images.
        terms: See there.

    Returns:
        One for each grouping; what is in one does not depend on the others.
    """
    if not groupings:
        return ()
    patients = draw_patients(
        cohort.groups, np.random.default_rng([terms.seed, 19]), draws=terms.draws
    )
    metrics = _metrics(cohort, terms)
    return tuple(
        _Domain(cohort=cohort, grouping=one, patients=patients, terms=terms).table(domain, metrics)
        for one in groupings
    )


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A statistic of row weights for chosen rows, and the images that it rests on.

    Attributes:
        bases: By what they are called, shape (n,); all, or those of a class.
    """

    statistic: Callable[[NDArray[Any]], WeightedStatistic]
    bases: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class _Domain:
    """The images of one domain, in groups."""

    cohort: Cohort
    grouping: Grouping
    patients: PatientDraws
    terms: Terms

    def table(self, domain: str, metrics: Mapping[str, _Metric]) -> Subgroups:
        values = {name: self.values(metric) for name, metric in metrics.items()}
        names = self.grouping.names
        return Subgroups(
            domain=domain,
            attribute=self.grouping.attribute,
            threshold=self.terms.threshold,
            groups=tuple(self.group(k, metrics, values) for k in range(len(names))),
            worst={
                name: names[worst]
                for name, found in values.items()
                if (worst := self.worst(found)) is not None
            },
        )

    def worst(self, found: Mapping[int, Value]) -> int | None:
        """The lowest of the known groups; images without a value are no group to be ranked."""
        known = [k for k in found if self.grouping.names[k] != UNKNOWN]
        return min(known, key=lambda k: found[k].estimate) if len(known) > 1 else None

    def group(
        self,
        k: int,
        metrics: Mapping[str, _Metric],
        values: Mapping[str, Mapping[int, Value]],
    ) -> Group:
        rows = self.grouping.member == k
        few = self.too_few(rows)
        reasons = {} if few else {n: self.too_few_of_class(m, rows) for n, m in metrics.items()}
        return Group(
            name=self.grouping.names[k],
            images=int(rows.sum()),
            patients=np.unique(self.cohort.groups[rows]).size,
            few=few,
            prevalence=None if few else self.prevalence(rows),
            metrics={name: found[k] for name, found in values.items() if k in found},
            missing={name: why for name, why in reasons.items() if why},
        )

    def values(self, metric: _Metric) -> dict[int, Value]:
        """Of one metric, by group; those that are too few are missing."""
        rng = np.random.default_rng([self.terms.seed, 20])
        members = {k: self.grouping.member == k for k in range(len(self.grouping.names))}
        kept = {k: rows for k, rows in members.items() if not self.too_few_for(metric, rows)}
        own = {k: self.share(metric, rows) for k, rows in kept.items()}
        compared = len(own) > 1
        rest = {
            k: self.share(metric, ~rows)
            for k, rows in kept.items()
            if compared and not self.too_few_of_class(metric, ~rows)
        }
        once = simultaneous_intervals([*own.values()], rng)
        gaps = simultaneous_differences([(own[k], rest[k]) for k in rest], rng)
        differences = {
            k: Difference(
                estimate=own[k].estimate - rest[k].estimate, low=low, high=high, below=high < 0
            )
            for k, (low, high) in zip(rest, gaps, strict=True)
        }
        return {
            k: _value(one, interval if compared else None, differences.get(k))
            for (k, one), interval in zip(own.items(), once, strict=True)
        }

    def share(self, metric: _Metric, rows: NDArray[np.bool_]) -> Share:
        statistic, here = metric.statistic(rows), self.cohort.groups[rows]
        estimate = float(statistic(np.ones((1, len(here))))[0])
        draws = self.patients.of(here).apply(statistic)
        bases = (self.cohort.groups[rows & base] for base in metric.bases.values())
        return Share(estimate=estimate, draws=draws, bases=tuple(bases))

    def prevalence(self, rows: NDArray[np.bool_]) -> Value | None:
        if len(self.terms.classes) != _BINARY:
            return None
        positive = self.cohort.classes() == 1
        everyone = np.ones(len(rows), np.bool_)
        return _value(self.share(_rate(positive, everyone, "all"), rows), None, None)

    def too_few_for(self, metric: _Metric, rows: NDArray[np.bool_]) -> str | None:
        return self.too_few(rows) or self.too_few_of_class(metric, rows)

    def too_few(self, rows: NDArray[np.bool_]) -> str | None:
        images, patients = int(rows.sum()), np.unique(self.cohort.groups[rows]).size
        if images < FEW_IMAGES:
            return f"too few: {counted(images, 'image')}, {FEW_IMAGES} needed"
        if patients < FEW_PATIENTS:
            return f"too few: {counted(patients, 'patient')}, {FEW_PATIENTS} needed"
        return None

    def too_few_of_class(self, metric: _Metric, rows: NDArray[np.bool_]) -> str | None:
        for name, base in metric.bases.items():
            patients = np.unique(self.cohort.groups[rows & base]).size
            if patients < FEW_PATIENTS:
                found = counted(patients, "patient")
                return f"too few: {found} of {name}, {FEW_PATIENTS} needed"
        return None


def _value(one: Share, simultaneous: tuple[float, float] | None, rest: Difference | None) -> Value:
    low, high = one.interval()
    return Value(
        estimate=one.estimate,
        low=low,
        high=high,
        n=one.images,
        simultaneous=simultaneous,
        rest=rest,
    )


def _metrics(cohort: Cohort, terms: Terms) -> dict[str, _Metric]:
    """Those that the number of classes allows."""
    labels = cohort.classes().astype(np.int64)
    proba = np.asarray(cohort.probabilities, np.float64)
    everyone = np.ones(len(labels), np.bool_)
    found = {
        "accuracy": _rate(is_right(labels, proba), everyone, "all"),
        "auroc": _Metric(
            statistic=lambda rows: METRICS["auroc"](labels[rows], proba[rows]),
            bases={name: labels == k for k, name in enumerate(terms.classes)},
        ),
    }
    if terms.threshold is None:
        return found
    called = proba[:, 1] >= terms.threshold
    for name, k, hit in (("sensitivity", 1, called), ("specificity", 0, ~called)):
        found[name] = _rate(hit, labels == k, terms.classes[k])
    return found


def _rate(hit: NDArray[np.bool_], of: NDArray[np.bool_], base: str) -> _Metric:
    return _Metric(statistic=partial(_rate_of_rows, hit & of, of), bases={base: of})


def _rate_of_rows(
    hit: NDArray[np.bool_], of: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> WeightedStatistic:
    return weighted_ratio(hit[rows], of[rows])
