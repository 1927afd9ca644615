"""Fixes at the values that a validator without labels chooses, and what labels would have chosen.

The choice is made on the half of the target that a fix is adapted to; the other half is
scored. The oracle chooses on the scored half itself: it is no result, but shows how much
the choice of a validator costs (Musgrave et al. 2022; SKADA-Bench 2024). One cut of the
target, the plan's first, so these rows are rougher than the headline rows.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.paired_tests import holm
from pipeline.shift.adapt import Source
from pipeline.shift.adapt_eval import (
    BASELINE,
    VALIDATORS,
    Cut,
    FixPlan,
    PairedDifference,
    Predictions,
    Target,
    adapted,
    halves,
    paired_difference,
)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One fix at ``V`` values of its setting, predicted without target labels."""

    name: str
    """Of the fix."""
    setting: str
    """Field of ``FixSettings``."""
    values: tuple[float, ...]
    """What was tried."""
    probabilities: NDArray[np.float64]
    """Shape (V, n, K): each row by the model adapted to the other half."""
    half: NDArray[np.intp]
    """Shape (n,): which of the two halves a row is scored in."""
    criterion: NDArray[np.float64]
    """Shape (V, 2): the validator on the half that was adapted to, by the half scored."""


@dataclass(frozen=True, kw_only=True)
class TunedRow:
    """One fix as tuned by the plan's validator, and by an oracle."""

    name: str
    """Of the fix."""
    setting: str
    """What was tuned."""
    chosen: tuple[float, ...]
    """By the validator, for each half."""
    accuracy: float
    """With these values, in [0, 1]."""
    difference: PairedDifference
    """Against the baseline of the same cut, paired, by patient."""
    p_holm: float
    """Sign-flip p-value, Holm-adjusted over the tuned rows."""
    oracle: tuple[float, ...]
    """What the labels of the scored half would have chosen."""
    oracle_accuracy: float
    """Accuracy with those: an upper bound, no result."""

    @property
    def regret(self) -> float:
        """What the validator's choice loses against the oracle's, >= 0."""
        return self.oracle_accuracy - self.accuracy


def try_values(
    source: Source, target: Target, plan: FixPlan, headline: Predictions
) -> tuple[Tried, ...]:
    """Predict the target at every value of the plan's grids; no label is there to be seen.

    Args:
        source: The labelled domain.
        target: The other one, without labels.
        plan: Grids, validator and first seed.
        headline: Predictions under the same plan, from which those at the defaults are taken.
    """
    first = replace(plan, seeds=plan.seeds[:1])
    cuts = list(halves(target.groups, first.seeds))
    half = np.zeros(len(target.groups), np.intp)
    half[cuts[1].score] = 1
    found = []
    for name, setting, values in plan.grids:
        tables, own = np.empty((2, len(values), len(target.groups), source.prior.size))
        for v, value in enumerate(values):
            change: dict[str, Any] = {setting: value}
            settings = replace(plan.settings, **change)
            if settings == plan.settings and name in headline.own_half:
                tables[v], own[v] = headline.probabilities[name][0], headline.own_half[name]
                continue
            for cut, predictor in adapted(name, source.with_settings(settings), target, first):
                tables[v, cut.score] = predictor(target.features[cut.score])
                own[v, cut.adapt] = predictor(target.features[cut.adapt])
        found.append(
            Tried(
                name=name,
                setting=setting,
                values=values,
                probabilities=tables,
                half=half,
                criterion=_criterion(own, cuts, plan.validator),
            )
        )
    return tuple(found)


def _criterion(
    own: NDArray[np.float64], cuts: Sequence[Cut], validator: str
) -> NDArray[np.float64]:
    """The validator, shape (V, 2), on each half, as predicted by the model adapted to it."""
    judge = VALIDATORS[validator]
    return np.array([[judge(table[cut.adapt]) for cut in cuts] for table in own])


def tuned_rows(
    tried: Sequence[Tried],
    predictions: Predictions,
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    plan: FixPlan,
) -> tuple[TunedRow, ...]:
    """Score the validator's choices, and find the oracle's.

    Args:
        tried: From :func:`try_values`.
        predictions: Of the headline rows: the baseline is theirs.
        labels: Of the target, shape (n,).
        groups: Its patients, shape (n,).
        plan: Draws and confidence.
    """
    base = predictions.probabilities[BASELINE][0].argmax(axis=1) == labels
    scored = []
    for one in tried:
        right = one.probabilities.argmax(axis=2) == labels
        chosen = one.criterion.argmax(axis=0)
        oracle = np.array([right[:, one.half == h].mean(axis=1).argmax() for h in range(2)])
        rng = np.random.default_rng([zlib.crc32(one.name.encode()), 7])
        ours, best = (right[which[one.half], np.arange(len(labels))] for which in (chosen, oracle))
        change = paired_difference(
            ours.astype(float) - base, groups, rng, plan.draws, plan.confidence
        )
        scored.append((one, chosen, ours.mean(), change, oracle, best.mean()))
    adjusted = holm([change.p for _, _, _, change, _, _ in scored])
    return tuple(
        TunedRow(
            name=one.name,
            setting=one.setting,
            chosen=tuple(one.values[v] for v in chosen),
            accuracy=float(accuracy),
            difference=change,
            p_holm=float(p),
            oracle=tuple(one.values[v] for v in oracle),
            oracle_accuracy=float(best),
        )
        for (one, chosen, accuracy, change, oracle, best), p in zip(scored, adjusted, strict=True)
    )
