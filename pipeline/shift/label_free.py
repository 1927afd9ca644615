"""Accuracy and class mix of a target, estimated without its labels.

The accuracy cannot be known without labels unless something is assumed. Two formulas with
different assumptions give a range that holds where either is true. They read calibrated
probabilities of one head: out of fold on the source, as predicted on the target. The
bootstrap draws patients of both domains and repeats everything, the calibration included;
all draws are solved as one batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.data.domain import DomainData
from pipeline.data.patients import draw_patients
from pipeline.errors import StudyError
from pipeline.evaluation.bootstrap import percentile_interval
from pipeline.evaluation.intervals import Interval, agresti_coull, share_of
from pipeline.evaluation.metrics import weighted_mean

#: Bootstrap draws of the intervals.
DRAWS = 200
#: Shown wherever an estimate is shown.
ASSUMPTION = (
    "doc assumes that a score means on the target what it means on the source; label_shift, "
    "that the images of a class look the same. The range holds where one of them does. Label "
    "errors, another definition of the label, noise and blur go unseen."
)
#: Domain classifier AUC above which nothing is estimated. Of two Gaussians with this AUC, 4 %
#: of the source's images stand for the target's.
NO_OVERLAP = 0.9
OVERLAP = (
    "The accuracy is not estimated: the features tell nearly every image of the target from "
    "the source, so the source does not show how right the head is on such images."
)
_TINY = 1e-12
_NEWTON_STEPS = 50
_HALVINGS = 20
#: Pseudo-counts that keep slope and bias finite where the scores separate the classes.
_PENALTY = 1e-3
_EM_STEPS = 500
_EM_TOLERANCE = 1e-10
#: Numbers of one array that are held at once: 32 MB.
_CELLS = 1 << 22

Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AccuracyEstimate:
    """What the scores of a target say about its accuracy and its classes.

    Attributes:
        accuracy: By formula of :data:`FORMULAS`, each with a 95 % interval of the accuracy on
            these images. It holds if the formula's assumption does.
        prevalence: Share of each class in the target (MLLS), in label order.
    """

    accuracy: Mapping[str, Interval]
    prevalence: tuple[Interval, ...]

    @property
    def low(self) -> float:
        """Lower end of the range over all formulas."""
        return min(interval.low for interval in self.accuracy.values())

    @property
    def high(self) -> float:
        """Upper end."""
        return max(interval.high for interval in self.accuracy.values())


def estimate_accuracy(
    source: DomainData, target: DomainData, rng: np.random.Generator, *, draws: int = DRAWS
) -> AccuracyEstimate:
    """Estimate accuracy and class mix of a target without its labels.

    Args:
        source: Labels, and probabilities out of fold; every class is present.
        target: Probabilities of the same head.
        rng: Source of the draws.
        draws: How often the patients of both domains are drawn.

    Raises:
        StudyError: The classes differ, or one has no image in the source.
    """
    _refuse_other_classes(source, target)
    classes = source.scored().shape[1]
    of_source = draw_patients(source.group, rng, draws=draws, label=source.labelled())
    of_target = draw_patients(target.group, rng, draws=draws)
    once = np.ones((1, len(source))), np.ones((1, len(target)))
    estimate, calibration = _estimates(source, target, *once, _no_calibration(classes))
    step = max(1, _CELLS // (max(len(source), len(target)) * classes))
    blocks = [slice(start, start + step) for start in range(0, draws, step)]
    drawn = [
        # Each draw starts where the data themselves ended: a few steps are left.
        _estimates(source, target, of_source.weights(b), of_target.weights(b), calibration)
        for b in blocks
    ]
    intervals = [
        _interval(value, values, target)
        for value, values in zip(estimate[0], np.concatenate([d for d, _ in drawn]).T, strict=True)
    ]
    trials = share_of(weighted_mean(~source.wrong()), source.group).trials()
    trials *= target.patients / source.patients
    accuracy = {
        name: _with_outcomes(interval, trials)
        for name, interval in zip(FORMULAS, intervals, strict=False)
    }
    return AccuracyEstimate(accuracy=accuracy, prevalence=tuple(intervals[len(FORMULAS) :]))


def _with_outcomes(expected: Interval, trials: float) -> Interval:
    """Where the accuracy may lie if it is expected in an interval, and so many images tell.

    Patients of the target are right together as those of the source are, so the trials are
    the source's effective ones for each patient. Both distances add as independent errors.
    """
    a = expected.estimate
    low, high = agresti_coull(a * trials, trials)
    return replace(
        expected,
        low=max(0.0, a - float(np.hypot(a - expected.low, a - low))),
        high=min(1.0, a + float(np.hypot(expected.high - a, high - a))),
    )


def _refuse_other_classes(source: DomainData, target: DomainData) -> None:
    widths = source.scored().shape[1], target.scored().shape[1]
    if widths[0] != widths[1]:
        raise StudyError(
            f"source and target have {widths[0]} and {widths[1]} classes: "
            "use the probabilities of one head for both"
        )
    present = np.unique(source.labelled())
    if present.size != widths[0]:
        raise StudyError(
            "an estimate of the accuracy needs every class in the source; got classes "
            f"{present.tolist()} of {widths[0]}"
        )


def _interval(estimate: float, drawn: Shares, target: DomainData) -> Interval:
    low, high = percentile_interval(drawn)
    return Interval(
        estimate=float(estimate),
        low=low,
        high=high,
        images=len(target),
        patients=target.patients,
        method="bootstrap of patients, both domains",
    )


def _estimates(
    source: DomainData, target: DomainData, weights_s: Shares, weights_t: Shares, start: Shares
) -> tuple[Shares, Shares]:
    """All estimates for b weightings of the rows, and the calibrations behind them.

    Args:
        source: ``n`` images.
        target: ``m`` images.
        weights_s: Shape (b, n), how much each image of the source counts.
        weights_t: Shape (b, m).
        start: Shape (1, K + 1), calibration to start from.

    Returns:
        Shape (b, 2 + K): accuracy by formula, then the class mix; and (b, K + 1).
    """
    logs_s, logs_t, label = _logs(source.scored()), _logs(target.scored()), source.labelled()
    start = np.repeat(start, len(weights_s), axis=0)
    calibration = _solve_calibrations(logs_s, label, weights_s, start)
    proba_s, proba_t = _calibrated(logs_s, calibration), _calibrated(logs_t, calibration)
    of_class = weights_s @ np.eye(logs_s.shape[1])[label]
    mix = estimate_prior(proba_t, of_class / of_class.sum(axis=1, keepdims=True), weights=weights_t)
    case = _Case(
        proba_s=proba_s,
        proba_t=proba_t,
        weights_s=weights_s,
        weights_t=weights_t,
        source=source,
        target=target,
        mix=mix,
    )
    return np.column_stack([*(formula(case) for formula in FORMULAS.values()), mix]), calibration


@dataclass(frozen=True, kw_only=True)
class _Case:
    """b weightings of both domains: calibrated (b, n, K) and (b, m, K), class mix (b, K)."""

    proba_s: Shares
    proba_t: Shares
    weights_s: Shares
    weights_t: Shares
    source: DomainData
    target: DomainData
    mix: Shares


def _doc(case: _Case) -> Shares:
    """DoC: source accuracy less the drop of the mean confidence (Guillory et al. 2021)."""
    sure_s = case.proba_s[:, np.arange(len(case.source)), case.source.predicted()]
    sure_t = case.proba_t[:, np.arange(len(case.target)), case.target.predicted()]
    drop = _mean(sure_s, case.weights_s) - _mean(sure_t, case.weights_t)
    return np.clip(_mean((~case.source.wrong())[None], case.weights_s) - drop, 0, 1)


def _label_shift(case: _Case) -> Shares:
    """The source's accuracy in each class, at the class mix of the target."""
    one_hot = np.eye(case.mix.shape[1])[case.source.labelled()]
    recall = (case.weights_s * ~case.source.wrong()) @ one_hot / (case.weights_s @ one_hot)
    return np.asarray((recall * case.mix).sum(axis=1))


#: To add an estimate of the accuracy, write a function above and one line here.
FORMULAS: Mapping[str, Callable[[_Case], Shares]] = MappingProxyType(
    {"doc": _doc, "label_shift": _label_shift}
)


def _mean(values: NDArray[np.floating] | NDArray[np.bool_], weights: Shares) -> Shares:
    """Weighted mean of each row, shape (b,)."""
    return np.asarray((values * weights).sum(axis=1) / weights.sum(axis=1))


# Calibration by bias-corrected temperature scaling.


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Bias-corrected temperature scaling: softmax(slope * log p + bias).

    Attributes:
        slope: 1 / temperature.
        bias: Shape (K,), 0 for the first class.
    """

    slope: float
    bias: Shares

    def __call__(self, proba: NDArray[np.floating]) -> Shares:
        """Calibrated probabilities, shape (n, K)."""
        theta = np.append(self.slope, self.bias)[None]
        return np.asarray(_calibrated(_logs(proba), theta)[0], dtype=np.float64)


def fit_calibration(proba: NDArray[np.floating], label: NDArray[np.integer]) -> Calibration:
    """Fit slope and per-class bias by maximum likelihood (BCTS, Alexandari et al. 2020).

    Args:
        proba: Shape (n, K), out of fold.
        label: Shape (n,), 0 to K - 1.
    """
    logs = _logs(proba)
    start = _no_calibration(logs.shape[1])
    theta = _solve_calibrations(logs, label, np.ones((1, len(label))), start)[0]
    return Calibration(slope=float(theta[0]), bias=theta[1:])


def _logs(proba: NDArray[np.floating]) -> Shares:
    return np.log(np.clip(np.asarray(proba, dtype=np.float64), _TINY, None))


def _no_calibration(classes: int) -> Shares:
    return np.append(1.0, np.zeros(classes))[None]


def _calibrated(logs: Shares, theta: Shares) -> Shares:
    """Probabilities (b, n, K) for calibrations (b, K + 1): slope, then bias of each class."""
    return np.asarray(softmax(theta[:, :1, None] * logs + theta[:, None, 1:], axis=2))


def _solve_calibrations(
    logs: Shares, label: NDArray[np.integer], weights: Shares, start: Shares
) -> Shares:
    """Newton's method on b weightings at once; a step is halved until the loss falls.

    The bias of the first class stays 0: a constant added to all of them changes nothing.

    Args:
        logs: Shape (n, K), log probabilities.
        label: Shape (n,).
        weights: Shape (b, n), how much each row counts.
        start: Shape (b, K + 1).

    Returns:
        Shape (b, K + 1).
    """
    theta, free = start.copy(), np.delete(np.arange(start.shape[1]), 1)
    loss = _calibration_loss(logs, label, weights, theta)
    for _ in range(_NEWTON_STEPS):
        gradient, hessian = _calibration_derivatives(logs, label, weights, theta)
        step = np.zeros_like(theta)
        step[:, free] = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        size = np.ones((len(theta), 1))
        for _ in range(_HALVINGS):
            trial = theta - size * step
            now = _calibration_loss(logs, label, weights, trial)
            worse = now > loss + 1e-9 * np.abs(loss)
            if not worse.any():
                break
            size[worse] /= 2
        theta, loss = trial, now
        if np.abs(step).max() < 1e-7:
            break
    return theta


def _calibration_loss(
    logs: Shares, label: NDArray[np.integer], weights: Shares, theta: Shares
) -> Shares:
    proba = _calibrated(logs, theta)[:, np.arange(len(label)), label]
    penalty = (theta[:, 0] - 1) ** 2 + (theta[:, 1:] ** 2).sum(axis=1)
    likelihood = (weights * np.log(np.clip(proba, _TINY, None))).sum(axis=1)
    return np.asarray(_PENALTY / 2 * penalty - likelihood)


def _calibration_derivatives(
    logs: Shares, label: NDArray[np.integer], weights: Shares, theta: Shares
) -> tuple[Shares, Shares]:
    """Gradient (b, K) and Hessian (b, K, K) in the slope and the bias of classes 1 to K - 1."""
    proba = _calibrated(logs, theta)
    weighted = weights[:, :, None] * proba
    mean_log = (proba * logs).sum(axis=2)
    rest = proba[:, :, 1:]
    gradient = np.empty((len(theta), logs.shape[1]))
    true_log = logs[np.arange(len(label)), label]
    gradient[:, 0] = (weights * (mean_log - true_log)).sum(axis=1)
    one_hot = np.eye(logs.shape[1])[label][:, 1:]
    gradient[:, 1:] = weighted[:, :, 1:].sum(axis=1) - weights @ one_hot
    hessian = np.empty((*gradient.shape, logs.shape[1]))
    spread = (proba * logs**2).sum(axis=2) - mean_log**2
    hessian[:, 0, 0] = (weights * spread).sum(axis=1)
    mixed = (weighted[:, :, 1:] * (logs[:, 1:] - mean_log[:, :, None])).sum(axis=1)
    hessian[:, 0, 1:] = hessian[:, 1:, 0] = mixed
    hessian[:, 1:, 1:] = -weighted[:, :, 1:].swapaxes(1, 2) @ rest
    diagonal = np.arange(1, logs.shape[1])
    hessian[:, diagonal, diagonal] += weighted[:, :, 1:].sum(axis=1)
    gradient += _PENALTY * (np.delete(theta, 1, axis=1) - np.eye(logs.shape[1])[0])
    hessian += _PENALTY * np.eye(logs.shape[1])
    return gradient, hessian


# The class mix of a target.


def reweighted(proba: NDArray[np.floating], class_weights: NDArray[np.floating]) -> Shares:
    """Probabilities under another class mix, shape (m, K).

    A row that is surely of classes without weight stays as it is: 0 / 0 says nothing.

    Args:
        proba: Shape (m, K).
        class_weights: Shape (K,), share of each class in the target over that in the source.
    """
    weighted = np.asarray(proba * class_weights, dtype=np.float64)
    total = weighted.sum(axis=1, keepdims=True)
    unweighted = np.array(proba, dtype=np.float64)
    return np.asarray(np.divide(weighted, total, out=unweighted, where=total > 0))


def estimate_prior(
    proba: NDArray[np.floating],
    source_prior: NDArray[np.floating],
    *,
    weights: NDArray[np.floating] | None = None,
) -> Shares:
    """The target's class mix by expectation maximisation (MLLS, Saerens et al. 2002).

    Two steps of EM show where a third would lead; a longer step in that direction is taken
    where it makes the target more likely (SQUAREM, Varadhan and Roland 2008).

    Args:
        proba: Shape (..., m, K), calibrated source posteriors of target rows.
        source_prior: Shape (..., K), all > 0.
        weights: Shape (..., m), how much each row counts; 1 when left out.

    Returns:
        Shape (..., K), sums to 1.
    """
    prior = np.asarray(source_prior, dtype=np.float64)
    ratio = proba / prior[..., None, :]
    weights = np.ones(ratio.shape[:-1]) if weights is None else weights
    for _ in range(_EM_STEPS):
        first, _ = _em_step(prior, ratio, weights)
        second, _ = _em_step(first, ratio, weights)
        if np.abs(second - first).max() < _EM_TOLERANCE:
            break
        change, bend = first - prior, second - 2 * first + prior
        length = np.linalg.norm(change, axis=-1) / np.clip(
            np.linalg.norm(bend, axis=-1), _TINY, None
        )
        length = np.maximum(1.0, length)[..., None]
        far = np.maximum(prior + 2 * length * change + length**2 * bend, second / 10)
        far /= far.sum(axis=-1, keepdims=True)
        (after_far, at_far), (after_second, at_second) = (
            _em_step(at, ratio, weights) for at in (far, second)
        )
        prior = np.where((at_far > at_second)[..., None], after_far, after_second)
    return np.asarray(second, dtype=np.float64)


def _em_step(prior: Shares, ratio: Shares, weights: NDArray[np.floating]) -> tuple[Shares, Shares]:
    """The next class mix (..., K), and the log likelihood of this one (...)."""
    mixture = np.clip((ratio @ prior[..., None])[..., 0], _TINY, None)
    updated = prior * ((weights / mixture)[..., None, :] @ ratio)[..., 0, :]
    likelihood = (weights * np.log(mixture)).sum(axis=-1)
    return updated / updated.sum(axis=-1, keepdims=True), likelihood
