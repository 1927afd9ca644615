"""What a clinician asks of a head with two classes: is it worth using, and what does it say?

Net benefit at stated thresholds (decision curves: Vickers and Elkin 2006), likelihood ratios
(Deeks and Altman 2004), and whether as many are ill as the head says (calibration in the
large: Van Calster et al. 2019).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import PatientDraws
from pipeline.evaluation.bootstrap import mean_bounds
from pipeline.evaluation.intervals import Share, share_of
from pipeline.evaluation.metrics import METRICS

#: Probability from which on one would treat: one missed patient then weighs as much as
#: 19, 9, 4, 2.3 or 1 treated in vain.
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)


def clinical(data: DomainData, drawn: PatientDraws) -> dict[str, Any] | None:
    """Decision curve, likelihood ratios and calibration in the large; None for several classes.

    Args:
        data: Rows with labels and probabilities ``(n, 2)``.
        drawn: Patients of these rows.
    """
    label, positive = data.labelled(), data.scored()[:, 1]
    if data.scored().shape[1] != 2 or np.unique(label).size < 2:
        return None
    low, high = mean_bounds(label - positive, drawn)
    recall = {
        metric: share_of(METRICS[metric](label, data.scored()), data.group, data.group[label == of])
        for metric, of in (("sensitivity", 1), ("specificity", 0))
    }
    curve = [
        {
            "threshold": threshold,
            "head": net_benefit(label, positive, threshold),
            "treat_all": net_benefit(label, np.ones(len(label)), threshold),
        }
        for threshold in THRESHOLDS
    ]
    ratios = _likelihood_ratios(recall["sensitivity"], recall["specificity"])
    names = ("estimate", "low", "high")
    large = (float((label - positive).mean()), low, high)
    return {
        "net_benefit": curve,
        **{name: dict(zip(names, ratio, strict=True)) for name, ratio in ratios.items()},
        "observed_minus_predicted": dict(zip(names, large, strict=True)),
    }


def net_benefit(
    label: NDArray[np.integer], positive: NDArray[np.floating], threshold: float
) -> float:
    """True positives less weighted false positives, a share of all images; nobody treated: 0.

    ``positive`` are probabilities of class 1; one treats from the ``threshold`` on, in (0, 1).
    """
    treated = positive >= threshold
    weight = threshold / (1 - threshold)
    return float(((label == 1) & treated).mean() - weight * ((label == 0) & treated).mean())


def _likelihood_ratios(
    sensitivity: Share, specificity: Share
) -> dict[str, tuple[float, float, float]]:
    """Estimate and 95 % interval of LR+ and LR-; infinite where the other group is never called.

    The interval is MOVER's of the difference of two logarithms (Zou and Donner 2008).
    """
    up, down = sensitivity, specificity
    (l1, u1), (l0, u0) = up.bounds(), down.bounds()
    return {
        "lr_positive": _ratio((up.estimate, l1, u1), (1 - down.estimate, 1 - u0, 1 - l0)),
        "lr_negative": _ratio((1 - up.estimate, 1 - u1, 1 - l1), (down.estimate, l0, u0)),
    }


def _ratio(
    over: tuple[float, float, float], under: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Estimate and ends of a ratio of two independent rates, each with its own ends."""
    (a, a_low, a_high), (b, b_low, b_high) = ((_log(x) for x in each) for each in (over, under))
    gap = a - b if math.isfinite(a) or math.isfinite(b) else math.nan
    # Where one of both is 0 its distance to its end has no length: the ends themselves then.
    low = a - b - math.hypot(a - a_low, b_high - b) if _finite(a, b, a_low) else a_low - b_high
    high = a - b + math.hypot(a_high - a, b - b_low) if _finite(a, b, b_low) else a_high - b_low
    return _exp(gap), _exp(low), _exp(high)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _finite(*values: float) -> bool:
    return all(map(math.isfinite, values))
