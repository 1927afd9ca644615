"""Acquisition differences: which measures of the images differ between two domains.

Measures are compared within each class, so that more ill patients do not count as another
exposure. A difference is named only if its whole simultaneous interval lies beyond half a standard
deviation: in large data sets everything differs a little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, PatientDraws, draw_patients
from pipeline.evaluation.bootstrap import percentile_interval
from pipeline.evaluation.intervals import LEVEL

#: A medium difference, in standard deviations (Cohen 1988): smaller ones are not named.
_MEDIUM = 0.5
#: Largest difference, in standard deviations: beyond it nothing overlaps.
_LARGEST_DIFFERENCE = 10.0
#: Fewest patients of a domain: draws of fewer are too similar.
_FEWEST = 10


@dataclass(frozen=True, kw_only=True)
class Covariate:
    """Mean over the classes of (target - source) of a measure, in pooled standard deviations.

    Its bounds are simultaneous over all measures (Bonferroni). A difference is ``shown`` if both
    lie beyond 0.5 on one side, and both domains have 10 patients.
    """

    name: str
    estimate: float
    low: float
    high: float
    shown: bool


def acquisition_differences(
    source: DomainData,
    target: DomainData,
    measures: Mapping[str, NDArray[np.float64]],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> list[Covariate]:
    """Compare labelled domains; the shown differences come first, then by size.

    Args:
        source: Its images, with their numbers among all images.
        target: The same of the target.
        measures: By name, of all ``N`` images, shape ``(N,)``; NaN where one cannot be measured.
        rng: Draws patients.
        draws: Bootstrap draws.
    """
    both = (source, target)
    drawn = [draw_patients(data.group, rng, draws=draws) for data in both]
    few = min(data.patients for data in both) < _FEWEST
    level = 1 - (1 - LEVEL) / len(measures)
    covariates = []
    for name, of_images in measures.items():
        values = _within_classes(both, of_images, drawn)
        low, high = percentile_interval(values[1:], level=level)
        shown = not few and (low > _MEDIUM or high < -_MEDIUM)
        covariates.append(
            Covariate(name=name, estimate=float(values[0]), low=low, high=high, shown=shown)
        )
    return sorted(covariates, key=lambda row: (not row.shown, -np.nan_to_num(abs(row.estimate))))


def summary(covariates: Sequence[Covariate] | None) -> str:
    """Text on what differs; None stands for images that were never measured."""
    if covariates is None:
        return "The images have not been measured: run `headrace audit STUDY`, then shift again."
    named = [_phrase(covariate) for covariate in covariates if covariate.shown]
    if named:
        unit = "The unit is the standard deviation within a class."
        return f"The images differ most in {', then in '.join(named)}. {unit}"
    names = ", ".join(sorted(covariate.name.replace("_", " ") for covariate in covariates))
    return f"No measure is shown to differ by half a standard deviation or more: {names}."


def _phrase(covariate: Covariate) -> str:
    name, estimate = covariate.name.replace("_", " "), covariate.estimate
    if abs(estimate) >= _LARGEST_DIFFERENCE:
        return f"{name} ({estimate:+.0f} or more)"
    return f"{name} ({estimate:+.1f}, 95 % CI {covariate.low:+.1f} to {covariate.high:+.1f})"


def _within_classes(
    both: Sequence[DomainData], of_images: NDArray[np.float64], drawn: Sequence[PatientDraws]
) -> NDArray[np.float64]:
    """Cohen's d, mean over the classes that both domains have, of all rows, then of each draw."""
    steps = []
    of_domains = [of_images[data.row] for data in both]
    label_s, label_t = (data.get_label() for data in both)
    for k in np.intersect1d(label_s, label_t):
        (mean_s, var_s), (mean_t, var_t) = (
            _moments(data.group, values, (data.label == k) & np.isfinite(values), draws)
            for data, values, draws in zip(both, of_domains, drawn, strict=True)
        )
        # The floor lets a mark that all films of one hospital have, and none of the other, count.
        step = (mean_t - mean_s) / np.sqrt((var_s + var_t) / 2 + 1e-12)
        steps.append(np.clip(step, -_LARGEST_DIFFERENCE, _LARGEST_DIFFERENCE))
    # A draw without one of the classes is measured by the others.
    defined = np.isfinite(steps)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, steps, 0.0).sum(axis=0) / defined.sum(axis=0))


def _moments(
    group: NDArray[Any], values: NDArray[np.float64], rows: NDArray[np.bool_], draws: PatientDraws
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of some rows, then in each draw, each of shape ``(1 + B,)``."""
    if not rows.any():
        nothing = np.full(1 + len(draws), np.nan)
        return nothing, nothing
    centre, of_rows = values[rows].mean(), draws.of(group[rows])
    x = values[rows] - centre  # variances as differences of squares need this
    mean, square = (np.append(v.mean(), of_rows.mean(v)) for v in (x, x**2))
    return mean + centre, square - mean**2
