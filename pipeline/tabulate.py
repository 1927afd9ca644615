"""All numbers of the fitted heads of one backbone, put in their table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.fitting import ENSEMBLE, Fitted
from pipeline.head_report import Confusion, HeadDetail, Row, Table
from pipeline.heads import HEADS
from pipeline.metrics import confusion
from pipeline.pairing import BASELINE, BEST, BestSet, Pair, best_by_validation, best_sets, pairs
from pipeline.scoring import Place, scores
from pipeline.seed_spread import SeedSpread, seed_spread
from pipeline.splits import FIT, VALIDATION
from pipeline.stats.intervals import DRAWS


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Bootstrap draws: ``single`` for an interval, ``paired`` where two heads are compared."""

    single: int = DRAWS

    @property
    def paired(self) -> int:
        """Their ends decide, so they must hardly move."""
        return 5 * self.single


def tabulate(
    backbone: str, places: Sequence[Place], done: Sequence[Fitted], baseline: str, draws: Draws
) -> Table:
    """Score every head on every place, and compare those that are trained for good.

    Args:
        backbone: Name for the rows.
        places: Each domain in each role.
        done: In order: the seeds of a kind of head, then their ensemble.
        baseline: A kind of head; it need not be among them.
        draws: How many.
    """
    final = _final(done)
    best = _best(places, final)
    new = [place for place in places if place.role != FIT]
    kinds = [one.head.removesuffix(ENSEMBLE) for one in final]
    declared = final[kinds.index(baseline)].head if baseline in kinds else None
    compared: list[Pair] = []
    sets: list[BestSet] = []
    spread: list[SeedSpread] = []
    for place in new:
        proba = {one.head: one.proba[place.rows] for one in final}
        for name, reference in _references(declared, best):
            compared += pairs(place, proba, name, reference=reference, draws=draws.paired)
        sets += best_sets(place, proba, draws=draws.single)
        members = {
            kind: [one.proba[place.rows] for one in done if one.head == kind] for kind in kinds
        }
        spread += seed_spread(place, members, baseline, draws=draws.single)
    return Table(
        rows=tuple(row for place in places for row in _rows(backbone, place, done, draws.single)),
        best=best,
        pairs=tuple(compared),
        best_sets=tuple(sets),
        seed_spread=tuple(spread),
        confusion=tuple(_confusion(place, one) for place in places for one in done),
        details=tuple(_detail(one) for one in done if one.model is not None),
    )


def _references(declared: str | None, best: str | None) -> list[tuple[str, str]]:
    """Whom the heads are compared with, once each."""
    named = [(declared, BASELINE)] + ([] if best == declared else [(best, BEST)])
    return [(name, reference) for name, reference in named if name is not None]


def _final(done: Sequence[Fitted]) -> list[Fitted]:
    """One of each kind: the ensemble where there are several seeds."""
    return list({one.head.removesuffix(ENSEMBLE): one for one in done}.values())


def _best(places: Sequence[Place], final: Sequence[Fitted]) -> str | None:
    for place in places:
        if place.role == VALIDATION:
            return best_by_validation(place, {one.head: one.proba[place.rows] for one in final})
    return None


def _rows(backbone: str, place: Place, done: Sequence[Fitted], draws: int) -> list[Row]:
    proba = {(one.head, one.seed): one.proba[place.rows] for one in done}
    found = scores(place, proba, draws=draws)
    return [
        Row(
            backbone=backbone,
            head=one.head,
            seed=one.seed,
            domain=place.domain,
            role=place.role,
            metric=metric,
            value=interval.estimate,
            seconds=round(one.seconds, 4),
            low=interval.low if np.isfinite(interval.low) else None,
            high=interval.high if np.isfinite(interval.high) else None,
            n=interval.n,
            groups=interval.groups,
            ci_method=interval.method,
        )
        for one in done
        for metric, interval in found[one.head, one.seed].items()
    ]


def _confusion(place: Place, one: Fitted) -> Confusion:
    counts = confusion(place.label, one.proba[place.rows])
    return Confusion(
        head=one.head,
        seed=one.seed,
        domain=place.domain,
        role=place.role,
        counts=tuple(tuple(row) for row in counts.tolist()),
    )


def _detail(one: Fitted) -> HeadDetail:
    head = one.model[-1] if hasattr(one.model, "steps") else one.model
    trained = getattr(head, "trained_", None)
    curves = getattr(head, "curves_", getattr(trained, "curves", None))
    return HeadDetail(
        head=one.head,
        seed=one.seed,
        seconds=round(one.seconds, 4),
        chosen=_chosen(one, head),
        curves=None if curves is None else dict(curves),
        path=getattr(head, "path_", None),
    )


def _chosen(one: Fitted, head: Any) -> dict[str, Any]:
    """Values of the parameters that the inner folds chose between."""
    told = getattr(one, "chosen", None) or getattr(head, "best_params_", None)
    if told is not None:
        return dict(told)
    grid = HEADS[one.head].grid if one.head in HEADS else {}
    return {name: head.get_params().get(name) for name in grid}
