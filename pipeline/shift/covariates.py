"""Acquisition differences: which measures of the images differ, and the class mix.

Measures are compared within each class, so that a hospital with more ill patients does not
seem to expose its films differently. A difference is named only where its whole simultaneous
interval lies beyond half a standard deviation: in large data sets everything differs a little.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, Weights, draw_patients
from pipeline.evaluation.bootstrap import percentile_interval
from pipeline.evaluation.intervals import LEVEL

#: A medium difference, in standard deviations (Cohen 1988): what lies inside is not named.
_MEDIUM = 0.5
#: A difference of the class mix that is named: the interval lies beyond it.
_MIX = 0.05
CLASS_MIX = "class mix"
#: Beyond so many standard deviations nothing overlaps, and the number would say no more.
_MOST = 10.0
#: Patients of a domain below which draws of them are too much alike for anything to be named.
_FEWEST = 10

Measures = Mapping[str, NDArray[np.float64]]
"""By name, shape (n,); what could not be measured is NaN."""


@dataclass(frozen=True, kw_only=True)
class Covariate:
    """One property of the images, target against source.

    Attributes:
        name: Of the measure, or ``class mix``.
        estimate: Mean over the classes of (target - source) in pooled standard deviations, 10
            of them at most; for the class mix, the largest difference of a class's share.
        low: Lower bound of the interval, simultaneous over all differences (Bonferroni).
        high: Upper bound.
        named: Whether the interval lies beyond what is never named, and both domains have 10
            patients.
    """

    name: str
    estimate: float
    low: float
    high: float
    named: bool


def acquisition_differences(
    source: tuple[DomainData, Measures],
    target: tuple[DomainData, Measures],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> list[Covariate]:
    """Compare two domains; the named differences come first, the largest before the others.

    Args:
        source: Its images with their labels, and what was measured in each.
        target: The same of the target.
        rng: Draws patients.
        draws: Bootstrap draws.
    """
    domains = (source, target)
    drawn = [draw_patients(data.group, rng, draws=draws) for data, _ in domains]
    blocks = list(max(drawn, key=lambda draws: len(draws.member)).blocks())
    whole = [np.ones((1, len(data))) for data, _ in domains]
    few = min(data.patients for data, _ in domains) < _FEWEST
    level = 1 - (1 - LEVEL) / (len(source[1]) + 1)
    labels = (source[0].labelled(), target[0].labelled())
    statistics = {CLASS_MIX: _class_mix(*labels)}
    for name in source[1]:
        statistics[name] = _within_classes(labels, (source[1][name], target[1][name]))
    covariates = []
    for name, statistic in statistics.items():
        values = [statistic(*(draws.weights(which) for draws in drawn)) for which in blocks]
        low, high = percentile_interval(np.concatenate(values), level=level)
        covariates.append(
            Covariate(
                name=name,
                estimate=float(statistic(*whole)[0]),
                low=low,
                high=high,
                named=not few and (low > _margin(name) or high < -_margin(name)),
            )
        )
    return sorted(covariates, key=lambda covariate: (not covariate.named, -_rank(covariate)))


def _margin(name: str) -> float:
    """What is never named."""
    return _MIX if name == CLASS_MIX else _MEDIUM


def _rank(covariate: Covariate) -> float:
    size = abs(covariate.estimate) / _margin(covariate.name)
    return size if np.isfinite(size) else 0.0


def summary(covariates: Sequence[Covariate] | None) -> str:
    """One sentence on what differs; None stands for images that were never measured."""
    if covariates is None:
        return "How the images differ is not known: `headrace audit STUDY` measures them."
    named = [_phrase(covariate) for covariate in covariates if covariate.named]
    if not named:
        names = ", ".join(sorted(_word(covariate.name) for covariate in covariates))
        return f"None of these is shown to differ by a medium step or more: {names}."
    return f"What differs most is {'; then '.join(named)}."


def _phrase(covariate: Covariate) -> str:
    name, estimate = _word(covariate.name), covariate.estimate
    if covariate.name != CLASS_MIX and abs(estimate) >= _MOST:
        return f"{name} ({estimate:+.0f} sd within classes, or beyond)"
    scale = 100 if covariate.name == CLASS_MIX else 1
    low, middle, high = (f"{scale * v:+.1f}" for v in (covariate.low, estimate, covariate.high))
    unit = "points in the share of a class" if scale > 1 else "sd within classes"
    start = f"the {name}" if scale > 1 else name
    return f"{start} ({middle}, {low} to {high} {unit})"


def _word(name: str) -> str:
    return name.replace("_", " ")


_PairedStatistic = Callable[[Weights, Weights], NDArray[np.float64]]
"""Weights of the rows of both domains, (B, n) and (B, m), to one number a draw, (B,)."""


def _class_mix(*labels: NDArray[np.int64]) -> _PairedStatistic:
    """The share of the class that differs most, target less source."""
    classes = range(max(int(label.max()) for label in labels) + 1)
    shares = [np.mean(labels[1] == k) - np.mean(labels[0] == k) for k in classes]
    # With two classes both differ equally: the second, the positive one, is named.
    k = len(shares) - 1 - int(np.argmax(np.abs(shares[::-1]).round(12)))

    def statistic(*weights: Weights) -> NDArray[np.float64]:
        first, second = (
            w @ (label == k) / w.sum(axis=1) for w, label in zip(weights, labels, strict=True)
        )
        return np.asarray(second - first)

    return statistic


def _within_classes(
    labels: tuple[NDArray[np.int64], ...], values: tuple[NDArray[np.float64], ...]
) -> _PairedStatistic:
    """Cohen's d of a measure, mean over the classes that both domains have.

    Args:
        labels: Of source and target.
        values: The measure in source and target.
    """

    def statistic(*weights: Weights) -> NDArray[np.float64]:
        parts = []
        for k in np.intersect1d(labels[0], labels[1]):
            (mean_s, var_s), (mean_t, var_t) = (
                _moments(x, (label == k) & np.isfinite(x), w)
                for label, x, w in zip(labels, values, weights, strict=True)
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                # The floor lets a mark that all films of one hospital have, and none of the
                # other, count.
                step = (mean_t - mean_s) / np.sqrt((var_s + var_t) / 2 + 1e-12)
            parts.append(np.clip(step, -_MOST, _MOST))
        # A draw without one of the classes is measured by the others.
        defined = np.isfinite(parts)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(defined, parts, 0.0).sum(axis=0) / defined.sum(axis=0))

    return statistic


def _moments(
    values: NDArray[np.float64], rows: NDArray[np.bool_], weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and variance of some rows, each of shape ``(B,)``."""
    w, x = weights[:, rows], values[rows]
    shift = x.mean() if len(x) else np.nan
    x = x - shift  # variances as differences of squares need this
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = w @ x / w.sum(axis=1)
        variance = w @ x**2 / w.sum(axis=1) - mean**2
    return mean + shift, variance
