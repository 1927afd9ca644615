"""Accuracy and class mix of a target, estimated without its labels.

Three formulas with two assumptions give a range that holds where either is true. They read
calibrated probabilities of one head, which are out of fold on the source. The bootstrap draws
patients of both domains and repeats everything, the calibration included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from pipeline.data.domain import DomainData
from pipeline.data.patients import draw_patients
from pipeline.evaluation.bootstrap import interval_of_draws
from pipeline.evaluation.intervals import Interval, clopper_pearson, share_of
from pipeline.evaluation.metrics import weighted_mean

#: Bootstrap draws of the intervals.
_DRAWS = 200
#: Names of the estimates of the accuracy, see :func:`_estimates`.
FORMULAS = ("atc", "doc", "label_shift")
#: Domain classifier AUC above which nothing is estimated. Of two Gaussians with this AUC, 4 %
#: of the source's images stand for the target's.
NO_OVERLAP = 0.9
_ASSUMPTION = (
    "The estimates by sure images and by mean confidence hold if a score means the same on the "
    "target as on the source. The one by class frequencies holds if the images of a class look "
    "the same. The range spans all three. It cannot see label errors, another definition of the "
    "label, noise or blur."
)
_OVERLAP = (
    "The accuracy is not estimated: hardly any image of the source looks like those of the "
    "target, so the source does not show how often the head is right on them."
)
_TINY = 1e-12
#: Pseudo-counts that keep slope and bias finite where the scores separate the classes.
_PENALTY = 1e-3
_EM_STEPS = 500
_EM_TOLERANCE = 1e-10
#: Numbers of one array that are held at once: 32 MB.
_CELLS = 1 << 22

_Shares = NDArray[np.float64]


def estimate_accuracy(
    source: DomainData,
    target: DomainData,
    rng: np.random.Generator,
    *,
    classes: Sequence[str],
    draws: int = _DRAWS,
) -> dict[str, Any]:
    """Estimate accuracy and class mix of a target without its labels.

    Args:
        source: Labels, and probabilities out of fold; every class is present.
        target: Probabilities of the same head.
        rng: Source of the draws.
        classes: Names in label order.
        draws: How often the patients of both domains are drawn.

    Returns:
        ``low`` and ``high``, the range over all formulas; ``estimates``, of the accuracy by each
        of :data:`FORMULAS`; ``prevalence``, the share of each class in the target (MLLS); and
        ``warning``, what the estimates cannot see.
    """
    of_source = draw_patients(source.group, rng, draws=draws, label=source.labelled())
    of_target = draw_patients(target.group, rng, draws=draws)
    once = np.ones((1, len(source))), np.ones((1, len(target)))
    whole = fit_calibration(source.scored(), source.labelled())
    (estimate,) = _estimates(source, target, *once, whole)
    step = max(1, _CELLS // (max(len(source), len(target)) * len(classes)))
    drawn = np.concatenate(
        [
            # Each calibration starts where that of the data ended: a few steps are left.
            _estimates(source, target, of_source.weights(block), of_target.weights(block), whole)
            for block in (slice(start, start + step) for start in range(0, draws, step))
        ]
    )
    intervals = [
        interval_of_draws(float(value), target, values)
        for value, values in zip(estimate, drawn.T, strict=True)
    ]
    # Patients of the target are right together as those of the source are.
    trials = share_of(weighted_mean(~source.wrong()), source.group).trials
    trials *= target.patients / source.patients
    accuracy = [_with_outcomes(interval, trials) for interval in intervals[: len(FORMULAS)]]
    return {
        "low": min(interval.low for interval in accuracy),
        "high": max(interval.high for interval in accuracy),
        "estimates": [
            {"method": name, **interval.ends()}
            for name, interval in zip(FORMULAS, accuracy, strict=True)
        ],
        "prevalence": [
            {"name": name, "method": "mlls", **share.ends()}
            for name, share in zip(classes, intervals[len(FORMULAS) :], strict=True)
        ],
        "warning": _ASSUMPTION,
    }


def without_accuracy(estimate: Mapping[str, Any]) -> dict[str, Any]:
    """The same without an accuracy, where no image of the source stands for the target's."""
    return {**estimate, "low": None, "high": None, "estimates": [], "warning": _OVERLAP}


def _with_outcomes(expected: Interval, trials: float) -> Interval:
    """Where the accuracy of so many trials may lie that is expected in an interval (MOVER)."""
    a = expected.estimate
    low, high = clopper_pearson(a * trials, trials)
    return replace(
        expected,
        low=max(0.0, a - float(np.hypot(a - expected.low, a - low))),
        high=min(1.0, a + float(np.hypot(expected.high - a, high - a))),
    )


def _estimates(
    source: DomainData,
    target: DomainData,
    weights_s: _Shares,
    weights_t: _Shares,
    start: "Calibration",
) -> _Shares:
    """All estimates for b weightings, (b, n) and (b, m), of the rows; shape (b, 3 + K).

    - ``atc``: share of the target above the confidence below which as many images of the
      source lie as the head errs on (average thresholded confidence, Garg et al. 2022)
    - ``doc``: the source's accuracy less the drop of the mean confidence (Guillory et al. 2021)
    - ``label_shift``: the source's accuracy in each class, at the class mix of the target

    The class mix of the target follows them. Calibrations start from one nearby.
    """
    label, right = source.labelled(), ~source.wrong()
    fits = [fit_calibration(source.scored(), label, weights=w, start=start) for w in weights_s]
    sure_s, sure_t = (
        np.stack([fit(data.scored())[np.arange(len(data)), data.predicted()] for fit in fits])
        for data in (source, target)
    )
    order = sure_s.argsort(axis=1)
    lowest = np.take_along_axis(weights_s, order, axis=1).cumsum(axis=1)
    errors = (weights_s * ~right).sum(axis=1, keepdims=True)
    ordered = np.take_along_axis(sure_s, order, axis=1)
    ordered = np.pad(ordered, ((0, 0), (0, 1)), constant_values=np.inf)
    threshold = np.take_along_axis(ordered, (lowest <= errors).sum(axis=1, keepdims=True), axis=1)
    atc = _mean(sure_t >= threshold, weights_t)
    drop = _mean(sure_s, weights_s) - _mean(sure_t, weights_t)
    doc = np.clip(_mean(right[None], weights_s) - drop, 0, 1)
    one_hot = np.eye(source.scored().shape[1])[label]
    of_class = weights_s @ one_hot
    mix = estimate_prior(
        np.stack([fit(target.scored()) for fit in fits]),
        of_class / of_class.sum(axis=1, keepdims=True),
        weights=weights_t,
    )
    recall = (weights_s * right) @ one_hot / of_class
    return np.column_stack([atc, doc, (recall * mix).sum(axis=1), mix])


def _mean(values: NDArray[np.floating] | NDArray[np.bool_], weights: _Shares) -> _Shares:
    """Weighted mean of each row, shape (b,)."""
    return np.asarray((values * weights).sum(axis=1) / weights.sum(axis=1))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Bias-corrected temperature scaling: softmax(slope * log p + bias), bias (K,)."""

    slope: float
    bias: _Shares

    def __call__(self, proba: NDArray[np.floating]) -> _Shares:
        """Calibrated probabilities, shape (n, K)."""
        return np.asarray(softmax(self.slope * _logs(proba) + self.bias, axis=1), np.float64)


def fit_calibration(
    proba: NDArray[np.floating],
    label: NDArray[np.integer],
    *,
    weights: _Shares | None = None,
    start: Calibration | None = None,
) -> Calibration:
    """Fit slope and per-class bias by maximum likelihood (BCTS, Alexandari et al. 2020).

    Args:
        proba: Shape (n, K), out of fold.
        label: Shape (n,), 0 to K - 1.
        weights: Shape (n,); 1 when left out.
        start: A calibration nearby.
    """
    weights = np.ones(len(label)) if weights is None else weights
    used = weights > 0
    logs, label, weights = _logs(proba[used]), label[used], weights[used]
    one_hot, nothing = np.eye(proba.shape[1])[label], np.eye(proba.shape[1])[0]

    def loss(theta: _Shares) -> tuple[float, _Shares]:
        """With its gradient; slope, then the bias of every class but the first, which stays 0."""
        log_p = log_softmax(theta[0] * logs + np.r_[0.0, theta[1:]], axis=1)
        wrong, moved = weights[:, None] * (np.exp(log_p) - one_hot), theta - nothing
        gradient = np.r_[(wrong * logs).sum(), wrong[:, 1:].sum(axis=0)] + _PENALTY * moved
        return float(
            _PENALTY / 2 * moved @ moved - weights @ log_p[np.arange(len(label)), label]
        ), gradient

    first = nothing if start is None else np.r_[start.slope, start.bias[1:]]
    options = {"ftol": 1e-16, "gtol": 1e-6}
    theta = minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x
    return Calibration(slope=float(theta[0]), bias=np.r_[0.0, theta[1:]])


def _logs(proba: NDArray[np.floating]) -> _Shares:
    return np.log(np.clip(np.asarray(proba, dtype=np.float64), _TINY, None))


def reweighted(proba: NDArray[np.floating], class_weights: NDArray[np.floating]) -> _Shares:
    """Probabilities (m, K) times the weights (K,) of the classes, as probabilities again.

    A row that is surely of classes without weight stays as it is: 0 / 0 says nothing.
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
) -> _Shares:
    """The target's class mix (..., K) by EM (MLLS, Saerens et al. 2002).

    Two steps show where a third would lead; a longer step in that direction is taken where it
    makes the target more likely (SQUAREM, Varadhan and Roland 2008).

    Args:
        proba: Shape (..., m, K), calibrated source posteriors of target rows.
        source_prior: Shape (..., K), all > 0.
        weights: Shape (..., m); 1 when left out.
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
        steps, bends = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (change, bend))
        length = np.maximum(1.0, steps / np.clip(bends, _TINY, None))
        far = np.maximum(prior + 2 * length * change + length**2 * bend, second / 10)
        far /= far.sum(axis=-1, keepdims=True)
        (after_far, at_far), (after_second, at_second) = (
            _em_step(at, ratio, weights) for at in (far, second)
        )
        prior = np.where((at_far > at_second)[..., None], after_far, after_second)
    return np.asarray(second, dtype=np.float64)


def _em_step(
    prior: _Shares, ratio: _Shares, weights: NDArray[np.floating]
) -> tuple[_Shares, _Shares]:
    """The next class mix (..., K), and the log likelihood of this one (...)."""
    mixture = np.clip((ratio @ prior[..., None])[..., 0], _TINY, None)
    updated = prior * ((weights / mixture)[..., None, :] @ ratio)[..., 0, :]
    likelihood = (weights * np.log(mixture)).sum(axis=-1)
    return updated / updated.sum(axis=-1, keepdims=True), likelihood
