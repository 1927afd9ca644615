"""Split a loss at the confidence: what the scores foretold, and what they did not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from pipeline.data.patients import DRAWS
from pipeline.randomness import stream
from pipeline.shift.domains import Cohort
from pipeline.shift.effects import (
    Gap,
    Labelled,
    family,
    labelled,
    loss,
    loss_between,
    paired_weights,
)
from pipeline.shift.threshold import Scored, ThresholdSplit, threshold_split


@dataclass(frozen=True, kw_only=True)
class ScoreIdentity:
    """The loss, split by the error given the confidence."""

    terms: Mapping[str, Gap]
    """``confidence_shift`` = E_T[r_S] - e_S and ``y_given_score`` = E_T[r_T - r_S]."""
    expected_error: float
    """E_T[r_S]: the error that the source's curve foretells (importance mapping)."""


def score_identity(source: Labelled, target: Labelled) -> ScoreIdentity:
    """Split the loss by r, the isotonic error given the confidence in each domain.

    e_T - E_T[r_S] = E_T[r_T - r_S] exactly, because pooling keeps the mean. So the second
    term is what every label-free estimate that maps scores to errors must miss.

    Args:
        source: The labelled domain, out of fold.
        target: The other domain.
    """
    confident_s, confident_t = source.confidence(), target.confidence()
    curve = IsotonicRegression(increasing=False, out_of_bounds="clip")
    r_s = curve.fit(confident_s, source.wrong).predict(confident_t)
    r_t = curve.fit(confident_t, target.wrong).predict(confident_t)
    expected = []
    for w_s, w_t in paired_weights(source, target):
        curve.fit(confident_s, source.wrong, sample_weight=w_s)
        expected.append(w_t @ curve.predict(confident_t) / w_t.sum())
    drawn = np.array(expected)
    terms = family(
        {
            "confidence_shift": float(r_s.mean()) - source.error(),
            "y_given_score": float((r_t - r_s).mean()),
        },
        {
            "confidence_shift": drawn - source.drawn_error(),
            "y_given_score": target.drawn_error() - drawn,
        },
    )
    terms = {
        "confidence_shift": loss_between(source.seen, None, terms["confidence_shift"]),
        "y_given_score": loss_between(None, target.seen, terms["y_given_score"]),
    }
    return ScoreIdentity(terms=terms, expected_error=float(r_s.mean()))


# Take the loss between two domains apart in several ways that need the target's labels.


_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class DecomposeSettings:
    """Settings of the decomposition."""

    draws: int = DRAWS
    """Patient-bootstrap draws."""
    seed: int = 0
    """Seed of draws, halves and folds."""
    threshold: float = 0.5
    """Threshold on the second class's probability that is brought from the source."""


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """One loss seen in several ways."""

    total: Gap
    """e_T - e_S by the most probable class."""
    kitagawa: Mapping[str, Gap]
    """``mix``: other class shares; ``rate``: other errors within the classes."""
    score: ScoreIdentity
    """By confidence."""
    threshold: ThresholdSplit | None
    """None unless there are two classes and both domains show both."""


def decompose(
    source: Cohort, target: Cohort, settings: DecomposeSettings | None = None
) -> Decomposition:
    """Take the loss from source to target apart.

    Args:
        source: Features and out-of-fold probabilities of the source, with labels.
        target: The same of the target, with labels.
        settings: Draws, seed and refusals.

    Raises:
        StudyError: Labels are absent, or a domain has fewer than two patients.
    """
    how = settings or DecomposeSettings()
    s = labelled(source, stream("source", how.seed), how.draws)
    t = labelled(target, stream("target", how.seed), how.draws)
    return Decomposition(
        total=loss(s, t),
        kitagawa=kitagawa(s, t),
        score=score_identity(s, t),
        threshold=threshold_terms(s, t, how),
    )


def kitagawa(source: Labelled, target: Labelled) -> dict[str, Gap]:
    """Split the loss into class mix and error within classes (Kitagawa 1955).

    mix = sum_k (q_k - p_k)(eP_k + eQ_k) / 2 and rate = sum_k (eQ_k - eP_k)(p_k + q_k) / 2
    with p, q the class shares and eP, eQ the errors within each class: the Shapley value
    of the changes {P(Y), P(X|Y)} (Zhang et al., arXiv 2210.10769). A class that one
    domain lacks is taken to have the other's error there, so its loss counts as mix.

    Args:
        source: The labelled domain, out of fold.
        target: The other domain.

    Returns:
        ``mix`` and ``rate``.
    """
    (p, wrong_p), (q, wrong_q) = _class_shares(source), _class_shares(target)
    e_p, e_q = _within(wrong_p, p), _within(wrong_q, q)
    e_p, e_q = np.where(p > 0, e_p, e_q), np.where(q > 0, e_q, e_p)
    terms = {
        "mix": ((q - p) * (e_p + e_q) / 2).sum(axis=0),
        "rate": ((e_q - e_p) * (p + q) / 2).sum(axis=0),
    }
    found = family(
        {name: float(values[0]) for name, values in terms.items()},
        {name: values[1:] for name, values in terms.items()},
    )
    # What a class without an error may yet hold is in the rate; the mix weighs errors seen.
    return {**found, "rate": loss_between(source.seen, target.seen, found["rate"])}


def threshold_terms(s: Labelled, t: Labelled, how: DecomposeSettings) -> ThresholdSplit | None:
    """Split the loss at the target's own best threshold.

    Args:
        s: The source, out of fold.
        t: The target.
        how: Threshold and seed.

    Returns:
        None unless there are two classes and both domains show both.
    """
    both = all(np.unique(side.labels).size == _BINARY for side in (s, t))
    if s.cohort.probabilities.shape[1] != _BINARY or not both:
        return None
    return threshold_split(_scored(s), _scored(t), stream("halves", how.seed), how.threshold)


def _scored(side: Labelled) -> Scored:
    return Scored(
        score=side.cohort.probabilities[:, 1],
        positive=side.labels == 1,
        groups=side.cohort.groups,
        draws=side.draws,
    )


def _class_shares(side: Labelled) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of each class and of its errors, ``(K, 1 + B)`` each; column 0 is undrawn."""
    classes = range(side.cohort.probabilities.shape[1])
    rows = np.ones_like(side.wrong)
    shares = [
        np.stack([_shares(side, hit & (side.labels == k)) for k in classes])
        for hit in (rows, side.wrong)
    ]
    return shares[0], shares[1]


def _shares(side: Labelled, hit: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.append(hit.mean(), side.draws.mean(hit))


def _within(wrong: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(wrong, share, out=np.zeros_like(wrong), where=share > 0)
