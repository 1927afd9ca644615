"""A target with labels: what is seen while they are sealed, then what the loss is made of."""

import time
from dataclasses import dataclass

import numpy as np

from pipeline.data.facts import APPEARANCE
from pipeline.features.load import FeatureTable
from pipeline.shift.adapt_eval import AdaptationResult, SealedLabels, predict_target, score
from pipeline.shift.covariates import Difference, Pictures, differences
from pipeline.shift.detect import LEVEL, Detection, detect
from pipeline.shift.domains import Cohort, here_of, shared_patients
from pipeline.shift.figure_data import FeatureMap, feature_map
from pipeline.shift.known import Facts, Known
from pipeline.shift.label_free import estimate_accuracy
from pipeline.shift.provenance import (
    Circumstances,
    Provenance,
    caveats,
    inputs_of,
    roles_with_labels,
)
from pipeline.shift.story import Story, Telling, tell
from pipeline.shift.subgroups import Subgroups, subgroups
from pipeline.study import SOURCE


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """What was found between the source and one target, on one backbone.

    Attributes:
        shared_patients: Ids that both domains have; numbering may simply restart.
        detection: Tests with their controls, and the AUC of a domain classifier.
        adaptation: The adaptation methods, which see no label of the target.
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
    detection: Detection
    adaptation: AdaptationResult
    story: Story
    map: FeatureMap
    differences: tuple[Difference, ...] | None
    level: float
    subgroups: tuple[Subgroups, ...]
    provenance: Provenance
    seconds: float


def examine(joined: FeatureTable, known: Known, name: str, draws: int, seed: int) -> TargetReport:
    """Say of a target with labels all that can be said.

    Args:
        joined: Samples with features.
        known: What is known before any target is looked at.
        name: Of the target.
        draws: Permutations of the tests.
        seed: Of the draws of the estimates and of the parts of the loss.

    Raises:
        StudyError: Too few patients.
    """
    start, source = time.perf_counter(), known.source
    plan, data = known.plan, joined.domain(name)
    # Until the methods are scored, the labels of the target are under seal.
    sealed, target = SealedLabels(data.label, plan.digest()), source.scored(data.sealed())
    detection = detect(source.data, target, source.predict_proba, draws=draws)
    estimate = estimate_accuracy(source.data, target, np.random.default_rng([seed, 11]))
    predictions = predict_target(source, target, plan)
    adaptation = score(predictions, sealed, source, target, plan)
    # From here on the labels are open: nothing that is fitted comes after.
    here = here_of(source)
    opened = Cohort(
        features=target.embedded(),
        probabilities=target.scored(),
        groups=target.group,
        labels=sealed.unseal(plan.digest()),
    )
    telling = Telling(
        source=source,
        refits=known.refits,
        estimate=estimate,
        adaptation=adaptation,
        seed=seed,
        human=known.human,
    )
    story = tell(name, here, opened, telling)
    shared = shared_patients(joined.samples, here, opened)
    return TargetReport(
        backbone=joined.backbone,
        target=name,
        shared_patients=shared,
        detection=detection,
        adaptation=adaptation,
        story=story,
        map=feature_map(source, opened),
        differences=_differences(joined, name, known.checked.facts, seed),
        level=LEVEL,
        subgroups=(
            *known.subgroups,
            *subgroups("target", opened, known.groupings.get(name, ()), known.terms),
        ),
        provenance=Provenance(
            roles=roles_with_labels(here, opened),
            seeds={
                "estimates, decomposition": seed,
                "permutations": 0,
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
                "source": known.source.data.patients,
                "target": np.unique(opened.groups).size,
            },
            score_changed=story.verdict.labels_needed,
            elsewhere=others,
        ),
        known.checked.leak,
    )
