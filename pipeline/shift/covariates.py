"""Which habits of the hospitals differ: measures of the pictures, and the class mix.

Measures are compared within each class, so that a hospital with more ill patients does
not seem to expose its films differently. A difference is named only where its whole
simultaneous interval lies beyond half a standard deviation: in large data sets
everything differs a little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, Weights, draw_patients
from pipeline.evaluation.intervals import percentile_interval

#: A medium difference, in standard deviations (Cohen 1988): what lies inside is not named.
MEDIUM = 0.5
#: A difference of the class mix that is named: the interval lies beyond it.
MIX = 0.05
CLASS_MIX = "class mix"
#: Beyond so many standard deviations nothing overlaps, and the number would say no more.
_MOST = 10.0
#: Patients of a domain below which draws of them are too much alike for anything to be named.
_FEWEST = 10
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of one domain.

    Attributes:
        measures: By name, shape ``(n,)``; what could not be measured is NaN.
        labels: Shape ``(n,)``, 0 to K - 1.
        groups: Patients, shape ``(n,)``.
    """

    measures: Mapping[str, NDArray[np.float64]]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One habit, target against source.

    Attributes:
        name: Of the measure, or ``class mix``.
        effect: Mean over the classes of (target - source) in pooled standard deviations, 10
            of them at most; for the class mix, the largest difference of a class's share.
        low: Lower bound of the interval, simultaneous over all differences (Bonferroni).
        high: Upper bound.
        named: Whether the interval lies beyond what is never named, and both domains have 10
            patients.
    """

    name: str
    effect: float
    low: float
    high: float
    named: bool


def differences(
    source: Pictures, target: Pictures, rng: np.random.Generator, draws: int = DRAWS
) -> tuple[Difference, ...]:
    """Compare two domains; the named ones come first, the largest before the others.

    Args:
        source: Pictures of the source.
        target: Pictures of the target, with the same measures.
        rng: Draws patients.
        draws: Bootstrap draws.
    """
    weights = tuple(draw_patients(p.groups, rng, draws=draws).weights() for p in (source, target))
    few = min(np.unique(p.groups).size for p in (source, target)) < _FEWEST
    level = 1 - (1 - _LEVEL) / (len(source.measures) + 1)
    found = [_class_mix(source, target, weights, level)]
    for name in source.measures:
        values = _effect(name, source, target, weights)
        whole = tuple(np.ones((1, len(p.labels))) for p in (source, target))
        effect = float(_effect(name, source, target, whole)[0])
        low, high = percentile_interval(values, level=level)
        found.append(_difference(name, effect, (low, high), MEDIUM))
    found = [replace(one, named=one.named and not few) for one in found]
    return tuple(sorted(found, key=lambda d: (not d.named, -_rank(d))))


def said(found: Sequence[Difference] | None) -> str:
    """One sentence on what differs; None stands for pictures that were never measured."""
    if found is None:
        return "How the pictures differ is not known: `headrace audit STUDY` measures them."
    named = [_phrase(one) for one in found if one.named]
    if not named:
        names = ", ".join(_word(one.name) for one in sorted(found, key=lambda one: one.name))
        return f"None of these is shown to differ by a medium step or more: {names}."
    first, *others = named
    return f"What differs most is {first}" + "".join(f"; then {one}" for one in others) + "."


def _phrase(one: Difference) -> str:
    if one.name == CLASS_MIX:
        return f"the {CLASS_MIX} ({_span(one, 100)} points in the share of a class)"
    if abs(one.effect) >= _MOST:  # in every class, and cut there
        return f"{_word(one.name)} ({one.effect:+.0f} sd within classes, or beyond)"
    return f"{_word(one.name)} ({_span(one, 1)} sd within classes)"


def _span(one: Difference, factor: float) -> str:
    low, effect, high = (f"{factor * v:+.1f}" for v in (one.low, one.effect, one.high))
    return f"{effect}, {low} to {high}"


def _word(name: str) -> str:
    return name.replace("_", " ")


def _effect(
    name: str, source: Pictures, target: Pictures, weights: tuple[Weights, ...]
) -> NDArray[np.float64]:
    """Cohen's d within classes for each draw, shape ``(B,)``."""
    parts = []
    for k in np.intersect1d(source.labels, target.labels):
        mean_s, var_s = _moments(source, name, weights[0], int(k))
        mean_t, var_t = _moments(target, name, weights[1], int(k))
        with np.errstate(invalid="ignore", divide="ignore"):
            # The floor lets a mark that all films of one hospital have, and none elsewhere, count.
            step = (mean_t - mean_s) / np.sqrt((var_s + var_t) / 2 + 1e-12)
            parts.append(np.clip(step, -_MOST, _MOST))
    # A draw without one of the classes is judged by the others.
    known = np.isfinite(parts)
    total = np.where(known, parts, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        effects: NDArray[np.float64] = total / known.sum(axis=0)
    return effects


def _moments(
    pictures: Pictures, name: str, weights: Weights, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and variance of a class, each of shape ``(B,)``."""
    values = pictures.measures[name]
    rows = (pictures.labels == k) & np.isfinite(values)
    w, x = weights[:, rows], values[rows]
    x = x - (x.mean() if len(x) else 0.0)  # variances as differences of squares need this
    shift = values[rows].mean() if len(x) else np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = w @ x / w.sum(axis=1)
        variance = w @ x**2 / w.sum(axis=1) - mean**2
    return mean + shift, variance


def _class_mix(
    source: Pictures, target: Pictures, weights: tuple[Weights, ...], level: float
) -> Difference:
    """The class whose share differs most; its sign is the target's minus the source's."""
    classes = range(int(max(source.labels.max(), target.labels.max())) + 1)
    shares = [np.mean(target.labels == k) - np.mean(source.labels == k) for k in classes]
    # With two classes both differ equally: the second, the positive one, is told.
    k = len(shares) - 1 - int(np.argmax(np.abs(shares[::-1]).round(12)))
    drawn = [
        w @ (p.labels == k) / w.sum(axis=1) for w, p in zip(weights, (source, target), strict=True)
    ]
    interval = percentile_interval(drawn[1] - drawn[0], level=level)
    return _difference(CLASS_MIX, float(shares[k]), interval, MIX)


def _difference(
    name: str, effect: float, interval: tuple[float, float], margin: float
) -> Difference:
    low, high = interval
    return Difference(
        name=name, effect=effect, low=low, high=high, named=low > margin or high < -margin
    )


def _rank(difference: Difference) -> float:
    """How many times what is never named."""
    if not np.isfinite(difference.effect):
        return 0.0
    return abs(difference.effect) / (MIX if difference.name == CLASS_MIX else MEDIUM)
