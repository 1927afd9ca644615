"""Numbers with intervals for probabilities on one domain, and heads compared in pairs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import METRICS
from pipeline.stats import (
    Interval,
    holm,
    mcnemar,
    paired_delong,
    patient_draws,
    percentile_interval,
    verdict,
    weighted_auroc,
    weighted_mean,
    weighted_ratio,
    wilson,
)
from pipeline.stats.intervals import WeightedStatistic, Weights

_DRAWS = 2000
Proba = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The images of one domain in one role.

    Attributes:
        domain: ``source`` or the target's name.
        role: ``fit``, ``validation`` or ``target``.
        rows: Which samples, shape ``(n,)``, bool over all samples.
        label: Of these rows.
        group: Patients of these rows.
        draws: Bootstrap draws of its patients, ``(B, n)``, shared by all heads.
    """

    domain: str
    role: str
    rows: NDArray[np.bool_]
    label: Labels
    group: NDArray[np.str_]
    draws: Weights

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(np.unique(self.group))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One head against the baseline on the same images.

    Attributes:
        difference: Head minus baseline; ``low`` and ``high`` are its 95 % interval by
            patients.
        p: McNemar's exact (accuracy) or paired DeLong's (auroc).
        p_holm: Adjusted over the heads of this table.
        verdict: ``better``, ``worse``, ``equivalent`` (within one point) or
            ``inconclusive``.
    """

    head: str
    baseline: str
    domain: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: str


def places_of(
    domain: NDArray[np.str_],
    split: NDArray[np.str_],
    label: Labels,
    group: NDArray[np.str_],
    seed: int,
) -> list[Place]:
    """Each domain in each role, in order of appearance."""
    found = []
    for number, (d, s) in enumerate(dict.fromkeys(zip(domain, split, strict=True))):
        rows = (domain == d) & (split == s)
        rng = np.random.default_rng([seed, number])
        found.append(
            Place(
                domain=str(d),
                role=str(s),
                rows=rows,
                label=label[rows],
                group=group[rows],
                draws=patient_draws(group[rows], rng, draws=_DRAWS),
            )
        )
    return found


def scores(place: Place, proba: Proba) -> Iterator[tuple[str, Interval]]:
    """Every metric that the place defines, with its interval where there is one.

    Args:
        place: Where.
        proba: Of its rows, shape ``(n, K)``.
    """
    for metric, score in METRICS.items():
        value = score(place.label, proba)
        if value is not None:
            yield metric, _interval(place, proba, metric, float(value))


def _interval(place: Place, proba: Proba, metric: str, value: float) -> Interval:
    n, patients = len(place.label), place.patients
    low, high, method = float("nan"), float("nan"), "none"
    if metric == "accuracy" and patients == n:
        low, high, method = *wilson(round(value * n), n), "Wilson"
    elif metric in _STATISTICS and (statistic := _STATISTICS[metric](place.label, proba)):
        low, high = percentile_interval(statistic(place.draws))
        method = "patient bootstrap"
    return Interval(estimate=value, low=low, high=high, n=n, groups=patients, method=method)


def pairs(place: Place, proba: Mapping[str, Proba], baseline: str) -> list[Pair]:
    """Every head against the baseline: the same images, Holm over the heads."""
    found: list[Pair] = []
    for metric in ("accuracy", "auroc"):
        rows = [
            (head, *_difference(place, proba[head], proba[baseline], metric))
            for head in proba
            if head != baseline
        ]
        known = [row for row in rows if row[1] is not None]
        for row, p_holm in zip(known, holm([row[4] for row in known]), strict=True):
            head, difference, low, high, p = row
            found.append(
                Pair(
                    head=head,
                    baseline=baseline,
                    domain=place.domain,
                    metric=metric,
                    difference=float(difference or 0.0),
                    low=low,
                    high=high,
                    p=p,
                    p_holm=float(p_holm),
                    verdict=verdict(low, high),
                )
            )
    return found


def _difference(
    place: Place, first: Proba, second: Proba, metric: str
) -> tuple[float | None, float, float, float]:
    if metric == "auroc" and np.bincount(place.label, minlength=2).min() < 2:  # noqa: PLR2004
        return None, 0.0, 0.0, 1.0  # DeLong's variance needs two images of each class
    a, b = METRICS[metric](place.label, first), METRICS[metric](place.label, second)
    one, two = (_STATISTICS[metric](place.label, p) for p in (first, second))
    if a is None or b is None or one is None or two is None:
        return None, 0.0, 0.0, 1.0
    low, high = percentile_interval(one(place.draws) - two(place.draws))
    if metric == "accuracy":
        p = mcnemar(_right(place.label, first), _right(place.label, second)).p
    else:
        p = paired_delong(place.label, first[:, 1], second[:, 1], group=place.group).p
    return a - b, low, high, p


def _right(y: Labels, proba: Proba) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = proba.argmax(axis=1) == y
    return right


def _sensitivity(k: int) -> Callable[[Labels, Proba], WeightedStatistic | None]:
    def statistic(y: Labels, proba: Proba) -> WeightedStatistic | None:
        return weighted_ratio(_right(y, proba) & (y == k), y == k)

    return statistic


def _balanced(y: Labels, proba: Proba) -> WeightedStatistic | None:
    parts = [_sensitivity(int(k))(y, proba) for k in np.unique(y)]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.mean([part(weights) for part in parts if part], axis=0)
        return values

    return statistic


def _auroc(y: Labels, proba: Proba) -> WeightedStatistic | None:
    """Two classes only: the macro area has its point value and no interval."""
    return weighted_auroc(y == 1, proba[:, 1]) if proba.shape[1] == 2 else None  # noqa: PLR2004


def _brier(y: Labels, proba: Proba) -> WeightedStatistic | None:
    return weighted_mean(((proba - np.eye(proba.shape[1])[y]) ** 2).sum(axis=1) / 2)


def _log_loss(y: Labels, proba: Proba) -> WeightedStatistic | None:
    return weighted_mean(-np.log(np.clip(proba[np.arange(len(y)), y], 1e-15, 1.0)))


#: Metrics that can be computed for thousands of weighted draws at once.
_STATISTICS: Mapping[str, Callable[[Labels, Proba], WeightedStatistic | None]] = MappingProxyType(
    {
        "accuracy": lambda y, p: weighted_mean(_right(y, p)),
        "balanced_accuracy": _balanced,
        "auroc": _auroc,
        "sensitivity": _sensitivity(1),
        "specificity": _sensitivity(0),
        "brier": _brier,
        "log_loss": _log_loss,
    }
)


def ensemble(members: Sequence[Proba]) -> Proba:
    """Mean probability of the seeds of a head."""
    mean: Proba = np.mean(members, axis=0)
    return mean
