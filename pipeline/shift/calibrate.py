"""Do the source's probabilities and thresholds still work on the target?

Calibration is for one event with a predicted probability: the second of two classes, or, with more
classes, "the predicted class is right". Thresholds are chosen on the source, from out-of-fold
probabilities; the target's labels only measure them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_curve

from pipeline.data.domain import DomainData
from pipeline.evaluation.intervals import rate_interval
from pipeline.shift.label_free import fit_temperature_scaling

#: Bins of the calibration error, with equally many images.
_BINS = 15
#: Lowest specificity and sensitivity in the rules of these names.
SPECIFICITY, SENSITIVITY = 0.90, 0.95
_Record = dict[str, Any]
_Rates = NDArray[np.float64]

#: The value that a rule maximises, from sensitivity and specificity at every threshold.
RULES: Mapping[str, Callable[[_Rates, _Rates], _Rates]] = MappingProxyType(
    {
        "youden": lambda sensitivity, specificity: sensitivity + specificity,
        "specificity": lambda sensitivity, specificity: np.where(
            specificity >= SPECIFICITY, sensitivity, -1.0
        ),
        "sensitivity": lambda sensitivity, specificity: np.where(
            sensitivity >= SENSITIVITY, specificity, -1.0
        ),
    }
)


def calibration(data: DomainData) -> _Record:
    """Measure the calibration of labelled rows that the head did not train on.

    Returns:
        ``domain``; ``brier``: its Brier score, lower is better; ``miscalibration``: what the
        best monotone recalibration would win of it (CORP; Dimitriadis et al. 2021); ``ece``:
        calibration error; ``slope`` and ``intercept`` of the event on logit(p), by maximum
        likelihood (Cox 1958), None where all events are alike.
    """
    proba = np.clip(data.get_proba(), 0, 1)
    binary = proba.shape[1] == 2
    event = data.get_label() == 1 if binary else ~data.wrong()
    p = proba[:, 1] if binary else proba.max(axis=1)
    recalibrated = IsotonicRegression().fit_transform(p, event)
    brier, best = (float(np.mean((q - event) ** 2)) for q in (p, recalibrated))
    slope = intercept = None
    if event.any() and not event.all():
        line = fit_temperature_scaling(np.column_stack([1 - p, p]), event.astype(np.int64))
        slope, intercept = line.slope, float(line.bias[1])
    return {
        "domain": data.role,
        "brier": brier,
        "miscalibration": brier - best,
        "ece": _calibration_error(data.get_proba().max(axis=1), ~data.wrong()),
        "slope": slope,
        "intercept": intercept,
    }


def _calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Mean gap between confidence and accuracy in bins of equal mass, in [0, 1].

    Rows with equal confidence share their mean, so their order does not matter.
    """
    order = np.argsort(confidence, kind="stable")
    steps, drift = confidence[order], np.r_[0.0, np.cumsum((right - confidence)[order])]
    ends = np.r_[0, 1 + np.flatnonzero(np.r_[steps[1:] != steps[:-1], True])]
    edges = np.cumsum([0, *map(len, np.array_split(order, _BINS))])
    return float(np.abs(np.diff(np.interp(edges, ends, drift[ends]))).sum() / len(order))


def transferred_thresholds(source: DomainData, target: DomainData) -> list[_Record]:
    """Choose a threshold by each rule on the source, and measure it in both domains.

    On the target it stands as it was chosen. A correction for another class mix would break the
    rules: sensitivity and specificity do not depend on the mix.

    Args:
        source: Labels and out-of-fold probabilities.
        target: Labels and probabilities of the same head.

    Returns:
        Rows ``rule``, ``domain``, ``threshold``, ``sensitivity``, ``specificity``, ``ppv`` and
        ``npv`` at the target's prevalence. Nothing for more than two classes, or where a domain
        has one of them.
    """
    both = (source, target)
    if source.get_proba().shape[1] != 2 or any(np.unique(d.get_label()).size < 2 for d in both):
        return []
    prevalence = float(np.mean(target.get_label() == 1))
    thresholds = {rule: choose_threshold(rule, source) for rule in RULES}
    return [
        {
            "rule": rule,
            "domain": data.role,
            "threshold": threshold,
            **measure_threshold(data, threshold, prevalence),
        }
        for rule, threshold in thresholds.items()
        for data in both
    ]


def choose_threshold(rule: str, source: DomainData) -> float:
    """The threshold on the second of two classes that a rule of :data:`RULES` chooses.

    It is the middle between two neighbouring probabilities; 0 calls all positive, above 1 none.
    """
    false, true, values = (
        array[::-1]
        for array in roc_curve(
            source.get_label() == 1, _second_class(source), drop_intermediate=False
        )
    )
    between = (values[:-2] + values[1:-1]) / 2  # the last is infinite
    thresholds = np.r_[0.0, between, np.nextafter(1.0, 2.0)]
    # Rounded, so that of equally good thresholds the lowest is taken on every machine.
    return float(thresholds[RULES[rule](true, 1 - false).round(12).argmax()])


def measure_threshold(data: DomainData, threshold: float, prevalence: float) -> _Record:
    """Sensitivity, specificity and, at a prevalence in [0, 1], the predictive values.

    An image is called positive if its probability is at least the threshold.
    """
    called, positive = _second_class(data) >= threshold, data.get_label() == 1
    sensitivity = rate_interval(called[positive], data.group[positive])
    specificity = rate_interval(~called[~positive], data.group[~positive])
    true, false = sensitivity.estimate, 1 - specificity.estimate
    return {
        "sensitivity": sensitivity.numbers(),
        "specificity": specificity.numbers(),
        "ppv": _predictive_value(true, false, prevalence),
        "npv": _predictive_value(1 - false, 1 - true, 1 - prevalence),
    }


def _predictive_value(true_rate: float, false_rate: float, share: float) -> float:
    """Predictive value; NaN if there are no such calls."""
    called = true_rate * share + false_rate * (1 - share)
    return true_rate * share / called if called > 0 else float("nan")


def _second_class(data: DomainData) -> NDArray[np.float64]:
    return np.clip(data.get_proba()[:, 1], 0, 1)
