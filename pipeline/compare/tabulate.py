"""All numbers of the fitted heads of one backbone, put in their table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.compare.fitting import Fitted
from pipeline.compare.report import Confusion, HeadDetail, Row, Table
from pipeline.compare.seed_spread import SeedSpread, seed_spread
from pipeline.heads.side_by_side import side_by_side
from pipeline.samples.splits import FIT, VALIDATION
from pipeline.scores.pairing import (
    BASELINE,
    BEST,
    BestSet,
    Pair,
    best_by_validation,
    best_sets,
    pairs,
)
from pipeline.scores.scoring import ENSEMBLE, Place, Proba, scores
from pipeline.stats.intervals import DRAWS
from pipeline.stats.metrics import confusion


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
    kinds = [one.head.removesuffix(ENSEMBLE) for one in final]
    declared = final[kinds.index(baseline)].head if baseline in kinds else None
    references = _references(declared, best)
    asked = [place for place in places if place.role != FIT]
    rows = side_by_side([partial(_rows, backbone, at, done, draws.single) for at in places])
    compared = side_by_side([partial(_compare, at, final, references, draws) for at in asked])
    spread = side_by_side([partial(_spread, at, done, baseline, draws.single) for at in asked])
    return Table(
        rows=tuple(row for some in rows for row in some),
        best=best,
        pairs=tuple(pair for some, _ in compared for pair in some),
        best_sets=tuple(one for _, some in compared for one in some),
        seed_spread=tuple(one for some in spread for one in some),
        confusion=tuple(_confusion(place, one) for place in places for one in done),
        details=tuple(_detail(one) for one in done if one.model is not None),
    )


def _compare(
    place: Place, final: Sequence[Fitted], references: Sequence[tuple[str, str]], draws: Draws
) -> tuple[list[Pair], list[BestSet]]:
    proba = {one.head: one.proba[place.rows] for one in final}
    compared = [
        pair
        for name, reference in references
        for pair in pairs(place, proba, name, reference=reference, draws=draws.paired)
    ]
    return compared, best_sets(place, proba, draws=draws.single)


def _spread(place: Place, done: Sequence[Fitted], baseline: str, draws: int) -> list[SeedSpread]:
    members: dict[str, list[Proba]] = {}
    for one in done:
        if not one.head.endswith(ENSEMBLE):
            members.setdefault(one.head, []).append(one.proba[place.rows])
    return seed_spread(place, members, baseline, draws=draws)


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
    curves = getattr(head, "curves_", None)
    return HeadDetail(
        head=one.head,
        seed=one.seed,
        seconds=round(one.seconds, 4),
        chosen=dict(one.chosen),
        curves=None if curves is None else dict(curves),
        path=getattr(head, "path_", None),
    )
