"""How the head does in each subgroup of a target, and whether one is surely worse.

Intervals hold for all groups at once (max-T), so the worst may be
picked after looking. Groups and classes with too few patients get a reason, not a number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
_Record = dict[str, Any]
_Mask = NDArray[np.bool_]


def subgroups(
    target: DomainData,
    groupings: Sequence[Grouping],
    *,
    threshold: float | None,
    source: DomainData | None = None,
    source_groupings: Sequence[Grouping] = (),
    seed: int = 0,
) -> list[_Record]:
    """Score every group of a domain whose labels are open.

    Args:
        target: Labels and probabilities.
        groupings: Of its images, one for each attribute.
        threshold: Chosen on the source, on the second class's probability, for sensitivity
            and specificity; None for more than two classes.
        source: Labels and out-of-fold probabilities, for the same groups on the source.
        source_groupings: Of its images.
        seed: Of the multipliers.

    Returns:
        Every group of every attribute; what is in one attribute does not depend on others.
        ``attribute``, ``group``, ``images``, ``patients``; ``prevalence`` of the second of two
        classes; ``reason``: why it has no numbers, or None; ``metrics``: by name, see
        :func:`_compare`, and ``source``, the same group's value there, or None.
    """
    patients = leave_out_patients(target.group)
    on_source = {grouping.attribute: grouping for grouping in source_groupings}
    records: list[_Record] = []
    for grouping in groupings:
        members = _members(grouping)
        reasons = {name: _too_few(target, rows) for name, rows in members.items()}
        large = {name: rows for name, rows in members.items() if not reasons[name]}
        values = {
            metric.name: _compare(metric, large, patients, seed)
            for metric in _metrics(target, threshold)
        }
        elsewhere: Mapping[tuple[str, str], float] = {}
        if source is not None and grouping.attribute in on_source:
            elsewhere = _estimates(source, on_source[grouping.attribute], threshold)
        records += [
            {
                "attribute": grouping.attribute,
                "group": name,
                "images": int(rows.sum()),
                "patients": np.unique(target.group[rows]).size,
                "prevalence": None
                if reasons[name] or threshold is None
                else float(target.labelled()[rows].mean()),
                "reason": reasons[name],
                "metrics": {
                    metric: {**of_groups[name], "source": elsewhere.get((name, metric))}
                    for metric, of_groups in values.items()
                    if name in of_groups
                },
            }
            for name, rows in members.items()
        ]
    return records


def _members(grouping: Grouping) -> dict[str, _Mask]:
    return {name: grouping.member == k for k, name in enumerate(grouping.names)}


def _too_few(data: DomainData, rows: _Mask) -> str | None:
    images, patients = int(rows.sum()), np.unique(data.group[rows]).size
    if images < FEW_IMAGES:
        return f"too few: {counted(images, 'image')}, {FEW_IMAGES} needed"
    if patients < FEW_PATIENTS:
        return f"too few: {counted(patients, 'patient')}, {FEW_PATIENTS} needed"
    return None


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A metric of a domain, for chosen rows.

    Attributes:
        name: Of the metric.
        group: Patients of the domain, shape (n,).
        statistic: For rows the statistic of their weights.
        bases: Images that it is made of, masks of shape (n,): all, or those of each class.
    """

    name: str
    group: NDArray[Any]
    statistic: Callable[[_Mask], WeightedStatistic]
    bases: tuple[_Mask, ...]

    def is_defined(self, rows: _Mask) -> bool:
        """Whether each class that it needs has patients enough."""
        counts = (np.unique(self.group[rows & base]).size for base in self.bases)
        return min(counts) >= FEW_PATIENTS

    def estimate(self, rows: _Mask) -> float:
        """The value itself."""
        return on_all_rows(self.statistic(rows), int(rows.sum()))

    def share(self, rows: _Mask, patients: PatientDraws) -> Share:
        """The value with how much each patient moves it."""
        estimate = self.estimate(rows)
        left_out = patients.of(self.group[rows]).apply(self.statistic(rows))
        bases = tuple(self.group[rows & base] for base in self.bases)
        return Share(estimate=estimate, moves=estimate - left_out, bases=bases)


def _metrics(data: DomainData, threshold: float | None) -> list[_Metric]:
    """Those that the number of classes allows."""
    label, proba = data.labelled(), data.scored()

    def metric(name: str, statistic: Callable[[_Mask], WeightedStatistic], *of: _Mask) -> _Metric:
        return _Metric(name=name, group=data.group, statistic=statistic, bases=of)

    def rate(name: str, hit: _Mask, of: _Mask) -> _Metric:
        return metric(name, lambda rows: weighted_ratio((hit & of)[rows], of[rows]), of)

    metrics = [
        rate("accuracy", ~data.wrong(), np.ones(len(data), np.bool_)),
        metric(
            "auroc",
            lambda rows: METRICS["auroc"](label[rows], proba[rows]),
            *(label == k for k in range(proba.shape[1])),
        ),
    ]
    if threshold is not None:
        called = proba[:, 1] >= threshold
        metrics.append(rate("sensitivity", called, label == 1))
        metrics.append(rate("specificity", ~called, label == 0))
    return metrics


def _estimates(
    data: DomainData, grouping: Grouping, threshold: float | None
) -> dict[tuple[str, str], float]:
    """Value by (group, metric), where there are enough images."""
    return {
        (name, metric.name): metric.estimate(rows)
        for metric in _metrics(data, threshold)
        for name, rows in _members(grouping).items()
        if not _too_few(data, rows) and metric.is_defined(rows)
    }


def _compare(
    metric: _Metric, groups: Mapping[str, _Mask], patients: PatientDraws, seed: int
) -> dict[str, _Record]:
    """One metric in each group and against all other images.

    Returns:
        By group: ``estimate``, ``low``, ``high``, for all groups at once; ``difference`` to
        all other images with ``difference_low`` and ``difference_high``, None where those are
        too few; ``worst``: whether it is the lowest. Images of which the attribute is not
        known are no group to be ranked.
    """
    rng = np.random.default_rng([seed, 20])
    inside = {
        name: metric.share(rows, patients)
        for name, rows in groups.items()
        if metric.is_defined(rows)
    }
    rest = {
        name: metric.share(~groups[name], patients)
        for name in inside
        if len(inside) > 1 and metric.is_defined(~groups[name])
    }
    intervals = simultaneous_intervals([*inside.values()], rng)
    apart = simultaneous_differences([(inside[name], rest[name]) for name in rest], rng)
    differences = dict(zip(rest, apart, strict=True))
    ranked = [name for name in inside if name != UNKNOWN]
    worst = min(ranked, key=lambda name: inside[name].estimate) if len(ranked) > 1 else None
    values = {}
    for (name, share), (low, high) in zip(inside.items(), intervals, strict=True):
        gap_low, gap_high = differences.get(name, (None, None))
        values[name] = {
            "estimate": share.estimate,
            "low": low,
            "high": high,
            "difference": share.estimate - rest[name].estimate if name in rest else None,
            "difference_low": gap_low,
            "difference_high": gap_high,
            "worst": name == worst,
        }
    return values
