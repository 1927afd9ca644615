"""Formulas for the accuracy on a target without its labels.

They read calibrated probabilities, judge the calls that the head makes and assume that
the outcome given the score stays what it is on the source.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import draw_patients
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import percentile_interval
from pipeline.shift.adapt import fit_calibration
from pipeline.shift.prevalence import PRIORS, Evidence

_BINARY = 2
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: what is known of both domains, and a guess at the target's class mix."""

    evidence: Evidence
    """Probabilities of both domains and source labels."""
    prior: Shares
    """Shape (K,): class mix of the target by MLLS."""

    def right(self) -> NDArray[np.bool_]:
        """Whether each source image is right, shape (n,)."""
        return np.asarray(self.evidence.source_calls == self.evidence.labels)

    def sure(self) -> tuple[Shares, Shares]:
        """Calibrated probability of the called class on source and target, (n,) and (m,)."""
        known = self.evidence
        return _of_class(known.source, known.source_calls), _of_class(
            known.target, known.target_calls
        )


def average_confidence(case: Case) -> float:
    """AC: mean probability of the called class. CBPE's expected accuracy is the same number."""
    return float(case.sure()[1].mean())


def difference_of_confidences(case: Case) -> float:
    """DoC: acc_S - (AC_S - AC_T) (Guillory 2021)."""
    drop = float(case.sure()[0].mean()) - average_confidence(case)
    return _rate(float(case.right().mean()) - drop)


def label_shift(case: Case) -> float:
    """Share of each class that the source's head gets right, at the class mix of the target."""
    labels, right = case.evidence.labels, case.right()
    recall = np.bincount(labels, weights=right) / np.bincount(labels)
    return float(recall @ case.prior)


def thresholded_confidence(case: Case) -> float:
    """ATC-MC: share of the target above the source's error quantile (Garg 2022)."""
    known = case.evidence
    return _share_above(known.source.max(axis=1), case.right(), known.target.max(axis=1))


#: To add an estimate of the accuracy, write a function above and one line here.
ESTIMATES: Mapping[str, Callable[[Case], float]] = MappingProxyType(
    {
        "doc": difference_of_confidences,
        "atc": thresholded_confidence,
        "label_shift": label_shift,
    }
)


def _of_class(probabilities: Shares, classes: NDArray[np.intp]) -> Shares:
    return np.asarray(probabilities[np.arange(len(classes)), classes])


def _above(score: Callable[[Shares], Shares], case: Case) -> float:
    return _share_above(score(case.evidence.source), case.right(), score(case.evidence.target))


def _share_above(source: Shares, right: NDArray[np.bool_], target: Shares) -> float:
    """Share of ``target`` at or above t, where the share of ``source`` below t is its error."""
    errors = int((~right).sum())
    if errors == len(source):
        return 0.0
    return float((target >= np.sort(source)[errors]).mean())


def _rate(value: float) -> float:
    return min(1.0, max(0.0, value))


# Foretell the accuracy on a target whose labels nobody has.


#: Shown wherever an estimate is shown.
WARNING = (
    "Assumes stable Y|score: that a score means on the target what it means on the source. "
    "Accuracy on unlabelled data cannot be identified without such an assumption "
    "(Garg et al. 2022). Where a shortcut breaks, these estimates come out too high."
)
#: Estimates that enter the range.
RANGED = tuple(ESTIMATES)
_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class SourceScores:
    """What is known of the labelled domain."""

    probabilities: NDArray[np.floating]
    """Shape (n, K), out of fold."""
    labels: NDArray[np.integer]
    """Shape (n,), 0 to K - 1, every class present."""
    groups: NDArray[Any]
    """Shape (n,), patients."""


@dataclass(frozen=True, kw_only=True)
class TargetScores:
    """What is known of the other domain: no labels."""

    probabilities: NDArray[np.floating]
    """Shape (m, K), of the same head."""
    groups: NDArray[Any]
    """Shape (m,), patients."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its patient-bootstrap interval; sampling only, not the assumption."""

    estimate: float
    """On the data themselves."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the scores foretell of a target."""

    accuracy: Mapping[str, Estimate]
    """By formula, see :data:`pipeline.shift.label_free.ESTIMATES`."""
    low: float
    """Lowest estimate among :data:`RANGED`."""
    high: float
    """Highest of them."""
    prevalence: Mapping[str, tuple[Estimate, ...]]
    """By method, one per class."""
    warning: str = WARNING
    """To be shown beside the numbers."""


def forecast(
    source: SourceScores, target: TargetScores, rng: np.random.Generator, draws: int = 200
) -> Forecast:
    """Foretell accuracy, prevalence and confusion on an unlabelled target.

    The head's probabilities are calibrated on the source first (BCTS). A draw resamples
    the patients of both domains and repeats everything, calibration included.

    Args:
        source: The labelled domain.
        target: The unlabelled one.
        rng: Source of the draws.
        draws: Number of draws.

    Raises:
        StudyError: The domains do not fit, or a class is absent from the source.
    """
    _refuse_misfit(source, target)
    case = _case(source, target)
    values = _numbers(case)
    drawn = [_numbers(_case(*pair)) for pair in _redrawn(source, target, rng, draws)]
    known = {
        name: _estimate(value, np.array([one[name] for one in drawn]))
        for name, value in values.items()
    }
    ranged = [known[name].estimate for name in RANGED]
    classes = source.probabilities.shape[1]
    return Forecast(
        accuracy=MappingProxyType({name: known[name] for name in ESTIMATES}),
        low=min(ranged),
        high=max(ranged),
        prevalence={name: tuple(known[f"{name}/{k}"] for k in range(classes)) for name in PRIORS},
    )


def _estimate(value: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = percentile_interval(drawn)
    return Estimate(estimate=value, low=low, high=high)


def _case(source: SourceScores, target: TargetScores) -> Case:
    calibrate = fit_calibration(source.probabilities, source.labels)
    evidence = Evidence(
        source_given=source.probabilities,
        target_given=target.probabilities,
        source=calibrate(source.probabilities),
        target=calibrate(target.probabilities),
        labels=source.labels,
    )
    return Case(evidence=evidence, prior=PRIORS["mlls_em"](evidence))


def _numbers(case: Case) -> dict[str, float]:
    """Every single number that gets an interval, by name."""
    numbers = {name: estimate(case) for name, estimate in ESTIMATES.items()}
    for name, prior in PRIORS.items():
        shares = case.prior if name == "mlls_em" else prior(case.evidence)
        numbers |= {f"{name}/{k}": float(share) for k, share in enumerate(shares)}
    return numbers


def _redrawn(
    source: SourceScores, target: TargetScores, rng: np.random.Generator, draws: int
) -> list[tuple[SourceScores, TargetScores]]:
    """Both domains with their patients drawn anew; every draw of the source has every class."""
    drawn = (
        draw_patients(source.groups, rng, draws=draws, label=source.labels),
        draw_patients(target.groups, rng, draws=draws),
    )
    pairs = []
    for which in range(draws):
        s, t = (one.rows(which) for one in drawn)
        pairs.append(
            (
                SourceScores(
                    probabilities=source.probabilities[s],
                    labels=source.labels[s],
                    groups=source.groups[s],
                ),
                TargetScores(probabilities=target.probabilities[t], groups=target.groups[t]),
            )
        )
    return pairs


def _refuse_misfit(source: SourceScores, target: TargetScores) -> None:
    classes = source.probabilities.shape[1]
    if target.probabilities.shape[1] != classes:
        raise StudyError(
            f"source and target have {classes} and {target.probabilities.shape[1]} classes: "
            "use the probabilities of one head for both"
        )
    present = np.unique(source.labels)
    if present.size != classes or not len(target.probabilities):
        raise StudyError(
            f"a forecast needs every class in the source and an image in the target; got classes "
            f"{present.tolist()} of {classes} and {len(target.probabilities)} images"
        )
