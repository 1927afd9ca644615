"""Accuracy and class mix of a target, estimated without its labels.

Three formulas with two assumptions give a range that holds if either assumption is true. They use
calibrated probabilities of one head, which are out of fold on the source. The bootstrap draws
patients of both domains and repeats everything, including the calibration.
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
from pipeline.evaluation.intervals import Interval, clopper_pearson, rate_of
from pipeline.evaluation.metrics import weighted_mean

#: Bootstrap draws of the intervals.
_DRAWS = 200
#: Names of the estimates of the accuracy, see :func:`_estimates`.
FORMULAS = ("atc", "doc", "label_shift")
#: Domain classifier AUC above which nothing is estimated. With two Gaussians of this AUC, only
#: 4 % of the source's images are like the target's.
NO_OVERLAP = 0.9
_ASSUMPTION = (
    "The estimates by confident images and by mean confidence hold if a score means the same on "
    "the target as on the source. The one by class mix holds if the images of a class look the "
    "same. The range spans all three. It cannot see label errors, another definition of the "
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
    of_source = draw_patients(source.group, rng, draws=draws, label=source.get_label())
    of_target = draw_patients(target.group, rng, draws=draws)
    start = fit_temperature_scaling(source.get_proba(), source.get_label())
    estimate = _estimates(source, target, np.ones(len(source)), np.ones(len(target)), start)
    drawn = np.stack(
        [
            # Each calibration starts from that of the data, so a few steps are enough.
            _estimates(source, target, of_source.weights(row)[0], of_target.weights(row)[0], start)
            for row in (slice(draw, draw + 1) for draw in range(draws))
        ]
    )
    intervals = [
        interval_of_draws(float(value), target, values)
        for value, values in zip(estimate, drawn.T, strict=True)
    ]
    # Patients of the target are right together as those of the source are.
    trials = rate_of(weighted_mean(~source.wrong()), source.group).trials
    trials *= target.patients / source.patients
    accuracy = [_with_sampling_error(interval, trials) for interval in intervals[: len(FORMULAS)]]
    return {
        "low": min(interval.low for interval in accuracy),
        "high": max(interval.high for interval in accuracy),
        "estimates": [
            {"method": name, **interval.numbers()}
            for name, interval in zip(FORMULAS, accuracy, strict=True)
        ],
        "prevalence": [
            {"name": name, "method": "mlls", **share.numbers()}
            for name, share in zip(classes, intervals[len(FORMULAS) :], strict=True)
        ],
        "warning": _ASSUMPTION,
    }


def without_accuracy(estimate: Mapping[str, Any]) -> dict[str, Any]:
    """The same without an accuracy, because hardly any source image is like the target's."""
    return {**estimate, "low": None, "high": None, "estimates": [], "warning": _OVERLAP}


def _with_sampling_error(expected: Interval, trials: float) -> Interval:
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
    start: "TemperatureScaling",
) -> _Shares:
    """All estimates for weights (n,) and (m,) of the rows, shape (3 + K,).

    - ``atc``: share of the target above a confidence threshold; below that threshold lies as
      large a share of the source as the head's error there (Garg et al. 2022)
    - ``doc``: the source's accuracy minus the drop of the mean confidence (Guillory et al. 2021)
    - ``label_shift``: the source's accuracy in each class, at the class mix of the target

    The class mix of the target follows them. The calibration starts from one nearby.
    """
    label, right = source.get_label(), ~source.wrong()
    calibrated = fit_temperature_scaling(source.get_proba(), label, weights=weights_s, start=start)
    proba = calibrated(target.get_proba())
    sure_s = calibrated(source.get_proba())[np.arange(len(source)), source.predicted()]
    sure_t = proba[np.arange(len(target)), target.predicted()]
    order = sure_s.argsort()
    below = weights_s[order].cumsum() <= weights_s @ ~right
    atc = np.average(sure_t >= np.append(sure_s[order], np.inf)[below.sum()], weights=weights_t)
    drop = np.average(sure_s, weights=weights_s) - np.average(sure_t, weights=weights_t)
    doc = np.clip(np.average(right, weights=weights_s) - drop, 0, 1)
    of_class, right_of_class = (np.bincount(label, w) for w in (weights_s, weights_s * right))
    mix = estimate_prior(proba, of_class / of_class.sum(), weights=weights_t)
    return np.asarray(np.r_[atc, doc, mix @ (right_of_class / of_class), mix])


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """Bias-corrected temperature scaling: softmax(slope * log p + bias), bias (K,)."""

    slope: float
    bias: _Shares

    def __call__(self, proba: NDArray[np.floating]) -> _Shares:
        """Calibrated probabilities, shape (n, K)."""
        return np.asarray(softmax(self.slope * _log_proba(proba) + self.bias, axis=1), np.float64)


def fit_temperature_scaling(
    proba: NDArray[np.floating],
    label: NDArray[np.integer],
    *,
    weights: _Shares | None = None,
    start: TemperatureScaling | None = None,
) -> TemperatureScaling:
    """Fit slope and per-class bias by maximum likelihood (BCTS, Alexandari et al. 2020).

    Args:
        proba: Shape (n, K), out of fold.
        label: Shape (n,), 0 to K - 1.
        weights: Shape (n,); 1 when left out.
        start: A calibration nearby.
    """
    weights = np.ones(len(label)) if weights is None else weights
    used = weights > 0
    logs, label, weights = _log_proba(proba[used]), label[used], weights[used]
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
    return TemperatureScaling(slope=float(theta[0]), bias=np.r_[0.0, theta[1:]])


def _log_proba(proba: NDArray[np.floating]) -> _Shares:
    return np.log(np.clip(np.asarray(proba, dtype=np.float64), _TINY, None))


def reweighted(proba: NDArray[np.floating], class_weights: NDArray[np.floating]) -> _Shares:
    """Probabilities (m, K) times the weights (K,) of the classes, as probabilities again.

    A row does not change if all its classes have weight 0, because 0 / 0 is undefined.
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
    """The target's class mix (K,) by EM (MLLS, Saerens et al. 2002).

    Two steps show where a third would lead; a longer step in that direction is taken where it
    makes the target more likely (SQUAREM, Varadhan and Roland 2008).

    Args:
        proba: Shape (m, K), calibrated source posteriors of target rows.
        source_prior: Shape (K,), all > 0.
        weights: Shape (m,); 1 when left out.
    """
    prior = np.asarray(source_prior, dtype=np.float64)
    ratio = proba / prior
    weights = np.ones(len(ratio)) if weights is None else weights

    def step(prior: _Shares) -> tuple[_Shares, float]:
        """The next class mix, and the log likelihood of this one."""
        mixture = np.clip(ratio @ prior, _TINY, None)
        updated = prior * ((weights / mixture) @ ratio)
        return updated / updated.sum(), float(weights @ np.log(mixture))

    for _ in range(_EM_STEPS):
        first, _ = step(prior)
        second, _ = step(first)
        if np.abs(second - first).max() < _EM_TOLERANCE:
            break
        change, bend = first - prior, second - 2 * first + prior
        steps, bends = (float(np.linalg.norm(x)) for x in (change, bend))
        length = max(1.0, steps / max(bends, _TINY))
        far = np.maximum(prior + 2 * length * change + length**2 * bend, second / 10)
        (after_far, at_far), (after_second, at_second) = map(step, (far / far.sum(), second))
        prior = after_far if at_far > at_second else after_second
    return np.asarray(second, dtype=np.float64)
