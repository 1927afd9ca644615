"""A target with labels: what is seen while they are sealed, then what the loss is made of."""

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pipeline.data.facts import APPEARANCE
from pipeline.features.load import FeatureTable
from pipeline.shift.adapt_eval import Leaderboard, SealedLabels, Target, predict_target, score
from pipeline.shift.covariates import Difference, Pictures, differences
from pipeline.shift.detect import ControlledDetection, DetectionSettings, detect_with_controls
from pipeline.shift.domains import Cohort, ask, here_of, shared_patients, there_of, told_apart
from pipeline.shift.figure_data import FeatureMap, feature_map
from pipeline.shift.known import Facts, Known
from pipeline.shift.probes import SourcePrediction
from pipeline.shift.provenance import (
    Circumstances,
    Provenance,
    caveats,
    inputs_of,
    roles_with_labels,
)
from pipeline.shift.story import Story, Telling, foretell, tell
from pipeline.shift.subgroups import Subgroups, subgroups
from pipeline.study import SOURCE


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """What was found between the source and one target, on one backbone.

    Attributes:
        shared_patients: Ids that both domains have; numbering may simply restart.
        source_prediction: How well the hospital can be told from the features.
        detection: Tests with their null and positive controls.
        fixes: Leaderboard of the fixes that see no label of the target.
        story: The loss taken apart, what was foretold, the verdict.
        map: Both domains in two dimensions.
        differences: Habits of the hospitals; None where no audit has measured the pictures.
        level: Of the tests.
        subgroups: Of the source, then of the target; empty unless the study asks for them.
        provenance: Roles, seeds, inputs, leaks and caveats.
    """

    backbone: str
    target: str
    shared_patients: int
    source_prediction: SourcePrediction
    detection: ControlledDetection
    fixes: Leaderboard
    story: Story
    map: FeatureMap
    differences: tuple[Difference, ...] | None
    level: float
    subgroups: tuple[Subgroups, ...]
    provenance: Provenance
    seconds: float


def examine(
    joined: FeatureTable, known: Known, name: str, settings: DetectionSettings, seed: int
) -> TargetReport:
    """Say of a target with labels all that can be said.

    Args:
        joined: Samples with features.
        known: What is known before any target is looked at.
        name: Of the target.
        settings: Of the tests.
        seed: Of the draws of the forecast and of the parts of the loss.

    Raises:
        StudyError: Too few patients.
    """
    start, source = time.perf_counter(), known.source
    rows = joined.samples.domain == name
    X, group = joined.X[rows], joined.samples.group[rows]
    plan = known.plan
    # Until the fixes are scored, the labels of the target are under seal.
    sealed = SealedLabels(joined.samples.label[rows], plan.digest())
    target = Target(features=X, groups=group)
    here, there = here_of(source), there_of(source, X, group)
    detection = detect_with_controls(here, there, partial(ask, source), settings)
    before = foretell(here, there, seed)
    predictions = predict_target(source, target, plan)
    fixes = score(predictions, sealed, source, target, plan)
    # From here on the labels are open: nothing that is fitted comes after.
    opened = replace(there, labels=sealed.unseal(plan.digest()))
    telling = Telling(
        source=source,
        refits=known.refits,
        before=before,
        fixes=fixes,
        seed=seed,
        human=known.human,
    )
    story = tell(name, here, opened, telling)
    shared = shared_patients(joined.samples, here, there)
    return TargetReport(
        backbone=joined.backbone,
        target=name,
        shared_patients=shared,
        source_prediction=told_apart(here, there),
        detection=detection,
        fixes=fixes,
        story=story,
        map=feature_map(source, opened),
        differences=_differences(joined, name, known.checked.facts, seed),
        level=settings.plan.alpha,
        subgroups=(
            *known.subgroups,
            *subgroups("target", opened, known.groupings.get(name, ()), known.terms),
        ),
        provenance=Provenance(
            roles=roles_with_labels(here, opened),
            seeds={
                "forecast, decomposition": seed,
                "relabellings": settings.plan.seed,
                "halves of the target": list(plan.seeds),
            },
            inputs=inputs_of(joined, name, opened.classes(), plan.digest()),
            caveats=_caveats(known, shared, opened, story, _others(joined, name)),
            leak=known.checked.leak,
        ),
        seconds=round(time.perf_counter() - start, 2),
    )


def _differences(
    joined: FeatureTable, name: str, facts: Facts | None, seed: int
) -> tuple[Difference, ...] | None:
    """Habits of the hospitals; looks at labels of the target, which are open by now."""
    if facts is None:
        return None
    s = joined.samples
    here, there = (
        Pictures(
            measures={m: facts[m][s.domain == d].astype(np.float64) for m in APPEARANCE},
            labels=s.label[s.domain == d],
            groups=s.group[s.domain == d],
        )
        for d in (SOURCE, name)
    )
    return differences(here, there, np.random.default_rng([seed, 17]))


def _others(joined: FeatureTable, name: str) -> frozenset[str]:
    return frozenset(joined.samples.domain.tolist()) - {SOURCE, name}


def _caveats(
    known: Known, shared: int, opened: Cohort, story: Story, others: frozenset[str]
) -> tuple[str, ...]:
    return caveats(
        Circumstances(
            shared_patients=shared,
            patients={
                "source": np.unique(known.source.groups).size,
                "target": np.unique(opened.groups).size,
            },
            score_changed=story.verdict.labels_needed,
            harmful=(),
            elsewhere=others,
        ),
        known.checked.leak,
    )
