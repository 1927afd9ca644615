"""Stage 4: why a head is worse on a target, and what helps; from the features in the store.

Read from top to bottom: load and check, choose the head, then analyse each target. The adaptation
methods start from their own linear head. A target's labels are sealed until all methods have
predicted it; after that they only measure. Heads that are fitted to them are a diagnosis, not a
result. No image is read.

The record, ``shift.json``, is described key by key in the README beside this file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from cache import disk
from pipeline.data.attributes import Grouping, groupings
from pipeline.data.domain import DomainData
from pipeline.data.index import APPEARANCE, stored_measures
from pipeline.data.leaks import CheckResult, check_leaks, refuse_leaks
from pipeline.data.patients import single_patient_hint
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import PartialFailureError, PipelineError, StudyError, record_failure
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.predictions import Predictions, predictions_file, predictions_of
from pipeline.features.load import FeatureTable, feature_tables
from pipeline.parallel import run_each
from pipeline.results import write_set
from pipeline.shift.adapt import (
    AdaptationPlan,
    BestMethod,
    SealedLabels,
    predict_target,
    score,
)
from pipeline.shift.calibrate import calibration, choose_threshold, transferred_thresholds
from pipeline.shift.covariates import acquisition_differences, summary
from pipeline.shift.decompose import decompose, error_table
from pipeline.shift.detect import DRAWS, FEWEST_DRAWS, LEVEL, ShiftTest, detect, images_differ
from pipeline.shift.head import AnalysedHead, SourceModel, analysed_head, fit_source
from pipeline.shift.label_free import NO_OVERLAP, estimate_accuracy, without_accuracy
from pipeline.shift.subgroups import subgroups
from pipeline.shift.verdict import caveats, verdict, verdict_without_labels
from pipeline.study import SOURCE, Study
from pipeline.words import to_jsonable

SCHEMA = 13
SHIFT_REPORT = "shift.json"
SHIFT_PROBABILITIES = "shift.h5"
#: Numbers of features below which products have one thread: two that wait for each other in
#: each of many small ones took 166 s of CPU for the demo, which takes 7 s with one.
LARGE = 1 << 25
#: What a target without labels has none of.
_NEED_LABELS: Mapping[str, Any] = {
    **dict.fromkeys(("error_table", "covariates_summary")),
    **dict.fromkeys(("causes", "effects", "adaptation", "calibration"), ()),
    **dict.fromkeys(("thresholds", "subgroups", "covariates"), ()),
}
#: Of the map of the features: images of each domain, as more points would hide one another; and
#: standard deviations at most, as one odd image would else be a component of its own.
_POINTS, _CLIP = 500, 5.0
_Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """How stage 4 runs.

    Attributes:
        draws: Permutations of each test, at least 19: with fewer, p <= 0.05 is impossible.
        seeds: Divisions of the target into halves for the adaptation methods, at least 1.
        head: Name of the compared head to analyse; None: the best on validation.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    draws: int = DRAWS
    seeds: int = 5
    head: str | None = None
    samples: SampleOptions = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        if self.draws < FEWEST_DRAWS or self.seeds < 1:
            raise StudyError(
                f"draws = {self.draws}, seeds = {self.seeds}: ask for {FEWEST_DRAWS} draws or "
                "more, of fewer no test could reject, and for 1 seed or more"
            )


#: Fewer draws for a first look; more draws for stable numbers.
QUICK = ShiftOptions(draws=199, seeds=2)
THOROUGH = ShiftOptions(draws=4999, seeds=30)


class _Analysis(NamedTuple):
    """What was found on one backbone: entries of targets, and why a target has none."""

    entries: Sequence[_Record]
    failures: Mapping[str, Exception]
    predictions: Predictions | None = None
    maps: Mapping[str, NDArray[Any]] = {}


def analyse(study: Study, options: ShiftOptions | None = None) -> _Record:
    """Compare the source with each target on every backbone.

    Returns:
        The record, JSON values; also written to ``results/<study>/shift.json``, and the
        probabilities of the head with the map of the features to ``shift.h5``.

    Raises:
        StudyError: No target can be compared, or the source has too few patients.
        MissingFeaturesError: Stage 1 has not been run.
        MissingResultsError: The named head was compared on no backbone.
        CheckFailedError: A patient or an image is in two splits.
        PartialFailureError: A target was not compared on every backbone; others are recorded.
    """
    options = options or ShiftOptions()
    if not study.targets:
        raise StudyError("the study has no [target.NAME]: add one to compare the source with")
    disk.prepare(study.results)
    samples, _ = load_samples(study, options.samples)
    analyses: dict[str, _Analysis] = {}
    failures: dict[str, Exception] = {}
    for backbone, table in feature_tables(study, samples):
        if isinstance(table, Exception):
            failures[backbone] = table
            continue
        with record_failure(backbone, failures, alone=len(study.variants) == 1):
            analyses[backbone] = _analyse_backbone(study, table, options)
    if not analyses:
        raise next(iter(failures.values()))
    reasons = [(backbone, t.name, why) for backbone, why in failures.items() for t in study.targets]
    for backbone, analysis in analyses.items():
        reasons += [(backbone, target, why) for target, why in analysis.failures.items()]
    entries = [entry for analysis in analyses.values() for entry in analysis.entries]
    if not entries:
        lines = dict.fromkeys(f"{target}: {reason}" for _, target, reason in reasons)
        raise StudyError(" ".join(["no target can be compared.", *lines]))
    probabilities = predictions_file(
        {name: a.predictions for name, a in analyses.items() if a.predictions},
        curves={name: a.maps for name, a in analyses.items()},
    )
    record: _Record = to_jsonable(
        {
            "schema": SCHEMA,
            "study": study.name,
            "classes": samples.classes,
            "targets": entries,
            "not_compared": [
                {"backbone": backbone, "target": target, "reason": str(reason)}
                for backbone, target, reason in reasons
            ],
        }
    )
    write_set(
        study.results / SHIFT_REPORT,
        record,
        {SHIFT_PROBABILITIES: probabilities},
        owned=("shift*.csv", "figures/shift-*"),
    )
    parts: dict[str, Exception] = {}
    for analysis in analyses.values():
        parts |= {f"target.{target}": why for target, why in analysis.failures.items()}
    parts |= {f"backbone.{backbone}": why for backbone, why in failures.items()}
    if parts:
        raise PartialFailureError(parts, record)
    return record


def _analyse_backbone(study: Study, table: FeatureTable, options: ShiftOptions) -> _Analysis:
    """Read what earlier stages have left, fit the head to the source, analyse each target."""
    samples, failures = table.samples, dict(table.samples.failures)
    source, *targets = (table.domain(d.name) for d in study.domains if d.name not in failures)
    measures = stored_measures(study.store_root, samples.key)
    results, _ = check_leaks(study, samples, measures)
    if not options.samples.allow_leaks:
        refuse_leaks(results)
    groups = groupings(study, samples, failures)  # it may refuse a user's file
    for target in targets:
        if target.patients == 1:
            failures.setdefault(target.name, _one_patient(target))
    targets = [target for target in targets if target.name not in failures]
    if not targets:
        return _Analysis([], failures)
    with threadpool_limits(1 if table.X.size < LARGE else None):
        head = analysed_head(study.results, table, fit_source(source), options.head)
        tested = np.isfinite(head.proba[source.row]).all(axis=1)
        groups_s = [replace(g, member=g.member[tested]) for g in groups.get(SOURCE, ())]
        jobs = {
            target.name: partial(
                analyse_target,
                head,
                target,
                classes=samples.classes,
                groups=(groups_s, groups.get(target.name, ())),
                measures=measures,
                human_error=study.human_error,
                seed=study.seed,
                options=options,
            )
            for target in targets
        }
        records = _run_each(jobs, failures)
    if not records:
        return _Analysis([], failures)
    for target in targets:
        if target.name in records:
            record = records[target.name]
            record["backbone"] = table.backbone
            about = _about(target, results, study)
            pairs = zip(groups_s, groups.get(target.name, ()), strict=False)
            record["caveats"] = caveats(head.source, target, about, pairs)
            record["provenance"]["recipes"] = [store.recipe.fingerprint for store in table.stores]
    maps = {
        f"{target.name}/{name}": values
        for target in targets
        if target.label is not None
        for name, values in feature_map(head.model, target).items()
    }
    predictions = predictions_of(samples, {head.trained: head.proba})
    return _Analysis(list(records.values()), failures, predictions, maps)


def _one_patient(target: DomainData) -> StudyError:
    return StudyError(
        f"Images: {len(target)}, all of one patient; a comparison by patient needs two, "
        "better 20 or more. Add images of others; "
        f"{single_patient_hint(f'target.{target.name}')}."
    )


def _run_each(
    jobs: Mapping[str, Callable[[], _Record]], failures: dict[str, Exception]
) -> dict[str, _Record]:
    """By target what its job returns; why one failed is added to ``failures``, others go on."""
    records: dict[str, _Record] = {}
    for target, outcome in zip(jobs, run_each(list(jobs.values())), strict=True):
        if isinstance(outcome, dict):
            records[target] = outcome
        elif isinstance(outcome, PipelineError):
            failures[target] = outcome
        elif outcome is not None:
            raise outcome
    return records


def _about(target: DomainData, results: Sequence[CheckResult], study: Study) -> list[CheckResult]:
    """Those on the source or this target, and on no other target."""
    others = {domain.name for domain in study.targets} - {target.name}
    return [result for result in results if not others & set(result.where.split(" and "))]


def analyse_target(
    head: AnalysedHead,
    target: DomainData,
    *,
    classes: Sequence[str],
    groups: tuple[Sequence[Grouping], Sequence[Grouping]],
    measures: NDArray[Any] | None,
    human_error: float | None,
    seed: int,
    options: ShiftOptions,
) -> _Record:
    """The entry of one target in the record.

    Args:
        head: The head in question.
        target: Features; and labels, which stay sealed until every method has predicted.
        classes: Their names.
        groups: The images of source and target by attribute, where a file has any.
        measures: Of all images of the study, where an audit has measured them.
        human_error: Error of a person on the source; None if unknown.
        seed: Of the study.
        options: How the stage runs.

    Raises:
        StudyError: The domains have too few patients for any test.
    """
    source, labelled = head.source, target.label is not None
    plan = AdaptationPlan(seeds=tuple(range(options.seeds)))
    sealed = SealedLabels(target.label, plan.digest())
    blind = head.apply(target.sealed())
    scored = head.model.cross_fit(blind)
    tests, domain_auc = detect(head.model.data, scored, draws=options.draws)
    rng = np.random.default_rng([seed, 11])
    accuracy_range = estimate_accuracy(source, blind, rng, classes=classes)
    # An interval wholly above it: then no image of the source says how right the head is.
    if domain_auc.low > NO_OVERLAP:
        accuracy_range = without_accuracy(accuracy_range)
    if labelled:
        predicted = predict_target(head.model, blind, plan)
        adaptation, best = score(predicted, sealed, head.model, blind, plan)
        # From here on the labels are open: no prediction that is scored comes after.
        opened = blind.with_(label=sealed.unseal(plan.digest()))
        details = _labelled_details(
            head, opened, groups, measures, tests, best, human_error=human_error, seed=seed
        )
        details["adaptation"] = adaptation
        details["thresholds"] = transferred_thresholds(source, opened)
    else:
        shifted = any(test.p_adjusted is not None and test.p_adjusted <= LEVEL for test in tests)
        details = _unlabelled_details(source, blind.name, accuracy_range, shifted=shifted)
    return {
        "target": target.name,
        "head": head.trained[0],
        "about_head": head.about,
        "labelled": labelled,
        "source_images": len(source),
        "source_patients": source.patients,
        "images": len(target),
        "patients": target.patients,
        **details,
        "detection": tests,
        "accuracy_range": accuracy_range,
        # Without labels no method is scored, so there is no plan.
        "provenance": {"plan": plan.digest() if labelled else None, "label_reads": sealed.reads},
    }


def _labelled_details(
    head: AnalysedHead,
    target: DomainData,
    groups: tuple[Sequence[Grouping], Sequence[Grouping]],
    measures: NDArray[Any] | None,
    tests: Sequence[ShiftTest],
    best: BestMethod | None,
    *,
    human_error: float | None,
    seed: int,
) -> _Record:
    """What the labels of the target show, which are open now."""
    source, whole = head.source, head.model.data
    effects = decompose(source, target, groupings=zip(*groups, strict=False), seed=seed)
    errors, transfer = error_table(
        whole, target, source=source, training=head.training, human_error=human_error, seed=seed
    )
    effects |= transfer
    covariates = None
    if measures is not None:
        rng = np.random.default_rng([seed, 17])
        shown = {name: measures[name].astype(np.float64) for name in APPEARANCE}
        covariates = acquisition_differences(source, target, shown, rng)
    differences = summary(covariates)
    scores = _scores(source, target)
    conclusion = verdict(
        target.name,
        effects,
        **scores,
        images_differ=images_differ(tests),
        best=best,
        measured=differences if any(c.shown for c in covariates or ()) else None,
    )
    threshold = choose_threshold("youden", source) if target.get_proba().shape[1] == 2 else None
    return {
        **scores,
        "verdict": conclusion.sentences,
        "causes": conclusion.causes,
        "labels_needed": conclusion.labels_needed,
        "effects": list(effects.values()),
        "error_table": errors,
        "calibration": [calibration(data) for data in (source, target)],
        "subgroups": subgroups(source, target, groups, threshold=threshold, seed=seed),
        "covariates": covariates or [],
        "covariates_summary": differences,
    }


def _unlabelled_details(
    source: DomainData, target: str, accuracy_range: _Record, *, shifted: bool
) -> _Record:
    scores = _scores(source, None)
    sentences = verdict_without_labels(
        target,
        source_accuracy=scores["accuracy"]["source"],
        accuracy_range=(accuracy_range["low"], accuracy_range["high"]),
        shifted=shifted,
    )
    return {**_NEED_LABELS, **scores, "verdict": sentences, "labels_needed": shifted}


def _scores(source: DomainData, target: DomainData | None) -> dict[str, _Record]:
    """Accuracy, and AUROC of the second class (macro of more, None where a class is absent)."""
    accuracy, auroc = {}, {}
    for name, data in (("source", source), ("target", target)):
        accuracy[name] = None if data is None else float((~data.wrong()).mean())
        auroc[name] = None if data is None else metric("auroc", data.get_label(), data.get_proba())
    return {"accuracy": accuracy, "auroc": auroc}


def feature_map(model: SourceModel, target: DomainData) -> dict[str, NDArray[Any]]:
    """Project a sample of both labelled domains, of equal weight, on two principal components.

    Returns:
        ``embedding`` (n, 2), ``embedding_target`` (n,) bool, ``embedding_label`` (n,).
    """
    rng = np.random.default_rng(0)
    parts = [
        data.take(np.sort(rng.permutation(len(data))[:_POINTS])) for data in (model.data, target)
    ]
    rows = np.vstack([model.standardise(part.get_features()) for part in parts])
    pca = PCA(2, svd_solver="randomized", random_state=0)
    return {
        "embedding": pca.fit_transform(rows.clip(-_CLIP, _CLIP)),
        "embedding_target": np.repeat([False, True], [len(part) for part in parts]),
        "embedding_label": np.concatenate([part.get_label() for part in parts]),
    }
