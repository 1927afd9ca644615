"""Do the probabilities mean what they say? Scores, their parts, and the calibration line.

All of it is about one event with a foretold probability: the second class of two, or
"the most probable class is right" of more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from pipeline.errors import StudyError
from pipeline.shift.domains import Cohort
from pipeline.shift.label_free import AccuracyEstimate
from pipeline.shift.operating import (
    RULES,
    OperatingPoint,
    OperatingSettings,
    Scores,
    choose_threshold,
    operate,
)

_TINY = 1e-12
_BINS = 15
_NEWTON_STEPS = 50
_SMALL_STEP = 1e-10
#: Weak enough not to show, strong enough that separable data have an answer.
_RIDGE = 1e-6

Probability = NDArray[np.floating]
Event = NDArray[np.bool_]
Score = Callable[[Event, Any], float]


@dataclass(frozen=True, kw_only=True)
class Corp:
    """A proper score, split: score = miscalibration - discrimination + uncertainty."""

    score: float
    """Mean score, lower is better."""
    miscalibration: float
    """What recalibration would win, >= 0."""
    discrimination: float
    """What the recalibrated probabilities win over the event's rate, >= 0."""
    uncertainty: float
    """Score of foretelling the event's rate every time."""


@dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """Expected calibration error, and what it would be if all were well."""

    plug_in: float
    """Mean over bins of |rate - mean probability|; > 0 even for perfect probabilities."""
    debiased: float
    """The same less its estimated bias, >= 0."""
    if_calibrated: float
    """Mean plug-in value when events are drawn from the probabilities."""
    p: float
    """Share of such drawn values that are as large as the observed one."""


@dataclass(frozen=True, kw_only=True)
class CalibrationLine:
    """Logistic refit: logit P(event) = intercept + slope logit(p). Ideal: 0 and 1."""

    intercept: float
    """Above 0: the event is more frequent than foretold (at slope 1)."""
    slope: float
    """Below 1: probabilities are too extreme."""


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """Everything about the probabilities of one domain."""

    brier: Corp
    """Of the Brier score."""
    log_loss: Corp
    """Of the log loss, nats."""
    ece: CalibrationError
    """15 bins of equal mass."""
    line: CalibrationLine
    """Slope and intercept."""


def _brier(event: Event, p: Any) -> float:
    return float(np.mean((p - event) ** 2))


def _log_loss(event: Event, p: Any) -> float:
    kept = np.clip(p, _TINY, 1 - _TINY)
    return float(-np.mean(np.where(event, np.log(kept), np.log1p(-kept))))


#: To add a proper score, write a function above and one line here.
SCORES: Mapping[str, Score] = MappingProxyType({"brier": _brier, "log_loss": _log_loss})


def calibration_report(event: Event, p: Probability, rng: np.random.Generator) -> CalibrationReport:
    """Judge the probabilities of one domain.

    Args:
        event: Shape (n,): it happened.
        p: Shape (n,), foretold probability, in [0, 1].
        rng: Source of the draws that say what calibrated probabilities would show.

    Raises:
        StudyError: Shapes differ, there are no rows, or a probability is none.
    """
    if np.shape(event) != np.shape(p) or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise StudyError(
            f"calibration needs one event and one probability from 0 to 1 per image, got shapes "
            f"{np.shape(event)} and {np.shape(p)}"
        )
    return CalibrationReport(
        brier=corp(event, p, SCORES["brier"]),
        log_loss=corp(event, p, SCORES["log_loss"]),
        ece=calibration_error(event, p, rng),
        line=calibration_line(event, p),
    )


def corp(event: Event, p: Probability, score: Score) -> Corp:
    """Split a proper score without bins (CORP, Dimitriadis, Gneiting and Jordan 2021).

    The recalibrated probabilities are the isotonic fit of the event on p, the best that
    any monotone recalibration could do on these rows.

    Args:
        event: Shape (n,).
        p: Shape (n,), in [0, 1].
        score: A proper score.
    """
    recalibrated = IsotonicRegression().fit_transform(p, event)
    own, best, constant = score(event, p), score(event, recalibrated), score(event, event.mean())
    return Corp(
        score=own,
        miscalibration=own - best,
        discrimination=constant - best,
        uncertainty=constant,
    )


def calibration_error(
    event: Event, p: Probability, rng: np.random.Generator, draws: int = 1000
) -> CalibrationError:
    """Expected calibration error in bins of equal mass; rows of one p share their rate.

    A bin's |rate - mean p| is the absolute value of a number with noise and so too large
    on average: its expected excess, for normal noise, is taken off (Kumar, Liang and Ma
    2019 do this by simulation; the folded normal's mean has a closed form).

    Args:
        event: Shape (n,).
        p: Shape (n,), in [0, 1].
        rng: Source of the parametric bootstrap.
        draws: Number of drawn event vectors.
    """
    order = np.argsort(p, kind="stable")
    sizes = np.array([len(b) for b in np.array_split(order, min(_BINS, len(p)))])
    starts = np.cumsum(sizes) - sizes
    mass = sizes / len(p)

    def per_bin(rows: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(rows, starts, axis=-1, dtype=np.float64) / sizes)

    def rates_of(rows: NDArray[Any]) -> NDArray[np.float64]:
        return per_bin(_mean_of_ties(p[order], rows))

    foretold, rates = per_bin(p[order]), rates_of(event[order])
    gaps = np.abs(rates - foretold)
    noise = np.sqrt(rates * (1 - rates) / sizes)
    plug_in = float(mass @ gaps)
    excess = float(mass @ (_folded_mean(gaps, noise) - gaps))
    drawn = rates_of(rng.random((draws, len(p))) < p[order])
    null = np.abs(drawn - foretold) @ mass
    reached = np.count_nonzero(null >= plug_in - _TINY)
    return CalibrationError(
        plug_in=plug_in,
        debiased=max(0.0, plug_in - excess),
        if_calibrated=float(null.mean()),
        p=float((1 + reached) / (draws + 1)),
    )


def _mean_of_ties(key: NDArray[np.floating], rows: NDArray[Any]) -> NDArray[np.float64]:
    """Each number replaced by the mean of those of the same key, so that none comes first.

    Args:
        key: Ascending, shape ``(n,)``, not empty.
        rows: Shape ``(..., n)``.
    """
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    sizes = np.diff(np.r_[starts, len(key)])
    means = np.add.reduceat(rows, starts, axis=-1, dtype=np.float64) / sizes
    return np.asarray(np.repeat(means, sizes, axis=-1))


def calibration_line(event: Event, p: Probability) -> CalibrationLine:
    """Fit intercept and slope of the event on logit(p) by maximum likelihood (Cox 1958).

    Args:
        event: Shape (n,).
        p: Shape (n,), in [0, 1].
    """
    x = np.column_stack([np.ones(len(p)), logit(np.clip(p, _TINY, 1 - _TINY))])
    beta, ridge = np.zeros(2), _RIDGE * np.eye(2)
    for _ in range(_NEWTON_STEPS):
        fitted = expit(x @ beta)
        curvature = (x * (fitted * (1 - fitted))[:, None]).T @ x + ridge
        step = np.linalg.solve(curvature, x.T @ (event - fitted) - ridge @ beta)
        # A long first step from 0 can overshoot where logits are large.
        step *= min(1.0, 1.0 / float(np.abs(step).max() + _TINY))
        beta = beta + step
        if np.abs(step).max() < _SMALL_STEP:
            break
    return CalibrationLine(intercept=float(beta[0]), slope=float(beta[1]))


def _folded_mean(mean: NDArray[np.float64], sd: NDArray[np.float64]) -> NDArray[np.float64]:
    """E|N(mean, sd^2)| for mean >= 0; mean itself where sd is 0."""
    z = np.divide(mean, sd, out=np.full(mean.shape, np.inf), where=sd > 0)
    return np.asarray(2 * sd * norm.pdf(z) + mean * (1 - 2 * norm.cdf(-z)))


# Thresholds for a target that need none of its labels, and what each assumes.


_TINY = 1e-12
#: Ways to move a threshold that hold only while Y given the score is stable.
LABEL_FREE = ("prior", "quantile")


def corrected_threshold(threshold: float, source_prevalence: float, prevalence: float) -> float:
    """Threshold for prior-corrected probabilities that calls the same images as before.

    Correcting a probability for another prevalence adds log odds(prevalence) - log
    odds(source prevalence) to its logit; a threshold must move along, or sensitivity and
    specificity change with it.

    Args:
        threshold: For the probabilities as the source has them.
        source_prevalence: In (0, 1).
        prevalence: In (0, 1), to which probabilities are corrected.
    """
    kept = np.clip([threshold, source_prevalence, prevalence], _TINY, 1 - _TINY)
    odds = logit(kept)
    return float(expit(odds[0] + odds[2] - odds[1]))


def quantile_threshold(
    threshold: float, source: NDArray[np.floating], target: NDArray[np.floating]
) -> float:
    """Threshold that calls as large a share of the target positive as of the source.

    Right after a change that keeps the order of the images and their class mix; wrong
    after a change of prevalence, which it undoes in the calls.

    Args:
        threshold: Chosen on the source.
        source: Shape (n,), probabilities.
        target: Shape (m,), probabilities; no labels are needed.

    Returns:
        In [0, 1], or just above 1 to call none.
    """
    calls = round(float((source >= threshold).mean()) * len(target))
    ordered = np.sort(target.astype(np.float64))[::-1]
    ends = np.concatenate([[np.nextafter(1.0, 2.0)], ordered, [0.0]])
    return float((ends[calls] + ends[calls + 1]) / 2)


def rethresholds(
    threshold: float, source: Scores, target: NDArray[np.floating], prevalence: float
) -> dict[str, float]:
    """Thresholds for a target that need none of its labels.

    Under a change of prevalence alone ``carried`` keeps sensitivity and specificity, and
    ``prior`` makes the calls of the prior-corrected probabilities, which keeps the rule of
    least cost. None of them may be advertised where Y given the score has changed.

    Args:
        threshold: Chosen on the source.
        source: Whose prevalence and scores it was chosen on.
        target: Shape (m,), probabilities.
        prevalence: Estimated for the target, in (0, 1), by MLLS.

    Returns:
        ``carried``, ``prior`` and ``quantile``, all for uncorrected probabilities.
    """
    return {
        "carried": threshold,
        "prior": corrected_threshold(threshold, prevalence, float(source.positive.mean())),
        "quantile": quantile_threshold(threshold, source.probability, target),
    }


# Do probabilities and thresholds of the source still serve on the target?


_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A threshold at work in one domain.

    Attributes:
        rule: How it was chosen on the source.
        domain: ``source`` or ``target``.
        way: ``chosen`` on the source; on the target ``carried`` as it is, ``prior`` and
            ``quantile``, which are moved without labels.
        point: What it does there.
        reliable: False where it was moved without labels and Y given the score has changed:
            the labels show what it does, but nobody could have known.
    """

    rule: str
    domain: str
    way: str
    point: OperatingPoint
    reliable: bool


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """Calibration in both domains, and operating points.

    Attributes:
        event: What the probabilities are of: ``positive``, or of more than two classes
            ``right``, that the called class is the true one.
        calibration: By domain, ``source`` (out of fold) and ``target``.
        operating: Empty for more than two classes, or a domain with one of them.
    """

    event: str
    calibration: Mapping[str, CalibrationReport]
    operating: tuple[Carried, ...]


def soundness(
    source: Cohort,
    target: Cohort,
    before: AccuracyEstimate,
    rng: np.random.Generator,
    *,
    score_changed: bool,
) -> Soundness:
    """Judge probabilities and thresholds on a target whose labels are open.

    Args:
        source: Out-of-fold probabilities and labels.
        target: Probabilities of the same head, and labels.
        before: The estimates without labels; their MLLS prevalence moves a threshold.
        rng: Source of the draws.
        score_changed: Whether Y given the score is shown to have changed.
    """
    binary = source.probabilities.shape[1] == _BINARY
    sides = {"source": source, "target": target}
    return Soundness(
        event="positive" if binary else "right",
        calibration={
            name: calibration_report(*_event(cohort, binary=binary), rng)
            for name, cohort in sides.items()
        },
        operating=tuple(
            replace(use, reliable=not (score_changed and use.way in LABEL_FREE))
            for use in (_operating(source, target, before, rng) if binary else ())
        ),
    )


def _event(cohort: Cohort, *, binary: bool) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    p = np.asarray(cohort.probabilities, np.float64)
    if binary:
        return cohort.classes() == 1, np.clip(p[:, 1], 0, 1)
    return p.argmax(axis=1) == cohort.classes(), np.clip(p.max(axis=1), 0, 1)


def _operating(
    source: Cohort, target: Cohort, before: AccuracyEstimate, rng: np.random.Generator
) -> tuple[Carried, ...]:
    here, there = (_scores(cohort) for cohort in (source, target))
    if any(side.positive.all() or not side.positive.any() for side in (here, there)):
        return ()
    shares = {"source": float(here.positive.mean()), "target": float(there.positive.mean())}
    settings = OperatingSettings(prevalences=shares)
    foretold = before.prevalence[1].estimate
    found = []
    for rule in RULES:
        chosen = choose_threshold(rule, here, settings)
        moved = rethresholds(chosen, here, there.probability, foretold)
        uses = [("source", "chosen", here, chosen)]
        uses += [("target", way, there, value) for way, value in moved.items()]
        found += [
            Carried(
                rule=rule,
                domain=name,
                way=way,
                point=operate(side, value, rng, settings),
                reliable=True,
            )
            for name, way, side, value in uses
        ]
    return tuple(found)


def _scores(cohort: Cohort) -> Scores:
    return Scores(
        probability=np.clip(cohort.probabilities[:, 1], 0, 1),
        positive=cohort.classes() == 1,
        groups=cohort.groups,
    )
