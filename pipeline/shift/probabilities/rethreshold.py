"""Thresholds for a target that need none of its labels, and what each assumes."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from pipeline.shift.probabilities.operating import Scores

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
