"""Predict a target with every fix; there are no labels to look at.

The target is halved by patient; each half is predicted by a model adapted to the other.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.shift.fixes import TOGETHER, UNADAPTED, fix_named
from pipeline.shift.fixes.adaptation import Predictor, Rows, Source
from pipeline.shift.fixes.halves import Cut, halves
from pipeline.shift.fixes.plan import BASELINE, FixPlan


@dataclass(frozen=True, kw_only=True)
class Target:
    """The domain to be predicted, without its labels."""

    features: Rows
    """Shape (n, d), raw."""
    groups: NDArray[Any]
    """Shape (n,), patient ids; at least two patients."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Cross-fitted probabilities of every fix, made without target labels."""

    probabilities: Mapping[str, NDArray[np.float64]]
    """By fix, shape (seeds, n, K)."""
    own_half: Mapping[str, NDArray[np.float64]]
    """By fix that the plan tunes, shape (n, K): on the first cut, each row by the model that
    was adapted to the row's own half. This is what a validator may look at."""
    notes: Mapping[str, Mapping[str, float]]
    """By fix, its numbers averaged over seeds and halves."""
    plan_hash: str
    """Digest of the plan."""


def predict_target(source: Source, target: Target, plan: FixPlan) -> Predictions:
    """Adapt every fix to one half of the target and predict the other, for each seed.

    Args:
        source: The labelled domain; its settings are replaced by the plan's.
        target: The other one.
        plan: Fixes and seeds.

    Returns:
        Probabilities of every fix for every row.

    Raises:
        UnknownNameError: The plan names a fix that is not there.
        StudyError: The plan lacks the baseline, or the target has one patient.
    """
    if BASELINE not in plan.fixes:
        raise StudyError(f"the plan's fixes lack the baseline {BASELINE!r}: add it")
    source = under(source, plan)
    made = {name: _fix(name, source, target, plan) for name in plan.fixes}
    return Predictions(
        probabilities={name: one.table for name, one in made.items()},
        own_half={name: one.own for name, one in made.items() if one.own is not None},
        notes={name: one.notes for name, one in made.items()},
        plan_hash=plan.digest(),
    )


@dataclass(frozen=True, kw_only=True)
class _Predicted:
    """By one fix: see :class:`Predictions`."""

    table: NDArray[np.float64]
    own: NDArray[np.float64] | None
    notes: Mapping[str, float]


def _fix(name: str, source: Source, target: Target, plan: FixPlan) -> _Predicted:
    if name in UNADAPTED:
        return _predicted_once(name, source, target, plan)
    table = np.empty((len(plan.seeds), len(target.groups), source.prior.size))
    own = np.empty(table.shape[1:]) if any(name == tuned for tuned, _, _ in plan.grids) else None
    collected: list[Mapping[str, float]] = []
    for cut, predictor in adapted(name, source, target, plan):
        table[cut.index, cut.score] = predictor(target.features[cut.score])
        if own is not None and cut.index == 0:
            own[cut.adapt] = predictor(target.features[cut.adapt])
        collected.append(predictor.notes)
    notes = {key: float(np.mean([n[key] for n in collected])) for key in collected[0]}
    return _Predicted(table=table, own=own, notes=notes)


def fit_unadapted(source: Source, plan: FixPlan) -> dict[str, Predictor]:
    """Fit the fixes that look at no row of the target, by name; the source keeps their heads.

    Args:
        source: The labelled domain.
        plan: Its fixes.
    """
    return {name: _unadapted(name, source) for name in plan.fixes if name in UNADAPTED}


def _unadapted(name: str, source: Source) -> Predictor:
    return fix_named(name)(source, source.features[:0], np.random.default_rng(0))


def _predicted_once(name: str, source: Source, target: Target, plan: FixPlan) -> _Predicted:
    """One predictor, which is shown no row of the target, predicts all of it for every seed."""
    predictor = _unadapted(name, source)
    once = predictor(target.features)
    return _Predicted(table=np.stack([once] * len(plan.seeds)), own=None, notes=predictor.notes)


def adapted(
    name: str, source: Source, target: Target, plan: FixPlan
) -> Iterator[tuple[Cut, Predictor]]:
    """Adapt a fix to each half of each seed: at once where it can, else one by one.

    Args:
        name: Of the fix.
        source: The labelled domain, under the settings that are wanted.
        target: The other one.
        plan: Its seeds.
    """
    cuts = list(halves(target.groups, plan.seeds))
    rngs = [np.random.default_rng([cut.seed, zlib.crc32(name.encode())]) for cut in cuts]
    if name in TOGETHER:
        made = TOGETHER[name](source, target.features, [cut.adapt for cut in cuts], rngs)
        yield from zip(cuts, made, strict=True)
        return
    fix = fix_named(name)
    for cut, rng in zip(cuts, rngs, strict=True):
        yield cut, fix(source, target.features[cut.adapt], rng)


def under(source: Source, plan: FixPlan) -> Source:
    """The source with the plan's settings; the same one, and what it has fitted, where it can."""
    return source if source.settings == plan.settings else replace(source, settings=plan.settings)
