"""Stage 4: take the gap between the source and each target apart, from the store.

How far the domains are apart (tests with controls), how well the hospital can be told
from the features, what the scores foretell without labels, which fixes that never see a
target label mend the loss, and then, with labels, what the loss is made of and what may
be said of it. Nothing here reads an image.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.appearance import APPEARANCE
from pipeline.errors import StudyError
from pipeline.heads.side_by_side import side_by_side
from pipeline.joined import JoinedFeatures, load_joined
from pipeline.json_values import plain
from pipeline.predictions import Predictions, write_predictions
from pipeline.samples import SampleOptions
from pipeline.shift import paper
from pipeline.shift.cohorts import Cohort
from pipeline.shift.cross_fitting import Target, predict_target
from pipeline.shift.detect import detect_with_controls
from pipeline.shift.differences import Difference, Pictures, differences
from pipeline.shift.errors_by_role import Given
from pipeline.shift.findings import ControlledDetection, DetectionSettings
from pipeline.shift.known import Checked, Facts, Known, check, known_of, source_of
from pipeline.shift.leaderboard import Leaderboard, score
from pipeline.shift.permute import PermutationPlan
from pipeline.shift.pictures import FeatureMap, feature_map, head_predictions
from pipeline.shift.probes import SourcePrediction
from pipeline.shift.provenance import (
    Circumstances,
    Provenance,
    caveats,
    inputs_of,
    roles_with_labels,
)
from pipeline.shift.record import to_json
from pipeline.shift.sealed import SealedLabels
from pipeline.shift.sides import (
    NotCompared,
    ask,
    here_of,
    not_compared,
    shared_patients,
    there_of,
    told_apart,
)
from pipeline.shift.story import Story, Telling, foretell, tell
from pipeline.shift.subgroup_values import Subgroups
from pipeline.shift.subgroups import subgroups
from pipeline.shift.trained import TrainedLoss, trained_losses
from pipeline.shift.tuning import TunedRow, try_values, tuned_rows
from pipeline.shift.unlabelled import Basis, UnlabelledReport, look
from pipeline.study import SOURCE, Study

SHIFT_REPORT = "shift.json"
SHIFT_PROBABILITIES = "shift.h5"


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """How stage 4 runs.

    Attributes:
        draws: Relabellings of each test.
        seeds: Cuts of the target into halves for the fixes.
        seed: Of the draws of the forecast.
        samples: See :class:`pipeline.samples.SampleOptions`.
    """

    draws: int = 999
    seeds: int = 10
    seed: int = 0
    samples: SampleOptions = field(default_factory=SampleOptions)


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """What was found between the source and one target, on one backbone.

    Attributes:
        shared_patients: Ids that both domains have; numbering may simply restart.
        source_prediction: How well the hospital can be told from the features.
        detection: Tests with their null and positive controls.
        fixes: Leaderboard of the fixes that see no label of the target.
        tuned: Fixes at values that a validator without labels chose, and an oracle.
        validator: Which.
        control: The same fixes from one half of the source to the other; None where a
            half lacks a class.
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
    tuned: tuple[TunedRow, ...]
    validator: str
    control: Leaderboard | None
    story: Story
    map: FeatureMap
    differences: tuple[Difference, ...] | None
    level: float
    subgroups: tuple[Subgroups, ...]
    provenance: Provenance
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ShiftReport:
    """All targets of a study, those without labels apart, and the networks trained on images.

    Attributes:
        not_compared: Targets that could not be, by backbone; no other entry has them.
    """

    study: str
    classes: tuple[str, ...]
    targets: tuple[TargetReport, ...]
    trained: tuple[TrainedLoss, ...] = ()
    unlabelled: tuple[UnlabelledReport, ...] = ()
    not_compared: tuple[NotCompared, ...] = ()


def analyse(study: Study, options: ShiftOptions | None = None) -> ShiftReport:
    """Compare the source with each target on every backbone.

    Returns:
        The report; also written to ``results/<study>/``: ``shift.json`` (see
        :mod:`pipeline.shift.record`), ``shift.md``, one ``shift_*.csv`` for each table, and
        the probabilities of the head that it is about in ``shift.h5``.

    Raises:
        StudyError: The study has no target that could be compared, or the source has too
            few patients.
        MissingFeaturesError: Stage 1 has not been run.
        CheckFailedError: A patient or a picture is in two roles.
    """
    options = options or ShiftOptions()
    if not study.targets:
        raise StudyError("the study has no [target.NAME]: there is no shift to look at")
    disk.probe(study.results)
    found: list[TargetReport] = []
    blind: list[UnlabelledReport] = []
    left: list[NotCompared] = []
    kept, checked = {}, None
    for choice in study.variants:
        joined = load_joined(study, choice, options.samples)
        if checked is None or checked.keys != joined.samples.key:
            checked = check(study, joined.samples, allow_leaks=options.samples.allow_leaks)
        lacking = {t.name: not_compared(joined, t.name) for t in study.targets}
        left += filter(None, lacking.values())
        others = tuple(t for t in study.targets if lacking[t.name] is None)
        if others:
            seen = _look(replace(study, targets=others), joined, checked, options)
            found += seen.targets
            blind += seen.unlabelled
            kept[choice.name] = seen.predictions
    if not kept:
        reasons = dict.fromkeys(f"{one.target}: {one.reason}" for one in left)
        raise StudyError(" ".join(["no target can be compared.", *reasons]))
    labelled = list(dict.fromkeys(one.target for one in found))
    report = ShiftReport(
        study=study.name,
        classes=joined.samples.classes,
        targets=tuple(found),
        trained=trained_losses(study.results, joined.samples, labelled, options.seed),
        unlabelled=tuple(blind),
        not_compared=tuple(left),
    )
    _write(study.results, report, kept)
    return report


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one backbone shows of all targets, and its head's probabilities."""

    targets: list[TargetReport]
    unlabelled: list[UnlabelledReport]
    predictions: Predictions


def _look(study: Study, joined: JoinedFeatures, checked: Checked, options: ShiftOptions) -> _Seen:
    labelled = [t.name for t in study.targets if t.labelled]
    unlabelled = [t.name for t in study.targets if not t.labelled]
    source = source_of(joined)
    targets: list[TargetReport] = []
    dev: Mapping[str, NDArray[np.bool_]] = {}
    if labelled:
        known = known_of(study, joined, source, checked, seeds=options.seeds, seed=options.seed)
        targets = side_by_side(
            [partial(_target, joined, known, name, options) for name in labelled]
        )
        dev = known.dev
    basis = Basis(source=source, settings=_settings(options), seed=options.seed, leak=checked.leak)
    return _Seen(
        targets=targets,
        unlabelled=side_by_side([partial(look, joined, basis, name) for name in unlabelled]),
        predictions=head_predictions(joined, source, dev),
    )


def _write(results: Path, report: ShiftReport, kept: Mapping[str, Predictions]) -> None:
    disk.make_dir(results)
    write_predictions(results / SHIFT_PROBABILITIES, kept)
    record = plain(to_json(report))
    files = {f"shift_{name}.csv": table for name, table in paper.tables(record).items()}
    files |= {
        "shift.md": paper.report(record).encode(),
        SHIFT_REPORT: json.dumps(record, indent=1, allow_nan=False).encode(),
    }
    for name, content in files.items():
        disk.publish(results / name, content)
    # A table of an earlier run would be taken for one of these numbers.
    stale = {f"shift_{name}.csv" for name in paper.OPTIONAL} - set(files)
    disk.remove(results, [name for name in stale if (results / name).exists()])


def _target(joined: JoinedFeatures, known: Known, name: str, options: ShiftOptions) -> TargetReport:
    start, source = time.perf_counter(), known.source
    rows = joined.samples.domain == name
    X, group = joined.X[rows], joined.samples.group[rows]
    plan = known.plan
    # Until the fixes are scored, the labels of the target are under seal.
    sealed = SealedLabels(joined.samples.label[rows], plan.digest())
    target = Target(features=X, groups=group)
    settings = _settings(options)
    here, there = here_of(source), there_of(source, X, group)
    detection = detect_with_controls(here, there, partial(ask, source), settings)
    before = foretell(here, there, options.seed)
    predictions = predict_target(source, target, plan)
    tried = try_values(source, target, plan, predictions)
    fixes = score(predictions, sealed, source, target, plan)
    # From here on the labels are open: nothing that is fitted comes after.
    opened = replace(there, labels=sealed.unseal(plan.digest()))
    dev = known.dev.get(name)
    telling = Telling(
        source=source,
        refits=known.refits,
        before=before,
        fixes=fixes,
        seed=options.seed,
        given=Given(human=known.human, dev=dev),
    )
    story = tell(name, here, opened, telling)
    shared = shared_patients(here, there)
    return TargetReport(
        backbone=joined.backbone,
        target=name,
        shared_patients=shared,
        source_prediction=told_apart(here, there),
        detection=detection,
        fixes=fixes,
        tuned=tuned_rows(tried, predictions, opened.classes(), group, plan),
        validator=plan.validator,
        control=known.control,
        story=story,
        map=feature_map(source, opened),
        differences=_differences(joined, name, known.checked.facts, options.seed),
        level=settings.plan.alpha,
        subgroups=(
            *known.subgroups,
            *subgroups("target", opened, known.groupings.get(name, ()), known.terms),
        ),
        provenance=Provenance(
            roles=roles_with_labels(here, opened, dev),
            seeds={
                "forecast, decomposition": options.seed,
                "relabellings": settings.plan.seed,
                "halves of the target": list(plan.seeds),
            },
            inputs=inputs_of(joined, name, opened.classes(), plan.digest()),
            caveats=_caveats(known, shared, opened, story, _others(joined, name)),
            leak=known.checked.leak,
        ),
        seconds=round(time.perf_counter() - start, 2),
    )


def _settings(options: ShiftOptions) -> DetectionSettings:
    return DetectionSettings(plan=PermutationPlan(draws=options.draws))


def _differences(
    joined: JoinedFeatures, name: str, facts: Facts | None, seed: int
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


def _others(joined: JoinedFeatures, name: str) -> frozenset[str]:
    return frozenset(joined.samples.domain.tolist()) - {SOURCE, name}


def _caveats(
    known: Known, shared: int, opened: Cohort, story: Story, others: frozenset[str]
) -> tuple[str, ...]:
    control = () if known.control is None else known.control.rows
    return caveats(
        Circumstances(
            shared_patients=shared,
            patients={
                "source": np.unique(known.source.groups).size,
                "target": np.unique(opened.groups).size,
            },
            score_changed=story.verdict.labels_needed,
            harmful=[row.name for row in control if row.negative_transfer],
            elsewhere=others,
        ),
        known.checked.leak,
    )
