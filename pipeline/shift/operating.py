"""Operating points: thresholds chosen on the source and carried to the target.

A choice is never made on the rows that judge it: on the source, thresholds come from
out-of-fold scores; the target's labels judge and choose nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import draw_patients
from pipeline.errors import StudyError, UnknownNameError
from pipeline.evaluation.intervals import Interval, rate_interval


@dataclass(frozen=True, kw_only=True)
class OperatingSettings:
    """What the rules ask for."""

    specificity: float = 0.90
    """Least specificity of rule ``specificity``."""
    sensitivity: float = 0.95
    """Least sensitivity of rule ``sensitivity``."""
    cost_ratio: float = 1.0
    """Cost of a missed case over that of a false alarm, rule ``cost``."""
    prevalences: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Prevalences, by a name to print, at which predictive values are given."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Probabilities of the positive class in one domain, with the truth."""

    probability: NDArray[np.floating]
    """Shape (n,), in [0, 1]."""
    positive: NDArray[np.bool_]
    """Shape (n,)."""
    groups: NDArray[Any]
    """Shape (n,), patients."""


@dataclass(frozen=True, kw_only=True)
class Roc:
    """What each threshold would do, from calling all positive to calling none."""

    thresholds: NDArray[np.float64]
    """Shape (u + 1,), increasing; positive is called where probability >= threshold."""
    sensitivity: NDArray[np.float64]
    """Shape (u + 1,), falling."""
    specificity: NDArray[np.float64]
    """Shape (u + 1,), rising."""
    prevalence: float
    """Share of positive images."""


@dataclass(frozen=True, kw_only=True)
class PredictiveValues:
    """What a call is worth at one prevalence."""

    prevalence: float
    """Share of ill, in [0, 1]."""
    ppv: tuple[float, float, float]
    """P(ill | called ill): estimate, low, high; NaN where nothing is called ill."""
    npv: tuple[float, float, float]
    """P(healthy | called healthy): estimate, low, high."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """One threshold at work in one domain."""

    threshold: float
    """Positive is called where probability >= threshold."""
    sensitivity: Interval
    """Share of the ill that are called."""
    specificity: Interval
    """Share of the healthy that are not."""
    called: float
    """Share of all images that are called positive."""
    predictive: Mapping[str, PredictiveValues]
    """By the name of the prevalence."""


def _youden(roc: Roc, _settings: OperatingSettings) -> NDArray[np.float64]:
    return roc.sensitivity + roc.specificity


def _at_specificity(roc: Roc, settings: OperatingSettings) -> NDArray[np.float64]:
    return np.where(roc.specificity >= settings.specificity, roc.sensitivity, -1.0)


def _at_sensitivity(roc: Roc, settings: OperatingSettings) -> NDArray[np.float64]:
    return np.where(roc.sensitivity >= settings.sensitivity, roc.specificity, -1.0)


def _cost(roc: Roc, settings: OperatingSettings) -> NDArray[np.float64]:
    missed = roc.prevalence * (1 - roc.sensitivity) * settings.cost_ratio
    return -(missed + (1 - roc.prevalence) * (1 - roc.specificity))


#: What a rule makes as large as it can. To add one: a function above and one line here.
RULES: Mapping[str, Callable[[Roc, OperatingSettings], NDArray[np.float64]]] = MappingProxyType(
    {
        "youden": _youden,
        "specificity": _at_specificity,
        "sensitivity": _at_sensitivity,
        "cost": _cost,
    }
)


def choose_threshold(rule: str, source: Scores, settings: OperatingSettings | None = None) -> float:
    """Choose a threshold on the source.

    Args:
        rule: A key of :data:`RULES`.
        source: Out-of-fold probabilities.
        settings: What the rules ask for.

    Returns:
        The middle between two neighbouring probabilities; 0 calls all positive, above 1 none.

    Raises:
        UnknownNameError: There is no such rule.
        StudyError: A class is absent.
    """
    if rule not in RULES:
        raise UnknownNameError("rule for an operating point", rule, RULES)
    roc = roc_of(source)
    return float(roc.thresholds[RULES[rule](roc, settings or OperatingSettings()).argmax()])


def roc_of(scores: Scores) -> Roc:
    """Sensitivity and specificity at every threshold that differs.

    Args:
        scores: Both classes must be present.

    Raises:
        StudyError: A class is absent.
    """
    ill = int(scores.positive.sum())
    healthy = len(scores.positive) - ill
    if not ill or not healthy:
        raise StudyError("an operating point needs images of both classes")
    values, place = np.unique(scores.probability.astype(np.float64), return_inverse=True)
    ill_at = np.bincount(place, weights=scores.positive)
    healthy_at = np.bincount(place, weights=~scores.positive)
    return Roc(
        thresholds=np.concatenate(
            [[0.0], (values[1:] + values[:-1]) / 2, [np.nextafter(1.0, 2.0)]]
        ),
        sensitivity=1 - np.append(0, np.cumsum(ill_at)) / ill,
        specificity=np.append(0, np.cumsum(healthy_at)) / healthy,
        prevalence=ill / len(scores.positive),
    )


def operate(
    scores: Scores,
    threshold: float,
    rng: np.random.Generator,
    settings: OperatingSettings | None = None,
) -> OperatingPoint:
    """Apply a threshold in a domain.

    Args:
        scores: The domain, with its labels.
        threshold: From :func:`choose_threshold`.
        rng: Source of draws, used where a patient has several images.
        settings: Prevalences for the predictive values.

    Raises:
        StudyError: A class is absent.
    """
    called, ill = scores.probability >= threshold, scores.positive
    if ill.all() or not ill.any():
        raise StudyError("sensitivity and specificity need images of both classes")
    found, spared = (
        rate_interval(hits, groups, partial(draw_patients, groups, rng))
        for hits, groups in (
            (called[ill], scores.groups[ill]),
            (~called[~ill], scores.groups[~ill]),
        )
    )
    wanted = (settings or OperatingSettings()).prevalences
    return OperatingPoint(
        threshold=threshold,
        sensitivity=found,
        specificity=spared,
        called=float(called.mean()),
        predictive={
            name: predictive_values(found, spared, share) for name, share in wanted.items()
        },
    )


def predictive_values(
    sensitivity: Interval, specificity: Interval, prevalence: float
) -> PredictiveValues:
    """Predictive values at a prevalence, by Bayes' rule.

    Both grow with sensitivity and specificity alike, so the bounds are their values at
    the lower and at the upper ends of these. The log odds are then a sum of two
    independent errors bounded by the sum of their widths, which is more than the root of
    the sum of squares: coverage is not below that of the two intervals.

    Args:
        sensitivity: Of the operating point.
        specificity: Of the operating point.
        prevalence: In [0, 1].

    Raises:
        StudyError: The prevalence is not a share.
    """
    if not 0 <= prevalence <= 1:
        raise StudyError(f"a prevalence of {prevalence} is none; give a share from 0 to 1")
    pairs = [
        (sensitivity.estimate, specificity.estimate),
        (sensitivity.low, specificity.low),
        (sensitivity.high, specificity.high),
    ]
    ppv = [_bayes(found, 1 - spared, prevalence) for found, spared in pairs]
    npv = [_bayes(spared, 1 - found, 1 - prevalence) for found, spared in pairs]
    return PredictiveValues(
        prevalence=prevalence, ppv=(ppv[0], ppv[1], ppv[2]), npv=(npv[0], npv[1], npv[2])
    )


def _bayes(true_rate: float, false_rate: float, share: float) -> float:
    called = true_rate * share + false_rate * (1 - share)
    return true_rate * share / called if called > 0 else float("nan")
