"""Do the source's probabilities and thresholds still serve on the target?

Calibration is of one event with a predicted probability: the second of two classes, or "the
predicted class is right" of more. Thresholds are chosen on the source, from out-of-fold
probabilities; the target's labels measure them and choose nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError, UnknownNameError
from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.evaluation.metrics import score as metric
from pipeline.shift.label_free import fit_calibration

_TINY = 1e-12
#: Least specificity and sensitivity that the rules of these names ask for.
SPECIFICITY, SENSITIVITY = 0.90, 0.95

Probability = NDArray[np.floating]
Event = NDArray[np.bool_]


# Calibration.


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well the probabilities of one domain are calibrated.

    Attributes:
        domain: ``source`` (out of fold) or ``target``.
        event: What the probabilities are of: ``positive``, or of more than two classes
            ``right``, that the predicted class is the true one.
        brier: Brier score of the event, lower is better.
        miscalibration: What recalibration would win of it, >= 0.
        ece: Calibration error, as it is everywhere.
        slope: Below 1: probabilities are too extreme. None where all events are alike.
        intercept: Above 0: the event is more frequent than predicted (at slope 1).
    """

    domain: str
    event: str
    brier: float
    miscalibration: float
    ece: float | None
    slope: float | None
    intercept: float | None


def calibration(data: DomainData) -> Calibration:
    """Measure the calibration of one domain.

    Args:
        data: Labels and probabilities that the head did not train on.
    """
    binary = data.scored().shape[1] == 2
    event, p = event_of(data)
    brier, miscalibration = brier_parts(event, p)
    line = calibration_line(event, p)
    return Calibration(
        domain=data.role,
        event="positive" if binary else "right",
        brier=brier,
        miscalibration=miscalibration,
        ece=metric("ece", data.labelled(), data.scored()),
        slope=line and line[0],
        intercept=line and line[1],
    )


def event_of(data: DomainData) -> tuple[Event, NDArray[np.float64]]:
    """What is predicted and with which probability, both of shape (n,)."""
    proba = np.clip(data.scored(), 0, 1)
    if proba.shape[1] == 2:
        return data.labelled() == 1, proba[:, 1]
    return ~data.wrong(), proba.max(axis=1)


def brier_parts(event: Event, p: Probability) -> tuple[float, float]:
    """The Brier score and its miscalibration, without bins (CORP; Dimitriadis et al. 2021).

    The miscalibration is what the isotonic fit of the event on p would win, the best that
    any monotone recalibration could do on these rows.

    Args:
        event: Shape (n,).
        p: Shape (n,), in [0, 1].
    """
    recalibrated = IsotonicRegression().fit_transform(p, event)
    score, best = (float(np.mean((q - event) ** 2)) for q in (p, recalibrated))
    return score, score - best


def calibration_line(event: Event, p: Probability) -> tuple[float, float] | None:
    """Slope and intercept of the event on logit(p), by maximum likelihood (Cox 1958).

    Args:
        event: Shape (n,).
        p: Shape (n,), in [0, 1].

    Returns:
        (slope, intercept), ideally (1, 0); None where all events are alike.
    """
    if event.all() or not event.any():
        return None
    fitted = fit_calibration(np.column_stack([1 - p, p]), event.astype(np.int64))
    return fitted.slope, float(fitted.bias[1])


# Thresholds.


@dataclass(frozen=True, kw_only=True)
class TransferredThreshold:
    """A threshold chosen on the source, at work in one domain.

    Attributes:
        rule: How it was chosen, a key of :data:`RULES`.
        domain: ``source`` or ``target``.
        moved_by: ``none``: as it was chosen; ``prior`` and ``quantile``: moved without labels
            of the target, see :func:`moved_thresholds`.
        threshold: Positive is called where the probability is at least this.
        sensitivity: Share of the positive images that are called.
        specificity: Share of the negative images that are not.
        ppv: Share of positive among the called, at the target's prevalence; NaN for none.
        npv: Share of negative among those not called.
        reliable: False where it was moved without labels and the meaning of the score has
            changed: labels show what it does, but nobody could have known.
    """

    rule: str
    domain: str
    moved_by: str
    threshold: float
    sensitivity: Interval
    specificity: Interval
    ppv: float
    npv: float
    reliable: bool = True


def _youden(sensitivity: NDArray[np.float64], specificity: NDArray[np.float64]) -> Any:
    return sensitivity + specificity


def _at_specificity(sensitivity: NDArray[np.float64], specificity: NDArray[np.float64]) -> Any:
    return np.where(specificity >= SPECIFICITY, sensitivity, -1.0)


def _at_sensitivity(sensitivity: NDArray[np.float64], specificity: NDArray[np.float64]) -> Any:
    return np.where(sensitivity >= SENSITIVITY, specificity, -1.0)


#: What a rule makes as large as it can. To add one: a function above and one line here.
RULES: Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64]], Any]] = MappingProxyType(
    {"youden": _youden, "specificity": _at_specificity, "sensitivity": _at_sensitivity}
)


def transferred_thresholds(
    source: DomainData,
    target: DomainData,
    *,
    prevalence: float,
    score_changed: bool,
) -> tuple[TransferredThreshold, ...]:
    """Choose a threshold by each rule on the source, and measure it in both domains.

    Args:
        source: Labels and out-of-fold probabilities.
        target: Labels and probabilities of the same head.
        prevalence: Of the second class in the target, estimated without labels, in (0, 1).
        score_changed: Whether the meaning of a score is shown to have changed.

    Returns:
        Nothing for more than two classes, or where a domain has one of them.
    """
    if source.scored().shape[1] != 2:
        return ()
    if any(np.unique(data.labelled()).size < 2 for data in (source, target)):
        return ()
    share = float(np.mean(target.label == 1))
    measured = partial(measure_threshold, prevalence=share)
    thresholds = []
    for rule in RULES:
        chosen = choose_threshold(rule, source)
        thresholds.append(measured(source, chosen, rule=rule))
        for way, moved in moved_thresholds(chosen, source, target, prevalence).items():
            reliable = way == "none" or not score_changed
            thresholds.append(measured(target, moved, rule=rule, moved_by=way, reliable=reliable))
    return tuple(thresholds)


def choose_threshold(rule: str, source: DomainData) -> float:
    """Choose a threshold on the source.

    Args:
        rule: A key of :data:`RULES`.
        source: Labels, and out-of-fold probabilities of two classes.

    Returns:
        The middle between two neighbouring probabilities; 0 calls all positive, above 1 none.

    Raises:
        UnknownNameError: There is no such rule.
        StudyError: A class is absent.
    """
    if rule not in RULES:
        raise UnknownNameError("rule for a threshold", rule, RULES)
    positive = _positive(source)
    values, place = np.unique(_score(source), return_inverse=True)
    thresholds = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [np.nextafter(1.0, 2.0)]])
    sensitivity = 1 - np.append(0, np.cumsum(np.bincount(place, weights=positive))) / positive.sum()
    negatives = np.cumsum(np.bincount(place, weights=~positive))
    specificity = np.append(0, negatives) / (~positive).sum()
    return float(thresholds[RULES[rule](sensitivity, specificity).argmax()])


def measure_threshold(
    data: DomainData,
    threshold: float,
    *,
    prevalence: float,
    rule: str = "",
    moved_by: str = "none",
    reliable: bool = True,
) -> TransferredThreshold:
    """Apply a threshold in a domain.

    Args:
        data: Labels and probabilities of two classes.
        threshold: From :func:`choose_threshold`.
        prevalence: At which predictive values are given, in [0, 1].
        rule: How the threshold was chosen.
        moved_by: How it was moved since.
        reliable: See :class:`TransferredThreshold`.

    Raises:
        StudyError: A class is absent, or the prevalence is not a share.
    """
    if not 0 <= prevalence <= 1:
        raise StudyError(f"a prevalence of {prevalence} is none; give a share from 0 to 1")
    called, positive = _score(data) >= threshold, _positive(data)
    sensitivity = rate_interval(called[positive], data.group[positive])
    specificity = rate_interval(~called[~positive], data.group[~positive])
    true, false = sensitivity.estimate, 1 - specificity.estimate
    return TransferredThreshold(
        rule=rule,
        domain=data.role,
        moved_by=moved_by,
        threshold=threshold,
        sensitivity=sensitivity,
        specificity=specificity,
        ppv=_bayes(true, false, prevalence),
        npv=_bayes(1 - false, 1 - true, 1 - prevalence),
        reliable=reliable,
    )


def _bayes(true_rate: float, false_rate: float, share: float) -> float:
    called = true_rate * share + false_rate * (1 - share)
    return true_rate * share / called if called > 0 else float("nan")


def _score(data: DomainData) -> NDArray[np.float64]:
    return np.clip(data.scored()[:, 1], 0, 1)


def _positive(data: DomainData) -> NDArray[np.bool_]:
    positive = np.asarray(data.labelled() == 1)
    if positive.all() or not positive.any():
        raise StudyError(f"a threshold needs images of both classes; {data.name} shows one")
    return positive


def moved_thresholds(
    threshold: float, source: DomainData, target: DomainData, prevalence: float
) -> dict[str, float]:
    """Thresholds for a target that need none of its labels.

    Under a change of prevalence alone ``none`` keeps sensitivity and specificity, and
    ``prior`` makes the calls of the prior-corrected probabilities, which keeps the rule of
    least cost. ``quantile`` calls as large a share positive as on the source: right after a
    change that keeps the order of the images and their class mix. None of them is right
    where the meaning of the score has changed.

    Args:
        threshold: Chosen on the source.
        source: On whose labels and probabilities it was chosen.
        target: Probabilities of the same head.
        prevalence: Estimated for the target, in (0, 1).

    Returns:
        ``none``, ``prior`` and ``quantile``, all for uncorrected probabilities.
    """
    source_prevalence = float(_positive(source).mean())
    return {
        "none": threshold,
        "prior": corrected_threshold(threshold, prevalence, source_prevalence),
        "quantile": quantile_threshold(threshold, _score(source), _score(target)),
    }


def corrected_threshold(threshold: float, source_prevalence: float, prevalence: float) -> float:
    """Threshold for prior-corrected probabilities that calls the same images as before.

    Correcting a probability for another prevalence adds log odds(prevalence) - log
    odds(source prevalence) to its logit; a threshold must move along.

    Args:
        threshold: For the probabilities as the source has them.
        source_prevalence: In (0, 1).
        prevalence: In (0, 1), to which probabilities are corrected.
    """
    odds = logit(np.clip([threshold, source_prevalence, prevalence], _TINY, 1 - _TINY))
    return float(expit(odds[0] + odds[2] - odds[1]))


def quantile_threshold(threshold: float, source: Probability, target: Probability) -> float:
    """Threshold that calls as large a share of the target positive as of the source.

    Args:
        threshold: Chosen on the source.
        source: Shape (n,), probabilities.
        target: Shape (m,), probabilities.

    Returns:
        In [0, 1], or just above 1 to call none.
    """
    calls = round(float((source >= threshold).mean()) * len(target))
    ordered = np.sort(target.astype(np.float64))[::-1]
    ends = np.concatenate([[np.nextafter(1.0, 2.0)], ordered, [0.0]])
    return float((ends[calls] + ends[calls + 1]) / 2)
