"""Make the domains' first two moments alike, without any label of the target.

All of these also remove what a different class mix does to the moments; where the mix
changes they must be read beside F1b and F7.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.shift.fixes.adaptation import Predictor, Rows, Source
from pipeline.shift.fixes.class_mix import posterior
from pipeline.shift.fixes.label_shift import estimate_prior
from pipeline.two_samples.erasure import class_means, fit_eraser
from pipeline.two_samples.gaussians import shrunk_covariance

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


def erased_domain(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F10: erase the direction between the domains (LEACE), and fit the head there.

    The target's mean is taken at the source's class mix: a plain mean would put the task
    itself into the erased direction as soon as one domain has more ill patients.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    rows = source.standardise(target)
    probabilities = source.calibrated(rows)
    prior = estimate_prior(probabilities, source.prior)
    means = class_means(rows, posterior(probabilities, prior / source.prior))
    pooled = np.vstack([source.standard, rows])
    eraser = fit_eraser(pooled, source.standard.mean(axis=0), source.prior @ means)
    return Predictor(
        transform=lambda features: eraser(source.standardise(features)),
        score=source.fit(eraser(source.standard)).predict_proba,
    )


def _moved(source: Source, target: Rows, map_between: CovarianceMap) -> Predictor:
    """Carry the source's rows over by a map made from the two shrunk covariances."""
    axes = source.axes
    rows_t = source.standardise(target) @ axes.directions
    carry = map_between(axes.covariance, shrunk_covariance(rows_t))
    moved = (axes.rows - axes.rows.mean(axis=0)) @ carry + rows_t.mean(axis=0)
    return Predictor(
        transform=lambda features: source.standardise(features) @ axes.directions,
        score=source.fit(moved).predict_proba,
    )
