"""Is it the threshold, or can the head no longer tell the classes apart?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import PatientDraws, Weights
from pipeline.errors import StudyError
from pipeline.evaluation.auroc import bound_of_one
from pipeline.evaluation.metrics import weighted_auroc
from pipeline.shift.domains import split_by_patient
from pipeline.shift.effects import Gap, family, lengthen, loss_between, single_gap


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of two classes in one domain; row i of each is the same image."""

    score: NDArray[np.floating]
    """Shape (n,), larger means positive."""
    positive: NDArray[np.bool_]
    """Shape (n,)."""
    groups: NDArray[Any]
    """Shape (n,), patients."""
    draws: PatientDraws
    """Draws of these patients."""

    def take(self, rows: NDArray[Any]) -> "Scored":
        """Return some rows (indices or a mask); the draws stay the same."""
        return Scored(
            score=self.score[rows],
            positive=self.positive[rows],
            groups=self.groups[rows],
            draws=self.draws.of(self.groups[rows]),
        )


@dataclass(frozen=True, kw_only=True)
class ThresholdSplit:
    """The loss, split at the target's own best threshold."""

    terms: Mapping[str, Gap]
    """``transfer``: what the source's threshold costs; ``discrimination``: the rest."""
    auroc_loss: Gap
    """AUROC on the source minus that on the target: needs no threshold."""
    source_threshold: float
    """Threshold brought from the source."""
    target_thresholds: tuple[float, float]
    """Best thresholds of the two halves of the target's patients."""


class _Half:
    """One half of a domain, sorted by score, for many weightings at once."""

    def __init__(self, rows: Scored) -> None:
        order = np.argsort(rows.score, kind="stable")
        self.rows = rows.take(order)
        distinct = np.flatnonzero(np.diff(self.rows.score) > 0)
        #: Rows below each candidate threshold; candidates lie between distinct scores.
        self.below = np.concatenate([[0], distinct + 1, [len(order)]])
        gaps = (self.rows.score[distinct] + self.rows.score[distinct + 1]) / 2
        self.candidates = np.concatenate([[-np.inf], gaps, [np.inf]])

    def errors(self, weights: Weights) -> Weights:
        """Weighted count of errors at each number of rows below, shape (b, n + 1)."""
        missed = np.cumsum(weights * self.rows.positive, axis=1)
        cleared = np.cumsum(weights * ~self.rows.positive, axis=1)
        zero = np.zeros((len(weights), 1))
        false_calls = cleared[:, -1:] - np.hstack([zero, cleared])
        return np.hstack([zero, missed]) + false_calls

    def best(self, weights: Weights) -> Weights:
        """Threshold of fewest errors for each weighting, shape (b,)."""
        fewest = self.errors(weights)[:, self.below].argmin(axis=1)
        return np.asarray(self.candidates[fewest], dtype=np.float64)

    def errors_at(self, thresholds: Weights, weights: Weights) -> Weights:
        """Weighted count of errors at one threshold for each weighting, shape (b,)."""
        place = np.searchsorted(self.rows.score, thresholds, side="left")
        return self.errors(weights)[np.arange(len(weights)), place]


def threshold_split(
    source: Scored, target: Scored, rng: np.random.Generator, threshold: float = 0.5
) -> ThresholdSplit:
    """Split e_T(tau_S) - e_S(tau_S) at the target's best threshold.

    That threshold is found on one half of the target's patients and scored on the other,
    and found again in each draw: a threshold scored where it was chosen looks too good.

    Args:
        source: The labelled domain, scores it was not trained on.
        target: The other domain, with its labels, at least two patients.
        rng: Source of the halves.
        threshold: tau_S: positive is called where score >= threshold.

    Returns:
        ``transfer`` = e_T(tau_S) - e_T(tau_T) and ``discrimination`` = e_T(tau_T) - e_S(tau_S).

    Raises:
        StudyError: The target has one patient only, or a class is absent from a domain.
    """
    _refuse_one_class(source, target)
    in_first = split_by_patient(target.groups, rng)
    halves = _Half(target.take(in_first)), _Half(target.take(~in_first))
    ones = [np.ones((1, len(half.rows.score))) for half in halves]
    tuned = _cross_fitted(halves, ones) / len(target.score)
    levels = [float(_wrong(side, threshold).mean()) for side in (source, target)]
    drawn = [side.draws.mean(_wrong(side, threshold)) for side in (source, target)]
    drawn_tuned = _drawn_cross_fitted(halves, target)
    best = float(tuned[0])
    terms = family(
        {"transfer": levels[1] - best, "discrimination": best - levels[0]},
        {"transfer": drawn[1] - drawn_tuned, "discrimination": drawn_tuned - drawn[0]},
    )
    here, there = (np.unique(side.groups).size for side in (source, target))
    apart = loss_between((levels[0], here), (best, there), terms["discrimination"])
    return ThresholdSplit(
        terms={**terms, "discrimination": apart},
        auroc_loss=_auroc_loss(source, target),
        source_threshold=threshold,
        target_thresholds=(float(halves[0].best(ones[0])[0]), float(halves[1].best(ones[1])[0])),
    )


def _cross_fitted(halves: tuple[_Half, _Half], weights: list[Weights]) -> Weights:
    """Errors of each half at the other's best threshold, added, shape (b,)."""
    first, second = halves
    return first.errors_at(second.best(weights[1]), weights[0]) + second.errors_at(
        first.best(weights[0]), weights[1]
    )


def _drawn_cross_fitted(halves: tuple[_Half, _Half], target: Scored) -> Weights:
    from_halves = np.concatenate([half.rows.groups for half in halves])
    cut = len(halves[0].rows.groups)

    def statistic(weights: Weights) -> Weights:
        errors = _cross_fitted(halves, [weights[:, :cut], weights[:, cut:]])
        return np.asarray(errors / weights.sum(axis=1))

    return target.draws.of(from_halves).apply(statistic)


def _auroc_loss(source: Scored, target: Scored) -> Gap:
    areas = [weighted_auroc(side.positive, side.score) for side in (source, target)]
    points = [
        float(area(np.ones((1, len(side.score))))[0])
        for area, side in zip(areas, (source, target), strict=True)
    ]
    drawn = [side.draws.apply(area) for area, side in zip(areas, (source, target), strict=True)]
    gap = single_gap(points[0] - points[1], drawn[0] - drawn[1])
    start, end = (
        _room(side, point) for side, point in zip((target, source), reversed(points), strict=True)
    )
    return lengthen(gap, start, end)


def _room(side: Scored, area: float) -> tuple[float, float]:
    """How far below and above itself an area may be; (0, 0) where draws have a spread."""
    if area not in (0, 1):
        return 0.0, 0.0
    room = 1 - bound_of_one(side.positive.astype(np.int64), side.groups)
    return (room, 0.0) if area else (0.0, room)


def _wrong(side: Scored, threshold: float) -> NDArray[np.bool_]:
    return np.asarray((side.score >= threshold) != side.positive)


def _refuse_one_class(source: Scored, target: Scored) -> None:
    for name, side in (("source", source), ("target", target)):
        if np.unique(side.positive).size < 2:
            raise StudyError(f"the {name} shows one class only: it has no threshold to speak of")
    if np.unique(target.groups).size < 2:
        raise StudyError("a threshold of the target needs two patients: one to find, one to score")
