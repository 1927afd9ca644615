"""Calibrate class probabilities by bias-corrected temperature scaling (BCTS)."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from pipeline.data.patients import patient_folds
from pipeline.errors import StudyError, UnknownNameError
from pipeline.heads.logistic import LogisticHead, Path, solve_path
from pipeline.heads.preprocessing import times

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Bias-corrected temperature scaling: softmax(slope * log p + bias)."""

    slope: float
    """1 / temperature."""
    bias: NDArray[np.float64]
    """Shape (K,)."""

    def __call__(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return calibrated probabilities, shape (n, K)."""
        logits = self.slope * np.log(np.clip(probabilities, _TINY, None)) + self.bias
        return np.asarray(softmax(logits, axis=1))


def fit_calibration(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer]
) -> Calibration:
    """Fit slope and per-class bias by maximum likelihood (BCTS, Alexandari et al. 2020).

    Args:
        probabilities: Shape (n, K), out of fold.
        labels: Shape (n,).
    """
    logs = np.log(np.clip(probabilities, _TINY, None))
    truth = np.eye(logs.shape[1])[labels]

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = theta[0] * logs + theta[1:]
        wrong = softmax(logits, axis=1) - truth
        gradient = np.append(np.mean(np.sum(wrong * logs, axis=1)), wrong.mean(axis=0))
        return -float(np.mean(log_softmax(logits, axis=1)[truth == 1])), gradient

    start = np.append(1.0, np.zeros(logs.shape[1]))
    theta = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return Calibration(slope=float(theta[0]), bias=np.asarray(theta[1:], dtype=np.float64))


# Probabilities under another class mix.


def posterior(
    probabilities: NDArray[np.floating], class_weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Reweight the classes of each row and renormalise, shape (m, K).

    A row that is surely of classes without weight stays as it is: 0 / 0 says nothing.

    Args:
        probabilities: Shape (m, K).
        class_weights: Shape (K,), target prior over source prior.
    """
    weighted = np.asarray(probabilities * class_weights, dtype=np.float64)
    total = weighted.sum(axis=1, keepdims=True)
    unweighted = np.array(probabilities, dtype=np.float64)
    return np.asarray(np.divide(weighted, total, out=unweighted, where=total > 0))


# What every fix starts from (the labelled source) and what it returns (a predictor).


Rows = NDArray[np.floating]
"""Shape (n, d): rows of features."""
Parts = Sequence[NDArray[np.intp]]
"""Sets of rows of a target, each to be adapted to by itself."""


@dataclass(frozen=True, kw_only=True)
class FixSettings:
    """Default hyper-parameters of all fixes; part of the plan that is hashed."""

    inverse_penalty: float = 0.01
    """C of the logistic head on standardised features."""
    pseudo_count: float = 16.0
    """F1: how many source rows the target's own statistics are mixed with."""
    components: int = 128
    """F2, F3: principal components in which covariances are aligned."""
    ratio_exponent: float = 0.5
    """F6: power of the density ratio; 0 is no weighting, 1 the full ratio."""
    ratio_clip: float = 0.95
    """F6: quantile at which the weights are clipped."""
    calibration_folds: int = 5
    """F1b, F7: folds, by patient, of the out-of-fold scores that calibrate the head."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """An adapted model: raw target features in, class probabilities out."""

    transform: Callable[[Rows], Rows]
    """Raw features (n, d) -> features in the head's space (n, e)."""
    score: Callable[[Rows], NDArray[np.float64]]
    """Features in the head's space -> probabilities (n, K)."""
    class_weights: NDArray[np.float64] | None = None
    """Shape (K,): target prior over source prior; None for no correction."""
    notes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Numbers to print beside the row, such as the effective sample size."""

    def __call__(self, features: Rows) -> NDArray[np.float64]:
        """Return class probabilities, shape (n, K), for raw features of shape (n, d)."""
        probabilities = self.score(self.transform(features))
        if self.class_weights is None:
            return probabilities
        return posterior(probabilities, self.class_weights)


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The standardised source in its own principal axes."""

    directions: NDArray[np.float64]
    """Shape (d, c), orthonormal columns."""
    rows: NDArray[np.float64]
    """Shape (n, c)."""
    covariance: NDArray[np.float64]
    """Shape (c, c), of the rows, shrunk."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The labelled domain. What several fixes need of it is computed once, when asked for."""

    features: Rows
    """Shape (n, d), raw."""
    labels: NDArray[np.integer]
    """Shape (n,), 0 to K - 1, every class present."""
    groups: NDArray[Any]
    """Shape (n,), patient ids."""
    settings: FixSettings = field(default_factory=FixSettings)
    """Hyper-parameters."""

    def __post_init__(self) -> None:
        """Refuse labels that do not number the classes.

        Raises:
            StudyError: Lengths differ, fewer than two classes, or a class has no row.
        """
        if not len(self.features) == len(self.labels) == len(self.groups):
            raise StudyError("features, labels and groups of the source differ in length")
        counts = np.bincount(self.labels)
        if counts.size < 2 or not counts.all():
            raise StudyError(
                f"source labels must use every number from 0 to K - 1, counts are {counts.tolist()}"
            )

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """Shape (d,)."""
        return np.asarray(self.features.mean(axis=0, dtype=np.float64))

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """Shape (d,): standard deviations, 1 where a feature does not vary."""
        deviation = self.features.std(axis=0, dtype=np.float64)
        return np.where(deviation > 0, deviation, 1.0)

    @cached_property
    def prior(self) -> NDArray[np.float64]:
        """Shape (K,): share of each class."""
        return np.asarray(np.bincount(self.labels) / len(self.labels))

    def standardise(self, features: Rows) -> NDArray[np.float64]:
        """Scale raw features by the source's mean and standard deviation, shape (n, d)."""
        return np.asarray((features - self.mean) / self.scale, dtype=np.float64)

    @cached_property
    def standard(self) -> NDArray[np.float64]:
        """Shape (n, d): the source's own rows, standardised."""
        return self.standardise(self.features)

    @property
    def axes(self) -> "Axes":
        """Principal axes of the standardised source, for as many components as are set."""
        count = min(self.settings.components, *self.features.shape)
        if count not in self._axes:
            solver = PCA(count, svd_solver="randomized", random_state=0)
            directions = np.asarray(solver.fit(self.standard).components_.T, dtype=np.float64)
            rows = self.standard @ directions
            self._axes[count] = Axes(
                directions=directions, rows=rows, covariance=ledoit_wolf(rows)[0]
            )
        return self._axes[count]

    @cached_property
    def _axes(self) -> dict[int, "Axes"]:
        """By their number: several fixes and values of settings ask for the same."""
        return {}

    @cached_property
    def head(self) -> LogisticHead:
        """The head that knows only the source, on standardised features."""
        return self.fit(self.standard)

    def fit(
        self,
        rows: Rows,
        *,
        labels: NDArray[np.integer] | None = None,
        weights: NDArray[np.floating] | None = None,
    ) -> LogisticHead:
        """Fit a logistic head.

        Args:
            rows: Shape (m, e), scaled to about unit variance.
            labels: Shape (m,); the source's own when left out.
            weights: Shape (m,), weight of each row; 1 when left out.
        """
        head = LogisticHead(C=self.settings.inverse_penalty)
        return head.fit(rows, self.labels if labels is None else labels, sample_weight=weights)

    def weighted_heads(self, weights: NDArray[np.number]) -> Path:
        """Fit several heads to the source's own rows at once; the same weights only once.

        Args:
            weights: Shape (V, n), >= 0: how much each row counts for each head.

        Returns:
            The heads, by :meth:`~pipeline.heads.logistic.Path.proba` on standardised rows.
        """
        key = hashlib.sha256(np.ascontiguousarray(weights).tobytes()).hexdigest()
        if key not in self._fitted:
            self._fitted[key] = solve_path(
                self.standard.astype(np.float32),
                self.labels,
                C=np.full(len(weights), self.settings.inverse_penalty),
                weights=weights.astype(np.float64),
            )
        return self._fitted[key]

    @cached_property
    def _fitted(self) -> dict[str, Path]:
        """What :meth:`weighted_heads` has fitted: a fix that looks at no target asks again."""
        return {}

    @cached_property
    def out_of_fold(self) -> NDArray[np.float64]:
        """Shape (n, K): probabilities of heads that did not see the row's patient.

        Raises:
            StudyError: A class has too few patients for folds.
        """
        most = self.settings.calibration_folds
        return self.held_out(patient_folds(self.labels, self.groups, folds=most, seed=0))

    def held_out(
        self, folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]]
    ) -> NDArray[np.float64]:
        """Shape (n, K): probabilities of each row by a head that was fitted without its fold.

        Args:
            folds: Row numbers (in, out); each row is out once.
        """
        probabilities = np.zeros((len(self.labels), self.prior.size))
        for fit, held in folds:
            head = self.fit(self.standard[fit], labels=self.labels[fit])
            probabilities[np.ix_(held, head.classes_)] = head.predict_proba(self.standard[held])
        return probabilities

    @cached_property
    def calibration(self) -> Calibration:
        """What makes the head's probabilities honest on the source."""
        return fit_calibration(self.out_of_fold, self.labels)

    def calibrated(self, rows: Rows) -> NDArray[np.float64]:
        """Return the head's calibrated probabilities, shape (m, K), for standardised rows."""
        return self.calibration(self.head.predict_proba(rows))


Fix = Callable[[Source, Rows, np.random.Generator], Predictor]
"""Source, raw target features (m, d), randomness -> predictor. No target labels."""


# Correct for another class mix: estimate the target's prior without its labels.


_TINY_LABEL_SHIFT = 1e-12
_EM_STEPS = 1000
_EM_TOLERANCE = 1e-9
#: Rounds of F1b: each moves the statistics and the prior together.
_BALANCE_ROUNDS = 50


def estimate_prior(
    probabilities: NDArray[np.floating], source_prior: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the target's class mix by expectation maximisation (MLLS, Saerens 2002).

    Args:
        probabilities: Shape (m, K), calibrated source posteriors of target rows.
        source_prior: Shape (K,), all > 0.

    Returns:
        Shape (K,), sums to 1.
    """
    prior = np.asarray(source_prior, dtype=np.float64)
    for _ in range(_EM_STEPS):
        updated = posterior(probabilities, prior / source_prior).mean(axis=0)
        if np.abs(updated - prior).max() < _EM_TOLERANCE:
            break
        prior = updated
    return np.asarray(updated, dtype=np.float64)


def prior_shift(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F7: calibrate the head on the source and correct it for the target's class mix.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    prior = estimate_prior(source.calibrated(source.standardise(target)), source.prior)
    return Predictor(
        transform=source.standardise,
        score=source.calibrated,
        class_weights=prior / source.prior,
        notes={f"prior{k}": float(share) for k, share in enumerate(prior)},
    )


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """The target's statistics at the source's class mix, and its own class mix."""

    mean: NDArray[np.float64]
    """Shape (d,), of raw features."""
    scale: NDArray[np.float64]
    """Shape (d,), > 0."""
    prior: NDArray[np.float64]
    """Shape (K,)."""

    def standardise(self, features: Rows) -> NDArray[np.float64]:
        """Scale raw features by these statistics, shape (n, d)."""
        return np.asarray((features - self.mean) / self.scale, dtype=np.float64)


def balanced_statistics(source: Source, target: Rows) -> Balanced:
    """Estimate target mean and spread as if it had the source's class mix.

    Plain target statistics confuse "more ill patients" with "brighter images". Here each
    class has its own mean and variance, weighted by the head's responsibilities, and the
    classes are put together at the source's shares. Responsibilities and statistics are
    improved in turns, starting from the plain statistics. The head is calibrated first:
    with a timid one (strong penalty) the turns stop short of the target's class mix.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    rows = np.asarray(target, dtype=np.float64)
    state = Balanced(mean=rows.mean(axis=0), scale=_positive(rows.std(axis=0)), prior=source.prior)
    for _ in range(_BALANCE_ROUNDS):
        probabilities = source.calibrated(state.standardise(rows))
        responsible = posterior(probabilities, state.prior / source.prior)
        totals = np.clip(responsible.sum(axis=0), _TINY_LABEL_SHIFT, None)[:, None]
        means = responsible.T @ rows / totals
        variances = np.clip(responsible.T @ rows**2 / totals - means**2, 0, None)
        mean = source.prior @ means
        variance = source.prior @ (variances + (means - mean) ** 2)
        state = Balanced(
            mean=mean, scale=_positive(np.sqrt(variance)), prior=responsible.mean(axis=0)
        )
    return state


def balanced_standardisation(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F1b: standardise the target at the source's class mix, then correct for its own mix.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    state = balanced_statistics(source, target)
    return Predictor(
        transform=state.standardise,
        score=source.calibrated,
        class_weights=state.prior / source.prior,
        notes={f"prior{k}": float(share) for k, share in enumerate(state.prior)},
    )


def _positive(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(scale > 0, scale, 1.0)


# Make the domains' first two moments alike, without any label of the target.


CovarianceMap = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def standardisation(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F1: standardise the target by its own statistics, mixed with the source's.

    mu = (N mu_S + m mu_T) / (N + m), the variance alike (Schneider et al. 2020).

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    rows = np.asarray(target, dtype=np.float64)
    own = len(rows) / (len(rows) + source.settings.pseudo_count)
    mean = own * rows.mean(axis=0) + (1 - own) * source.mean
    scale = np.sqrt(own * rows.var(axis=0) + (1 - own) * source.scale**2)
    return Predictor(
        transform=lambda features: (features - mean) / scale, score=source.head.predict_proba
    )


def matrix_power(covariance: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Return a power of a symmetric positive definite matrix, shape (d, d)."""
    values, vectors = np.linalg.eigh(covariance)
    floor = values.max() * np.finfo(np.float64).eps
    return np.asarray((vectors * np.maximum(values, floor) ** exponent) @ vectors.T)


def recolouring(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return CORAL's map Cs^-1/2 Ct^1/2 (Sun et al. 2016), applied from the right.

    Args:
        source: Covariance of the source, shape (d, d), positive definite.
        target: Covariance of the target.
    """
    return matrix_power(source, -0.5) @ matrix_power(target, 0.5)


def monge(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the optimal linear transport Cs^-1/2 (Cs^1/2 Ct Cs^1/2)^1/2 Cs^-1/2.

    Of all linear maps that carry one Gaussian to the other it moves rows least
    (Flamary et al. 2020); symmetric.

    Args:
        source: Covariance of the source, shape (d, d), positive definite.
        target: Covariance of the target.
    """
    root, inverse = matrix_power(source, 0.5), matrix_power(source, -0.5)
    return inverse @ matrix_power(root @ target @ root, 0.5) @ inverse


def coral(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F2: give the source the target's mean and covariance, and fit the head there.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    return _moved(source, target, recolouring)


def linear_transport(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F3: carry the source to the target by linear optimal transport, and fit the head there.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    return _moved(source, target, monge)


def _moved(source: Source, target: Rows, map_between: CovarianceMap) -> Predictor:
    """Carry the source's rows over by a map made from the two shrunk covariances."""
    axes = source.axes
    rows_t = source.standardise(target) @ axes.directions
    carry = map_between(axes.covariance, ledoit_wolf(rows_t)[0])
    moved = (axes.rows - axes.rows.mean(axis=0)) @ carry + rows_t.mean(axis=0)
    return Predictor(
        transform=lambda features: source.standardise(features) @ axes.directions,
        score=source.fit(moved).predict_proba,
    )


# The fixes that never see a target label, in one table.


def source_only(source: Source, _target: Rows, _rng: np.random.Generator) -> Predictor:
    """F0: the head as it left the source, the baseline of every other row.

    Args:
        source: The labelled domain.
    """
    return Predictor(transform=source.standardise, score=source.head.predict_proba)


def importance_weighting(source: Source, target: Rows, rng: np.random.Generator) -> Predictor:
    """F6: weight source rows by how much they look like the target (Shimodaira 2000).

    The density ratio is a logistic domain classifier's odds, flattened by an exponent and
    clipped. It acts through the penalised head only: an unregularised one would ignore
    the weights (Byrd and Lipton 2019).

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
        rng: Not used.

    Returns:
        The predictor; its notes hold the effective number of source rows.
    """
    return importance_weightings(source, target, [np.arange(len(target))], [rng])[0]


def importance_weightings(
    source: Source, target: Rows, parts: Parts, _rngs: Sequence[np.random.Generator]
) -> list[Predictor]:
    """Adapt :func:`importance_weighting` to several parts of a target at once.

    The parts differ in the weights of rows alone, so their domain classifiers are one
    batch and their heads another. Results equal those of one part at a time up to the
    solver's tolerance, 1e-5 of the coefficients.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
        parts: V sets of rows of the target.

    Returns:
        One predictor for each part.
    """
    rows = np.vstack([source.standard, source.standardise(target)]).astype(np.float32)
    n = len(source.standard)
    balance = np.zeros((len(parts), len(rows)))
    for weights, part in zip(balance, parts, strict=True):
        weights[:n] = (n + len(part)) / (2 * n)
        weights[n + part] = (n + len(part)) / (2 * len(part))
    classifiers = solve_path(
        rows,
        np.repeat([0, 1], [n, len(rows) - n]),
        C=np.full(len(parts), source.settings.inverse_penalty),
        weights=balance,
    )
    scores = times(rows[:n], classifiers.coef[:, 0].T) + classifiers.intercept[:, 0]
    ratios = np.exp(scores.T) ** source.settings.ratio_exponent
    limit = np.quantile(ratios, source.settings.ratio_clip, axis=1, keepdims=True)
    ratios = np.minimum(ratios, limit)
    ratios /= ratios.mean(axis=1, keepdims=True)
    heads = source.weighted_heads(ratios)
    return [
        Predictor(
            transform=source.standardise,
            score=_only(heads, v),
            notes={"effective_rows": float(ratio.sum() ** 2 / (ratio**2).sum())},
        )
        for v, ratio in enumerate(ratios)
    ]


def _only(heads: Path, v: int) -> Callable[[Rows], NDArray[np.float64]]:
    head = heads.some(slice(v, v + 1))
    return lambda rows: head.proba(rows)[0]


#: Every fix that needs nothing beyond headrace's own dependencies.
FIXES: Mapping[str, Fix] = MappingProxyType(
    {
        "source_only": source_only,
        "standardisation": standardisation,
        "balanced_standardisation": balanced_standardisation,
        "coral": coral,
        "linear_transport": linear_transport,
        "importance_weighting": importance_weighting,
        "prior_shift": prior_shift,
    }
)


#: Fixes that adapt to several parts of a target at once, which is faster than one by one.
TOGETHER: Mapping[
    str, Callable[[Source, Rows, Parts, Sequence[np.random.Generator]], list[Predictor]]
] = MappingProxyType({"importance_weighting": importance_weightings})


def fix_named(name: str) -> Fix:
    """Return a fix of :data:`FIXES`.

    Args:
        name: Name in the table.

    Raises:
        UnknownNameError: No such fix; the message lists those that there are.
    """
    if name not in FIXES:
        raise UnknownNameError("fix", name, FIXES)
    return FIXES[name]
