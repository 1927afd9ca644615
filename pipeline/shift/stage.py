"""Stage 4: take the gap between the source and each target apart, from the store.

How far the domains are apart (tests with controls), how well the hospital can be told
from the features, what the scores foretell without labels, which fixes that never see a
target label mend the loss, and then, with labels, what the loss is made of and what may
be said of it. Nothing here reads an image.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.errors import StudyError
from pipeline.joined import JoinedFeatures, load_joined
from pipeline.predictions import write_predictions
from pipeline.samples import SampleOptions
from pipeline.shift.adaptation import Source as SourceRows
from pipeline.shift.cohorts import Cohort
from pipeline.shift.detect import detect_with_controls
from pipeline.shift.findings import ControlledDetection, DetectionSettings
from pipeline.shift.leaderboard import FixPlan, Leaderboard, Target, predict_target, score
from pipeline.shift.leaks import shared_ids
from pipeline.shift.permute import PermutationPlan
from pipeline.shift.pictures import FeatureMap, feature_map, head_predictions, null_histogram
from pipeline.shift.probes import SourcePrediction, source_prediction
from pipeline.shift.products import place
from pipeline.shift.sealed import SealedLabels
from pipeline.shift.story import Story, foretell, tell
from pipeline.study import SOURCE, BackboneChoice, Study

SHIFT_REPORT = "shift.json"
SHIFT_PROBABILITIES = "shift.h5"
SCHEMA = 1


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
        story: The loss taken apart, what was foretold, the verdict.
        map: Both domains in two dimensions.
    """

    backbone: str
    target: str
    shared_patients: int
    source_prediction: SourcePrediction
    detection: ControlledDetection
    fixes: Leaderboard
    story: Story
    map: FeatureMap
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ShiftReport:
    """All targets of a study."""

    study: str
    classes: tuple[str, ...]
    targets: tuple[TargetReport, ...]


def analyse(study: Study, options: ShiftOptions | None = None) -> ShiftReport:
    """Compare the source with each target on every backbone.

    Returns:
        The report; also written to ``results/<study>/shift.json``, and the probabilities
        of the head that it is about to ``shift.h5`` beside it.

    Raises:
        StudyError: The study has no target, or a domain has too few patients.
        MissingFeaturesError: Stage 1 has not been run.
    """
    options = options or ShiftOptions()
    if not study.targets:
        raise StudyError("the study has no [target.NAME]: there is no shift to look at")
    disk.probe(study.results)
    found, kept = [], {}
    for choice in study.backbones:
        joined = load_joined(study, choice, options.samples)
        source = _source(joined)
        found += [_target(choice, joined, source, t.name, options) for t in study.targets]
        kept[choice.name] = head_predictions(joined, source)
    report = ShiftReport(study=study.name, classes=joined.samples.classes, targets=tuple(found))
    disk.make_dir(study.results)
    write_predictions(study.results / SHIFT_PROBABILITIES, kept)
    disk.publish(
        study.results / SHIFT_REPORT,
        json.dumps(plain(to_json(report)), indent=1, allow_nan=False).encode(),
    )
    return report


def _source(joined: JoinedFeatures) -> SourceRows:
    """The head and its penalty know the source alone, so they serve every target."""
    rows = joined.samples.domain == SOURCE
    return SourceRows(
        features=joined.X[rows],
        labels=joined.samples.label[rows],
        groups=joined.samples.group[rows],
    )


def _target(
    choice: BackboneChoice,
    joined: JoinedFeatures,
    source: SourceRows,
    name: str,
    options: ShiftOptions,
) -> TargetReport:
    start = time.perf_counter()
    rows = joined.samples.domain == name
    X, group = joined.X[rows], joined.samples.group[rows]
    plan = FixPlan(seeds=tuple(range(options.seeds)), settings=source.settings)
    # Until the fixes are scored, the labels of the target are under seal.
    sealed = SealedLabels(joined.samples.label[rows], plan.digest())
    target = Target(features=X, groups=group)
    settings = DetectionSettings(plan=PermutationPlan(draws=options.draws))
    here = Cohort(
        features=source.features,
        probabilities=source.out_of_fold,
        groups=source.groups,
        labels=source.labels,
    )
    there = Cohort(features=X, probabilities=_head_proba(source, X), groups=group)
    detection = detect_with_controls(
        here,
        there,
        lambda features: _head_proba(source, features),
        settings,
    )
    before = foretell(here, there, options.seed)
    fixes = score(predict_target(source, target, plan), sealed, source, target, plan)
    # From here on the labels are open: nothing that is fitted comes after.
    opened = replace(there, labels=sealed.unseal(plan.digest()))
    return TargetReport(
        backbone=choice.name,
        target=name,
        shared_patients=_shared(source.groups, group),
        source_prediction=_told_apart(source, X, group),
        detection=detection,
        fixes=fixes,
        story=tell(name, here, opened, before, fixes),
        map=feature_map(source, opened),
        seconds=round(time.perf_counter() - start, 2),
    )


def _head_proba(source: SourceRows, features: NDArray[np.floating]) -> NDArray[np.float64]:
    proba: NDArray[np.float64] = source.head.predict_proba(source.standardise(features))
    return proba


def _told_apart(
    source: SourceRows, X: NDArray[np.floating], group: NDArray[Any]
) -> SourcePrediction:
    """By predicted class in the target: its labels are still sealed."""
    called = _head_proba(source, X).argmax(axis=1)
    return source_prediction(
        np.concatenate([source.features, X]),
        np.repeat([False, True], [len(source.features), len(X)]),
        np.concatenate([source.groups, group]),
        np.concatenate([source.labels, called]),
        place(None),
    )


def _shared(source: NDArray[Any], target: NDArray[Any]) -> int:
    return sum(len(shared.ids) for shared in shared_ids({"source": source, "target": target}))


def to_json(report: ShiftReport) -> dict[str, Any]:
    """The report as JSON values; the schema's version is in it."""
    return {
        "schema": SCHEMA,
        "study": report.study,
        "classes": list(report.classes),
        "targets": [_target_json(t) for t in report.targets],
    }


def _target_json(t: TargetReport) -> dict[str, Any]:
    names = ("name", "primary", "statistic", "effect", "p", "p_holm", "refused")
    detect = [
        {
            **{name: getattr(finding, name) for name in names},
            "p_null_control": None if null is None else null.p,
            "p_positive_control": None if positive is None else positive.p,
            "null": null_histogram(finding.null),
        }
        for finding, null, positive in t.detection.rows()
    ]
    return {
        "backbone": t.backbone,
        "target": t.target,
        "shared_patients": t.shared_patients,
        "source_prediction": {
            "overall": t.source_prediction.overall,
            "by_class": list(t.source_prediction.by_class),
        },
        "detect": detect,
        "notes": list(t.detection.observed.notes),
        "fixes": [_fix_json(row) for row in (*t.fixes.rows, *t.fixes.k_shot)],
        "plan_hash": t.fixes.plan_hash,
        # Once to score the fixes, once to take the loss apart.
        "lookups_of_target_labels": t.fixes.reads + 1,
        "decomposition": plain(t.story.decomposition),
        "forecast": plain(t.story.forecast),
        "verdict": plain(t.story.verdict),
        "map": plain(t.map),
        "seconds": t.seconds,
    }


def plain(value: Any) -> Any:
    """Nested dataclasses, mappings and arrays as JSON values; what is not finite is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _fix_json(row: Any) -> Mapping[str, Any]:
    return {
        "name": row.name,
        "accuracy": row.accuracy,
        "accuracy_sd": row.accuracy_sd,
        "auroc": row.auroc,
        "difference": vars(row.difference),
        "p_holm": row.p_holm,
        "negative_transfer": row.negative_transfer,
        "uses_target_labels": row.uses_target_labels,
        "notes": dict(row.notes),
    }
