"""Foretell the accuracy on a target whose labels nobody has.

Several formulas, each with a patient-bootstrap interval, shown together as a range and
never without the warning: they share one assumption that the data cannot confirm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.shift.fixes.bcts import fit_calibration
from pipeline.shift.foretell.accuracy import (
    CONFUSIONS,
    ESTIMATES,
    LOWERED_BY_DRAWING,
    Case,
    expected_auroc,
)
from pipeline.shift.foretell.prevalence import PRIORS, Evidence
from pipeline.stats import percentile_interval

#: Shown wherever an estimate is shown.
WARNING = (
    "Assumes stable Y|score: that a score means on the target what it means on the source. "
    "Accuracy on unlabelled data cannot be identified without such an assumption "
    "(Garg et al. 2022). Where a shortcut breaks, these estimates come out too high."
)
#: Estimates that enter the range; ``ac`` and ``doc`` are shown for comparison only.
RANGED = tuple(name for name in ESTIMATES if name not in {"ac", "doc"})
_AUROC = "auroc"
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
    """By formula, see :data:`pipeline.shift.foretell.accuracy.ESTIMATES`."""
    low: float
    """Lowest estimate among :data:`RANGED`."""
    high: float
    """Highest of them."""
    prevalence: Mapping[str, tuple[Estimate, ...]]
    """By method, one per class."""
    confusion: Mapping[str, NDArray[np.float64]]
    """By method: share of images by (true, called) class, shape (K, K)."""
    auroc: Estimate | None
    """Expected under the probabilities (CBPE); None unless there are two classes."""
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
        name: _estimate(name, value, np.array([one[name] for one in drawn]))
        for name, value in values.items()
    }
    ranged = [known[name].estimate for name in RANGED]
    classes = source.probabilities.shape[1]
    return Forecast(
        accuracy=MappingProxyType({name: known[name] for name in ESTIMATES}),
        low=min(ranged),
        high=max(ranged),
        prevalence={name: tuple(known[f"{name}/{k}"] for k in range(classes)) for name in PRIORS},
        confusion={name: confusion(case) for name, confusion in CONFUSIONS.items()},
        auroc=known.get(_AUROC),
    )


def _estimate(name: str, value: float, drawn: NDArray[np.float64]) -> Estimate:
    if name in LOWERED_BY_DRAWING and drawn.size:
        drawn = np.clip(drawn + value - drawn.mean(), 0, 1)
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
    if case.evidence.target.shape[1] == _BINARY:
        positive = case.evidence.target[:, 1]
        numbers[_AUROC] = expected_auroc(positive, positive)
    return numbers


def _redrawn(
    source: SourceScores, target: TargetScores, rng: np.random.Generator, draws: int
) -> list[tuple[SourceScores, TargetScores]]:
    """Both domains with their patients drawn anew; draws that lack a class are left out."""
    pairs = []
    for _ in range(draws):
        s, t = _patient_rows(source.groups, rng), _patient_rows(target.groups, rng)
        if np.unique(source.labels[s]).size < source.probabilities.shape[1]:
            continue
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


def _patient_rows(groups: NDArray[Any], rng: np.random.Generator) -> NDArray[np.intp]:
    patients, member = np.unique(groups, return_inverse=True)
    times = np.bincount(rng.integers(patients.size, size=patients.size), minlength=patients.size)
    return np.repeat(np.arange(len(groups)), times[member])


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
