"""Scores of the head in each subgroup of a target, and whether a group is surely worse.

Intervals hold for all groups at once (max-T), so the worst group may be picked after looking.
Groups and classes with too few patients get a reason instead of a number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.attributes import UNKNOWN, Grouping
from pipeline.data.domain import DomainData
from pipeline.data.patients import PatientDraws, leave_out_patients
from pipeline.evaluation.intervals import Rate, critical_value, difference_bounds
from pipeline.evaluation.metrics import METRICS, on_all_rows, weighted_ratio
from pipeline.words import counted

#: Groups with fewer images or patients get no numbers, and neither does a metric that
#: needs a class with fewer patients.
FEW_IMAGES, FEW_PATIENTS = 30, 10
#: In the order of the report; the last two need a threshold.
_METRICS = ("accuracy", "auroc", "sensitivity", "specificity")
_Record = dict[str, Any]


def subgroups(
    source: DomainData,
    target: DomainData,
    groupings: tuple[Sequence[Grouping], Sequence[Grouping]],
    *,
    threshold: float | None,
    seed: int = 0,
) -> list[_Record]:
    """Score every group of a target whose labels are open, and the same group of the source.

    Args:
        source: Labels and out-of-fold probabilities.
        target: Labels and probabilities of the same head.
        groupings: Of the images of both, one for each attribute.
        threshold: Chosen on the source, on the second class's probability, for sensitivity
            and specificity; None for more than two classes.
        seed: Of the multipliers.

    Returns:
        Every group of every attribute: ``attribute``, ``group``, ``images``, ``patients``;
        ``reason`` why it has no numbers, or None; ``metrics`` by name, see :func:`_compare`,
        and ``source``, the same group's value there, or None.
    """
    patients = leave_out_patients(target.group)
    on_source = {grouping.attribute: grouping for grouping in groupings[0]}
    records: list[_Record] = []
    for grouping in groupings[1]:
        members = {name: grouping.member == k for k, name in enumerate(grouping.names)}
        reasons = {name: _too_few(target, rows) for name, rows in members.items()}
        large = {name: rows for name, rows in members.items() if not reasons[name]}
        groups = {n: _rates(target, rows, threshold, patients) for n, rows in large.items()}
        complements = {n: _rates(target, ~rows, threshold, patients) for n, rows in large.items()}
        source_values = _source_values(source, on_source.get(grouping.attribute), threshold)
        metrics: dict[str, dict[str, _Record]] = {name: {} for name in members}
        for metric in _METRICS:
            of_metric = {n: rates[metric] for n, rates in groups.items() if metric in rates}
            rest = {n: complements[n][metric] for n in of_metric if metric in complements[n]}
            compared = _compare(of_metric, rest, np.random.default_rng([seed, 20]))
            for name, record in compared.items():
                source_value = source_values.get(name, {}).get(metric)
                metrics[name][metric] = {**record, "source": source_value}
        records += [
            {
                "attribute": grouping.attribute,
                "group": name,
                "images": int(rows.sum()),
                "patients": np.unique(target.group[rows]).size,
                "reason": reasons[name],
                "metrics": metrics[name],
            }
            for name, rows in members.items()
        ]
    return records


def _too_few(data: DomainData, rows: NDArray[np.bool_]) -> str | None:
    images, patients = int(rows.sum()), np.unique(data.group[rows]).size
    if images < FEW_IMAGES:
        return f"too few: {counted(images, 'image')}, {FEW_IMAGES} needed"
    if patients < FEW_PATIENTS:
        return f"too few: {counted(patients, 'patient')}, {FEW_PATIENTS} needed"
    return None


def _rates(
    data: DomainData, rows: NDArray[np.bool_], threshold: float | None, patients: PatientDraws
) -> dict[str, Rate]:
    """The metrics of chosen rows, but for those that need a class with too few patients."""
    if not rows.any():
        return {}
    data = data.take(rows)
    label, proba = data.get_label(), data.get_proba()
    of_class = [label == k for k in range(proba.shape[1])]
    everything = np.ones(len(label), np.bool_)
    statistics = {
        "accuracy": (weighted_ratio(~data.wrong(), everything), [everything]),
        "auroc": (METRICS["auroc"](label, proba), of_class),
    }
    if threshold is not None:
        called, (negative, positive) = proba[:, 1] >= threshold, of_class
        statistics["sensitivity"] = (weighted_ratio(called & positive, positive), [positive])
        statistics["specificity"] = (weighted_ratio(~called & negative, negative), [negative])
    rates = {}
    for name, (statistic, in_strata) in statistics.items():
        strata = tuple(data.group[stratum] for stratum in in_strata)
        if min(np.unique(stratum).size for stratum in strata) >= FEW_PATIENTS:
            estimate = on_all_rows(statistic, len(label))
            influence = estimate - patients.of(data.group).apply(statistic)
            rates[name] = Rate(estimate=estimate, influence=influence, strata=strata)
    return rates


def _source_values(
    data: DomainData, grouping: Grouping | None, threshold: float | None
) -> dict[str, dict[str, float]]:
    """By group, where there are enough images, the value of each metric."""
    if grouping is None:
        return {}
    patients, values = leave_out_patients(data.group), {}
    for k, group in enumerate(grouping.names):
        rows = grouping.member == k
        if not _too_few(data, rows):
            rates = _rates(data, rows, threshold, patients)
            values[group] = {name: rate.estimate for name, rate in rates.items()}
    return values


def _compare(
    groups: Mapping[str, Rate], complements: Mapping[str, Rate], rng: np.random.Generator
) -> dict[str, _Record]:
    """One metric in each group and against all other images, for all groups at once.

    Returns:
        By group: ``estimate``, ``low``, ``high``; ``difference`` to all other images with
        ``difference_low`` and ``difference_high``, None where those are too few; ``worst``:
        whether it is the lowest of those whose attribute is recorded.
    """
    if not groups:
        return {}
    width = critical_value(np.stack([rate.influence for rate in groups.values()]), rng)
    differences: dict[str, tuple[float, float]] = {}
    if complements and len(groups) > 1:
        pairs = {name: (groups[name], complement) for name, complement in complements.items()}
        influence = [group.influence - complement.influence for group, complement in pairs.values()]
        c = critical_value(np.stack(influence), rng)
        differences = {name: difference_bounds(*pair, c) for name, pair in pairs.items()}
    ranked = [name for name in groups if name != UNKNOWN]
    worst = min(ranked, key=lambda name: groups[name].estimate) if len(ranked) > 1 else None
    values = {}
    for name, rate in groups.items():
        low, high = rate.bounds(width)
        gap_low, gap_high = differences.get(name, (None, None))
        gap = rate.estimate - complements[name].estimate if name in differences else None
        values[name] = {
            "estimate": rate.estimate,
            "low": low,
            "high": high,
            "difference": gap,
            "difference_low": gap_low,
            "difference_high": gap_high,
            "worst": name == worst,
        }
    return values
