"""Heads on the images of one domain: metrics with intervals, paired comparisons, clinical use.

A comparison says which *trained* head is better on this population. Which algorithm is
better for data like this is another question: ``heads_record`` asks it over folds.

For clinical use, with two classes: net benefit at given thresholds (decision curves: Vickers and
Elkin 2006), likelihood ratios (Deeks and Altman 2004), and whether as many patients are ill as the
head predicts (calibration in the large: Van Calster et al. 2019).
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, FIT, PatientDraws, WeightedStatistic, draw_patients
from pipeline.data.samples import UNLABELLED, Samples
from pipeline.evaluation.bootstrap import interval_of_draws, mean_bounds
from pipeline.evaluation.intervals import (
    Interval,
    Patients,
    Rate,
    by_patient,
    difference_bounds,
    mean_interval,
    rate_of,
    rates_of,
)
from pipeline.evaluation.metrics import METRICS, Labels, Proba, is_correct, score, weighted_ratio
from pipeline.evaluation.paired_tests import (
    Difference,
    holm,
    mcnemar,
    paired_delong,
    sign_flip,
    verdict,
)
from pipeline.randomness import stream

#: Metrics that heads are compared by.
COMPARED_BY = ("accuracy", "auroc")
#: Metrics of the images of one class.
_OF_CLASS = {"sensitivity": 1, "specificity": 0, "average_precision": 1}
#: Metrics that are not rates of images.
_NO_RATES = ("brier", "log_loss")
#: Patients of each class that a test of an AUROC needs: with fewer the normal law of DeLong's
#: test fails, and p may be 1e-25 with three patients.
AUROC_PATIENTS = 10
#: Probabilities above which one would treat: one missed patient then weighs as much as 19, 9, 4,
#: 2.3 or 1 unnecessary treatments.
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)

_Key = TypeVar("_Key", bound=Hashable)
_Ends = tuple[float, float, float]
"""Estimate, lower and upper end."""


def eval_sets(samples: Samples) -> list[DomainData]:
    """Each domain in each role, in order of appearance, with its rows' numbers in ``row``.

    The fit split, on which heads are trained, and domains without labels are left out.
    """
    sets = []
    for name, role in dict.fromkeys(zip(samples.domain, samples.split, strict=True)):
        row = np.flatnonzero((samples.domain == name) & (samples.split == role))
        if role != FIT and (samples.label[row] != UNLABELLED).any():
            sets.append(
                DomainData(
                    name=str(name),
                    role=str(role),
                    group=samples.group[row],
                    label=samples.label[row],
                    row=row,
                )
            )
    return sets


def strata(metric: str, label: Labels, group: NDArray[Any]) -> Patients:
    """Patients that a metric rests on: of all images, of one class, or of each class separately.

    An average precision is a mean over the positive images, so it rests on their patients.
    """
    if metric == "accuracy":
        return (group,)
    if metric in _OF_CLASS:
        return (group[label == _OF_CLASS[metric]],)
    return tuple(group[label == k] for k in np.unique(label))


def score_heads(
    data: DomainData,
    proba: Mapping[_Key, Proba],
    *,
    seed: int,
    draws: int = DRAWS,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[_Key, dict[str, Interval]]:
    """Every metric that the labels define, for each head, with its interval.

    Rates have the interval of :class:`Rate`; means of rates that of :func:`mean_interval`.
    Brier score and log loss are not rates: their intervals are percentiles over draws of
    patients, the same for all heads. There is no interval if all draws are equal.

    Args:
        data: Rows with labels.
        proba: Probabilities of these rows by each head, shape ``(n, K)``.
        seed: The study's seed.
        draws: Bootstrap draws of patients.
        metrics: Entries of ``METRICS``.
    """
    drawn = draw_patients(data.group, _rng("scores", data, seed), draws=draws)
    return {key: dict(_scores(data, p, metrics, drawn)) for key, p in proba.items()}


def _scores(
    data: DomainData, proba: Proba, metrics: Sequence[str], drawn: PatientDraws
) -> Iterator[tuple[str, Interval]]:
    label = data.get_label()
    parts = {
        (metric, number): part
        for metric in metrics
        if metric not in _NO_RATES
        for number, part in enumerate(_rates_of_metric(metric, label, proba, data.group))
    }
    rates = rates_of(data.group, parts)
    for metric in metrics:
        value = score(metric, label, proba)
        if value is None:
            continue
        if metric in _NO_RATES:
            values = drawn.apply(METRICS[metric](label, proba))
            # If no image differs, the draws say nothing about other images.
            yield metric, interval_of_draws(value, data, values if np.ptp(values) else values[:0])
            continue
        of_metric = [rate for (name, _), rate in rates.items() if name == metric]
        if not of_metric:  # F1 if no image is or is called positive
            continue
        if metric == "f1":
            of_metric = [replace(rate, reported=_f1) for rate in of_metric]
        several = len(of_metric) > 1
        interval = mean_interval(of_metric, data.group) if several else of_metric[0].interval()
        yield metric, replace(interval, estimate=value)


def _rates_of_metric(
    metric: str, label: Labels, proba: Proba, group: NDArray[Any]
) -> list[tuple[WeightedStatistic, Patients]]:
    """The rates whose mean is the metric, each with the patients that it rests on."""
    called, classes = proba.argmax(axis=1), range(proba.shape[1])
    if metric in ("balanced_accuracy", "f1"):
        among = {k: label == k for k in classes}
        if metric == "f1":  # 2 J / (1 + J), J of those that are or are called positive
            among = {k: rows | (called == k) for k, rows in among.items() if len(classes) > 2 or k}
        return [
            (weighted_ratio((label == k) & (called == k), rows), (group[rows],))
            for k, rows in among.items()
            if rows.any()
        ]
    if len(classes) == 2 or metric not in ("auroc", "average_precision"):
        return [(METRICS[metric](label, proba), strata(metric, label, group))]
    against_rest = [
        ((label == k).astype(np.int64), np.column_stack([1 - proba[:, k], proba[:, k]]))
        for k in classes
    ]
    return [(METRICS[metric](is_k, p), strata(metric, is_k, group)) for is_k, p in against_rest]


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def compare_heads(
    data: DomainData, proba: Mapping[str, Proba], baseline: str, *, seed: int
) -> dict[str, dict[str, Difference]]:
    """Every head minus the baseline on the same images, by metric and head.

    The interval is that of a difference of rates (:func:`difference_bounds`). For accuracy, p is
    McNemar's exact test if each patient has one image, else a test that flips the signs of whole
    patients. For AUROC, p is DeLong's by patient; with more than two classes, whose areas are
    averaged, the jackknife's. AUROC is left out if a class has fewer than 10 patients. p is
    adjusted over the heads.

    Args:
        data: Rows with labels.
        proba: Probabilities of these rows by each head, shape ``(n, K)``.
        baseline: The head that the others are compared with.
        seed: The study's seed.
    """
    label, others = data.get_label(), [head for head in proba if head != baseline]
    metrics = _compared_metrics(data, proba[baseline])
    if not others:
        return {metric: {} for metric in metrics}
    differences = {}
    for metric in metrics:
        of = strata(metric, label, data.group)
        parts = {head: (METRICS[metric](label, proba[head]), of) for head in (*others, baseline)}
        rates = list(rates_of(data.group, parts).values())
        test, p = _p_values(data, rates, [proba[head] for head in parts], metric, seed)
        differences[metric] = {
            head: _difference(data, rate, rates[-1], test, both)
            for head, rate, *both in zip(others, rates, p, holm(p).tolist(), strict=False)
        }
    return differences


def _difference(
    data: DomainData, head: Rate, baseline: Rate, test: str, p: Sequence[float]
) -> Difference:
    low, high = difference_bounds(head, baseline)
    gap, method = head.estimate - baseline.estimate, by_patient("MOVER", data.group)
    interval = Interval.of(gap, (low, high), data.group, method)
    return Difference(
        interval=interval, p=p[0], p_adjusted=p[1], test=test, verdict=verdict(low, high, p[1])
    )


def _p_values(
    data: DomainData, rates: Sequence[Rate], proba: Sequence[Proba], metric: str, seed: int
) -> tuple[str, list[float]]:
    """The name of the test for equality with the last head, and p of each other head."""
    label, several = data.get_label(), data.patients < len(data)
    *heads, baseline = proba
    if metric == "auroc" and baseline.shape[1] > 2:
        p = [_jackknife_p(rate, rates[-1]) for rate in rates[:-1]]
        return by_patient("paired jackknife", data.group), p
    if metric == "auroc":
        scores = [head[:, 1] for head in heads]
        p = [paired_delong(label, score, baseline[:, 1], group=data.group) for score in scores]
        return by_patient("paired DeLong", data.group), p
    right, *others = (is_correct(label, head) for head in (baseline, *heads))
    if several:
        step = np.array(others, np.float64) - right
        p = sign_flip(step, data.group, _rng("flips", data, seed)).tolist()
        return "sign flips by patient", p
    return "McNemar exact", [mcnemar(other, right) for other in others]


def _jackknife_p(head: Rate, baseline: Rate) -> float:
    """P of equal means over classes of one-against-rest AUROCs (Arvesen 1969).

    A covariance would need every pair of classes; leaving out patients gives it at once.
    """
    influence, gap = head.influence - baseline.influence, abs(head.estimate - baseline.estimate)
    variance = replace(head, influence=influence).variance
    if variance <= 0:
        return 1.0
    degrees_of_freedom = min(len(influence), head.patients) - 1
    return float(2 * scipy.special.stdtr(degrees_of_freedom, -gap / np.sqrt(variance)))


def _compared_metrics(data: DomainData, proba: Proba) -> list[str]:
    """Metrics to compare by; without AUROC if the rarest class has too few patients."""
    rarest = min(data.class_patients(proba.shape[1]))
    return [metric for metric in COMPARED_BY if metric != "auroc" or rarest >= AUROC_PATIENTS]


def rank_heads(data: DomainData, proba: Mapping[str, Proba]) -> list[str]:
    """Heads by accuracy on rows with labels, the best first; equal ones by log loss.

    On validation rows, the value of the first head is too good, because it was chosen there
    among many.
    """
    label = data.get_label()

    def rank(head: str) -> tuple[float, float]:
        accuracy, loss = (score(m, label, proba[head]) for m in ("accuracy", "log_loss"))
        return -(accuracy or 0.0), loss or 0.0

    return sorted(proba, key=rank)


# Clinical use.


def clinical(data: DomainData, drawn: PatientDraws) -> dict[str, Any] | None:
    """Decision curve, likelihood ratios, calibration in the large; None for more than two classes.

    Args:
        data: Rows with labels and probabilities ``(n, 2)``.
        drawn: Draws of the patients of these rows.
    """
    label, proba = data.get_label(), data.get_proba()
    if proba.shape[1] != 2 or np.unique(label).size < 2:
        return None
    positive, everyone = proba[:, 1], np.ones(len(label))
    curve = [
        {
            "threshold": threshold,
            "head": net_benefit(label, positive, threshold),
            "treat_all": net_benefit(label, everyone, threshold),
        }
        for threshold in THRESHOLDS
    ]
    sensitivity, specificity = (
        rate_of(METRICS[metric](label, proba), data.group, *strata(metric, label, data.group))
        for metric in ("sensitivity", "specificity")
    )
    (l1, u1), (l0, u0) = sensitivity.bounds(), specificity.bounds()
    sens, spec = sensitivity.estimate, specificity.estimate
    low, high = mean_bounds(label - positive, drawn)
    off = {"estimate": float((label - positive).mean()), "low": low, "high": high}
    return {
        "net_benefit": curve,
        "lr_positive": _ratio((sens, l1, u1), (1 - spec, 1 - u0, 1 - l0)),
        "lr_negative": _ratio((1 - sens, 1 - u1, 1 - l1), (spec, l0, u0)),
        "observed_minus_predicted": off,
    }


def net_benefit(
    label: NDArray[np.integer], positive: NDArray[np.floating], threshold: float
) -> float:
    """True positives minus weighted false positives, per image; 0 if nobody is treated.

    ``positive`` are probabilities of class 1; one treats from the ``threshold`` on, in (0, 1).
    """
    treated = positive >= threshold
    weight = threshold / (1 - threshold)
    return float(((label == 1) & treated).mean() - weight * ((label == 0) & treated).mean())


def _ratio(over: _Ends, under: _Ends) -> dict[str, float]:
    """A ratio of two independent rates, each with its bounds; infinite if the second is 0.

    The interval is MOVER's of the difference of two logarithms (Zou and Donner 2008).
    """
    with np.errstate(all="ignore"):
        (a, a_low, a_high), (b, b_low, b_high) = np.log([over, under])
        low = a - b - np.hypot(a - a_low, b_high - b)
        high = a - b + np.hypot(a_high - a, b - b_low)
        # The logarithm of a rate of 0 has no distance to its bound: the bounds are used instead.
        low = low if np.isfinite([a, b, a_low]).all() else a_low - b_high
        high = high if np.isfinite([a, b, b_low]).all() else a_high - b_low
        ratio = np.exp([a - b, low, high])
    return dict(zip(("estimate", "low", "high"), ratio.tolist(), strict=True))


def _rng(purpose: str, data: DomainData, seed: int) -> np.random.Generator:
    """Generator for one purpose on one domain; other purposes and domains do not change it."""
    return stream(f"{purpose} {data.name} {data.role}", seed)
