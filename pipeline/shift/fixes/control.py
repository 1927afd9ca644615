"""What the fixes do where there is nothing to mend: one half of the source to the other.

A fix that gains or loses here does so for reasons that are not shift.
"""

from dataclasses import replace

import numpy as np

from pipeline.errors import StudyError
from pipeline.shift.cohorts import split_by_patient
from pipeline.shift.fixes.adaptation import Source
from pipeline.shift.fixes.cross_fitting import Target, predict_target
from pipeline.shift.fixes.leaderboard import Leaderboard, score
from pipeline.shift.fixes.plan import FixPlan
from pipeline.shift.fixes.sealed import SealedLabels

#: Cuts of the second half: a control need not be as sharp as what it stands beside.
CONTROL_SEEDS = 2


def fixes_on_source(source: Source, plan: FixPlan, seed: int) -> Leaderboard | None:
    """Adapt the fixes from one half of the source's patients to the other.

    Args:
        source: The labelled domain.
        plan: Of the real comparison; here with fewer seeds and no k-shot rows.
        seed: Of the halving.

    Returns:
        The leaderboard; None where a half lacks a class or has too few patients.
    """
    plan = replace(plan, seeds=plan.seeds[:CONTROL_SEEDS], shots=())
    away = split_by_patient(source.groups, np.random.default_rng([seed, 14]))
    try:
        half = Source(
            features=source.features[~away],
            labels=source.labels[~away],
            groups=source.groups[~away],
            settings=plan.settings,
        )
        target = Target(features=source.features[away], groups=source.groups[away])
        sealed = SealedLabels(source.labels[away], plan.digest())
        return score(predict_target(half, target, plan), sealed, half, target, plan)
    except StudyError:
        return None
