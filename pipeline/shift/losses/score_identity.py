"""Split a loss at the confidence: what the scores foretold, and what they did not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.shift.losses.gaps import Gap, family, loss_between
from pipeline.shift.losses.labelled import Labelled, paired_weights
from pipeline.stats.isotonic import fit_monotone


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
    r_s = fit_monotone(confident_s, source.wrong, increasing=False)(confident_t)
    r_t = fit_monotone(confident_t, target.wrong, increasing=False)(confident_t)
    expected = []
    for w_s, w_t in paired_weights(source, target):
        curve = fit_monotone(confident_s, source.wrong, increasing=False, weights=w_s)
        expected.append(w_t @ curve(confident_t) / w_t.sum())
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
