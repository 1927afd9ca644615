"""Correct for another class mix: estimate the target's prior without its labels.

p_T(y|x) is proportional to p_S(y|x) q(y) / p(y) when the images of a class look the same
in both domains (Saerens et al. 2002).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.shift.fixes.adaptation import Predictor, Rows, Source
from pipeline.shift.fixes.class_mix import posterior

_TINY = 1e-12
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
        totals = np.clip(responsible.sum(axis=0), _TINY, None)[:, None]
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
