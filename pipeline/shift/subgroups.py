"""How the head does in each subgroup of a target, and whether one is surely worse.

Intervals hold for all groups at once (max-T), so the worst may be
picked after looking. Groups and classes with too few patients get a reason, not a number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.data.attributes import UNKNOWN, Grouping
from pipeline.data.domain import DomainData
from pipeline.data.patients import PatientDraws, WeightedStatistic, leave_out_patients
from pipeline.evaluation.intervals import Share, simultaneous_differences, simultaneous_intervals
from pipeline.evaluation.metrics import METRICS, on_all_rows, weighted_ratio
from pipeline.words import counted

#: Groups with fewer images or patients get no numbers, and neither does a metric that
#: needs a class with fewer patients.
FEW_IMAGES, FEW_PATIENTS = 30, 10


@dataclass(frozen=True, kw_only=True)
class GroupValue:
    """One metric in one group, in [0, 1].

    Attributes:
        estimate: On the images of the group.
        low: Lower end of the 95 % interval, which holds for all groups at once.
        high: Upper end.
        images: That it is made of: all, or those of one class.
        difference: Less the value of all other images; None where those are too few.
        difference_low: Lower end of its interval, for all groups at once.
        difference_high: Upper end.
        below: Whether the whole interval of the difference lies below 0.
        worst: Whether it is the lowest of the known groups.
        source: The same group's value on the source; None where it is not known.
    """

    estimate: float
    low: float
    high: float
    images: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    below: bool = False
    worst: bool = False
    source: float | None = None


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """One group of a target.

    Attributes:
        attribute: What the images are divided by.
        group: Its name.
        images: How many.
        patients: Of how many.
        prevalence: Share of the second class; None for more than two, or too few images.
        reason: Why there are no numbers; None where there are.
        metrics: By name.
    """

    attribute: str
    group: str
    images: int
    patients: int
    prevalence: float | None = None
    reason: str | None = None
    metrics: Mapping[str, GroupValue] = field(default_factory=dict)


def subgroups(
    target: DomainData,
    groupings: Sequence[Grouping],
    *,
    classes: Sequence[str],
    threshold: float | None,
    source: DomainData | None = None,
    source_groupings: Sequence[Grouping] = (),
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Score every group of a domain whose labels are open.

    Args:
        target: Labels and probabilities.
        groupings: Of its images, one for each attribute.
        classes: Their names, for messages.
        threshold: Chosen on the source, on the second class's probability, for sensitivity
            and specificity; None for more than two classes.
        source: Labels and out-of-fold probabilities, for the same groups on the source.
        source_groupings: Of its images.
        seed: Of the multipliers.

    Returns:
        Every group of every attribute; what is in one attribute does not depend on others.
    """
    if not groupings:
        return ()
    patients = leave_out_patients(target.group)
    on_source = {grouping.attribute: grouping for grouping in source_groupings}
    rows: list[Subgroup] = []
    for grouping in groupings:
        table = _Groups(target, grouping, patients, classes, threshold, seed)
        same = on_source.get(grouping.attribute)
        if source is not None and same is not None:
            of_source = _Groups(source, same, patients, classes, threshold, seed).estimates()
        else:
            of_source = {}
        rows += table.rows(of_source)
    return tuple(rows)


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A statistic of row weights for chosen rows, and the images that it rests on.

    Attributes:
        bases: By what they are called, shape (n,); all, or those of a class.
    """

    statistic: Callable[[NDArray[np.bool_]], WeightedStatistic]
    bases: Mapping[str, NDArray[np.bool_]]


class _Groups:
    """The images of one domain, divided by one attribute."""

    def __init__(
        self,
        data: DomainData,
        grouping: Grouping,
        patients: PatientDraws,
        classes: Sequence[str],
        threshold: float | None,
        seed: int,
    ) -> None:
        self.data, self.grouping, self.patients, self.seed = data, grouping, patients, seed
        self.metrics = _metrics(data, classes, threshold)
        self.binary = threshold is not None
        self.members = [grouping.member == k for k in range(len(grouping.names))]

    def rows(self, on_source: Mapping[tuple[str, str], float]) -> list[Subgroup]:
        """Every group in the order of the attribute.

        Args:
            on_source: Value of the source by (group, metric).
        """
        values = {name: self._values(name, on_source) for name in self.metrics}
        return [self._group(k, rows, values) for k, rows in enumerate(self.members)]

    def estimates(self) -> dict[tuple[str, str], float]:
        """Value by (group, metric), where there are enough images."""
        return {
            (self.grouping.names[k], name): self._estimate(metric, rows)
            for name, metric in self.metrics.items()
            for k, rows in enumerate(self.members)
            if not self._too_few_for(metric, rows)
        }

    def _group(
        self,
        k: int,
        rows: NDArray[np.bool_],
        values: Mapping[str, Mapping[int, GroupValue]],
    ) -> Subgroup:
        few = self._too_few(rows)
        return Subgroup(
            attribute=self.grouping.attribute,
            group=self.grouping.names[k],
            images=int(rows.sum()),
            patients=np.unique(self.data.group[rows]).size,
            prevalence=None if few or not self.binary else float(self.data.labelled()[rows].mean()),
            reason=few,
            metrics={name: by_group[k] for name, by_group in values.items() if k in by_group},
        )

    def _values(
        self, name: str, on_source: Mapping[tuple[str, str], float]
    ) -> dict[int, GroupValue]:
        """Of one metric, by group; those that are too few are missing."""
        metric, rng = self.metrics[name], np.random.default_rng([self.seed, 20])
        kept = {
            k: rows for k, rows in enumerate(self.members) if not self._too_few_for(metric, rows)
        }
        inside = {k: self._share(metric, rows) for k, rows in kept.items()}
        rest = {
            k: self._share(metric, ~rows)
            for k, rows in kept.items()
            if len(inside) > 1 and not self._too_few_of(metric, ~rows)
        }
        together = simultaneous_intervals([*inside.values()], rng)
        apart = simultaneous_differences([(inside[k], rest[k]) for k in rest], rng)
        differences = dict(zip(rest, apart, strict=True))
        worst = self._worst(inside)
        group_values = {}
        for (k, share), (low, high) in zip(inside.items(), together, strict=True):
            gap_low, gap_high = differences.get(k, (None, None))
            group_values[k] = GroupValue(
                estimate=share.estimate,
                low=low,
                high=high,
                images=share.images,
                difference=share.estimate - rest[k].estimate if k in rest else None,
                difference_low=gap_low,
                difference_high=gap_high,
                below=gap_high is not None and gap_high < 0,
                worst=k == worst,
                source=on_source.get((self.grouping.names[k], name)),
            )
        return group_values

    def _worst(self, inside: Mapping[int, Share]) -> int | None:
        """The lowest of the known groups; images without a value are no group to be ranked."""
        known = [k for k in inside if self.grouping.names[k] != UNKNOWN]
        return min(known, key=lambda k: inside[k].estimate) if len(known) > 1 else None

    def _share(self, metric: _Metric, rows: NDArray[np.bool_]) -> Share:
        group, estimate = self.data.group, self._estimate(metric, rows)
        left_out = self.patients.of(group[rows]).apply(metric.statistic(rows))
        return Share(
            estimate=estimate,
            moves=estimate - left_out,
            bases=tuple(group[rows & base] for base in metric.bases.values()),
        )

    def _estimate(self, metric: _Metric, rows: NDArray[np.bool_]) -> float:
        return on_all_rows(metric.statistic(rows), int(rows.sum()))

    def _too_few_for(self, metric: _Metric, rows: NDArray[np.bool_]) -> bool:
        return self._too_few(rows) is not None or self._too_few_of(metric, rows)

    def _too_few_of(self, metric: _Metric, rows: NDArray[np.bool_]) -> bool:
        """Whether a class that the metric needs has too few patients."""
        bases = (np.unique(self.data.group[rows & base]).size for base in metric.bases.values())
        return min(bases) < FEW_PATIENTS

    def _too_few(self, rows: NDArray[np.bool_]) -> str | None:
        images, patients = int(rows.sum()), np.unique(self.data.group[rows]).size
        if images < FEW_IMAGES:
            return f"too few: {counted(images, 'image')}, {FEW_IMAGES} needed"
        if patients < FEW_PATIENTS:
            return f"too few: {counted(patients, 'patient')}, {FEW_PATIENTS} needed"
        return None


def _metrics(
    data: DomainData, classes: Sequence[str], threshold: float | None
) -> Mapping[str, _Metric]:
    """Those that the number of classes allows."""
    label, proba = data.labelled(), data.scored()
    everyone = np.ones(len(label), np.bool_)
    metrics = {
        "accuracy": _rate(~data.wrong(), everyone, "all"),
        "auroc": _Metric(
            statistic=lambda rows: METRICS["auroc"](label[rows], proba[rows]),
            bases={name: label == k for k, name in enumerate(classes)},
        ),
    }
    if threshold is not None:
        called = proba[:, 1] >= threshold
        metrics["sensitivity"] = _rate(called, label == 1, classes[1])
        metrics["specificity"] = _rate(~called, label == 0, classes[0])
    return MappingProxyType(metrics)


def _rate(hit: NDArray[np.bool_], of: NDArray[np.bool_], base: str) -> _Metric:
    return _Metric(
        statistic=lambda rows: weighted_ratio((hit & of)[rows], of[rows]), bases={base: of}
    )
