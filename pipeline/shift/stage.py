"""Stage 4: why a head is worse on a target, and what helps; from the features in the store.

Read from top to bottom: what is loaded and checked, the head in question, then each target. The
adaptation methods start from a linear head of their own. Until each has predicted a target, its
labels are sealed; after that they measure, and heads that are fitted to them are a diagnosis and
no result. No image is read.

The record, ``shift.json``, is described key by key in the README beside this file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.data.attributes import Grouping, groupings
from pipeline.data.domain import DomainData
from pipeline.data.index import APPEARANCE, stored_facts
from pipeline.data.leaks import check_leaks, overlaps, refuse_leaks
from pipeline.data.patients import single_patient_hint
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import PipelineError, StudyError, go_on
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.predictions import Predictions, predictions_file, predictions_of
from pipeline.features.load import FeatureTable, feature_tables
from pipeline.parallel import run_parallel
from pipeline.results import prepare, write_set
from pipeline.shift.adapt_eval import (
    AdaptationPlan,
    BestMethod,
    SealedLabels,
    predict_target,
    score,
)
from pipeline.shift.calibrate import calibration, choose_threshold, transferred_thresholds
from pipeline.shift.covariates import Measures, acquisition_differences, summary
from pipeline.shift.decompose import decompose
from pipeline.shift.detect import DRAWS, FEWEST_DRAWS, LEVEL, detect, images_differ
from pipeline.shift.domains import feature_maps, fit_source
from pipeline.shift.error_table import error_table
from pipeline.shift.head import AnalysedHead, analysed_head
from pipeline.shift.label_free import NO_OVERLAP, estimate_accuracy
from pipeline.shift.subgroups import subgroups
from pipeline.shift.verdict import caveats, verdict, verdict_without_labels
from pipeline.study import Study
from pipeline.words import to_jsonable

SCHEMA = 10
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
_Record = dict[str, Any]
_Description = tuple[Sequence[Grouping], Measures | None]
"""Groupings of a domain's images, and measures of its pictures where an audit made them."""


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """How stage 4 runs.

    Attributes:
        draws: Permutations of each test, 19 at least: of fewer none gives p <= 0.05.
        seeds: Divisions of the target into halves for the adaptation methods, 1 at least.
        head: Which of the compared heads is analysed; None: the best on validation.
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


#: Fewer draws for a first look; more where a number must hardly move.
QUICK = ShiftOptions(draws=199, seeds=2)
THOROUGH = ShiftOptions(draws=4999, seeds=30)


class _Analysis(NamedTuple):
    """Entries of targets on one backbone, why others have none, and what the HDF5 file gets."""

    entries: list[_Record]
    reasons: dict[str, object]
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
        MissingResultsError: A head is asked for that was compared on no backbone.
        CheckFailedError: A patient or an image is in two roles.
    """
    options = options or ShiftOptions()
    if not study.targets:
        raise StudyError("the study has no [target.NAME]: add one to compare the source with")
    prepare(study.results)
    samples, _ = load_samples(study, options.samples)
    analyses: dict[str, _Analysis] = {}
    failures: dict[str, Exception] = {}
    for backbone, table in feature_tables(study, samples):
        if isinstance(table, Exception):
            failures[backbone] = table
            continue
        with go_on(backbone, failures, alone=len(study.variants) == 1):
            analyses[backbone] = _analyse_backbone(study, table, options)
    if not analyses:
        raise next(iter(failures.values()))
    names = [target.name for target in study.targets]
    reasons = {backbone: dict.fromkeys(names, why) for backbone, why in failures.items()}
    skipped = [
        {"backbone": backbone, "target": target, "reason": str(why)}
        for backbone, by_target in (reasons | {b: a.reasons for b, a in analyses.items()}).items()
        for target, why in by_target.items()
    ]
    entries = [entry for analysis in analyses.values() for entry in analysis.entries]
    if not entries:
        lines = dict.fromkeys(f"{entry['target']}: {entry['reason']}" for entry in skipped)
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
            "not_compared": skipped,
        }
    )
    write_set(
        study.results / SHIFT_REPORT,
        record,
        {SHIFT_PROBABILITIES: probabilities},
        owned=("shift*.csv", "figures/shift-*"),
    )
    return record


def _analyse_backbone(study: Study, table: FeatureTable, options: ShiftOptions) -> _Analysis:
    """Check the domains, fit the head to the source, and look at all targets side by side."""
    facts = stored_facts(study.store_root, table.samples.key)
    findings = check_leaks(study, table.samples, overlaps(study, table.samples, facts), facts)
    if not options.samples.allow_leaks:
        refuse_leaks(findings)
    failures = dict(table.samples.failures)
    groups = groupings(study, table.samples, failures)  # it may refuse a user's file
    source, *targets = (table.domain(d.name) for d in study.domains if d.name not in failures)
    reasons: dict[str, object] = {**failures}
    for target in targets:
        if target.patients == 1:
            reasons[target.name] = (
                f"Images: {len(target)}, all of one patient; a comparison by patient needs two, "
                "better 20 or more. Add images of others; "
                f"{single_patient_hint(f'target.{target.name}')}."
            )
    compared = [target for target in targets if target.patients > 1]
    if not compared:
        return _Analysis([], reasons)
    with threadpool_limits(1 if table.X.size < LARGE else None):
        model = fit_source(source)
        head = analysed_head(study, table, model, options.head)
        of_source = _describe(source, head.source, groups, facts)
        jobs = [
            partial(
                _entry_or_reason,
                head,
                target,
                classes=table.samples.classes,
                descriptions=(of_source, _describe(target, target, groups, facts)),
                human=study.human_error,
                options=options,
                seed=study.seed,
            )
            for target in compared
        ]
        outcomes = run_parallel(jobs)
    entries = []
    names = {target.name for target in study.targets}
    for entry, target in zip(outcomes, compared, strict=True):
        if isinstance(entry, str):
            reasons[target.name] = entry
            continue
        entries.append(entry)
        others = names - {target.name}
        about = [f for f in findings if not others & set(f.where.split(" and "))]
        entry |= {"backbone": table.backbone, "head": head.name, "about_head": head.about}
        entry["caveats"] = caveats(head.source, target, about)
        entry["provenance"]["recipes"] = [store.recipe.fingerprint for store in table.stores]
    if not entries:
        return _Analysis([], reasons)
    maps = feature_maps(model, [target for target in compared if target.label is not None])
    return _Analysis(
        entries, reasons, predictions_of(table.samples, {head.trained: head.proba}), maps
    )


def _entry_or_reason(*arguments: Any, **named: Any) -> _Record | str:
    """The entry of a target, or why it has none: the other targets are compared all the same."""
    try:
        return analyse_target(*arguments, **named)
    except PipelineError as reason:
        return str(reason)


def _describe(
    domain: DomainData,
    data: DomainData,
    groups: Mapping[str, Sequence[Grouping]],
    facts: NDArray[Any] | None,
) -> _Description:
    """Of some rows of a domain."""
    rows = np.isin(np.asarray(domain.row), np.asarray(data.row))
    of_rows = [replace(g, member=g.member[rows]) for g in groups.get(data.name, ())]
    if facts is None:
        return of_rows, None
    return of_rows, {name: facts[name][data.row].astype(np.float64) for name in APPEARANCE}


def analyse_target(
    head: AnalysedHead,
    target: DomainData,
    *,
    classes: Sequence[str],
    descriptions: tuple[_Description, _Description],
    human: float | None,
    options: ShiftOptions,
    seed: int,
) -> _Record:
    """The entry of one target in the record.

    Args:
        head: The head in question.
        target: Features; and labels, which stay sealed until every method has predicted.
        classes: Their names.
        descriptions: Of the images of source and target.
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.
        options: How the stage runs.
        seed: Of the study.

    Raises:
        StudyError: The domains have too few patients for any test.
    """
    source, model, labelled = head.source, head.linear, target.label is not None
    plan = AdaptationPlan(seeds=tuple(range(options.seeds)))
    sealed = SealedLabels(target.label, plan.digest())
    blind = head.scored(target.sealed())
    tests, domain_auc = detect(source, blind, draws=options.draws)
    estimate = estimate_accuracy(source, blind, np.random.default_rng([seed, 11]))
    # An interval wholly above it: then no image of the source says how right the head is.
    accuracy_range = estimate.record(classes, withheld=domain_auc.low > NO_OVERLAP)
    if not labelled:
        shifted = any(test.p_adjusted is not None and test.p_adjusted <= LEVEL for test in tests)
        details = _without_labels(source, blind.name, accuracy_range, shifted=shifted)
    else:
        rows, best = score(predict_target(model, blind, plan), sealed, model, blind, plan)
        # From here on the labels are open: no prediction that is scored comes after.
        details = _with_labels(
            head,
            blind.with_(label=sealed.unseal(plan.digest())),
            descriptions,
            best=best,
            differ=images_differ(tests),
            prevalence=estimate.prevalence[1].estimate,
            human=human,
            seed=seed,
        )
        details["adaptation"] = rows
    return {
        "target": target.name,
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


def _without_labels(
    source: DomainData, target: str, accuracy_range: _Record, *, shifted: bool
) -> _Record:
    scores = _scores(source, None)
    ends = accuracy_range["low"], accuracy_range["high"]
    sentences = verdict_without_labels(
        target,
        source_accuracy=scores["accuracy"]["source"],
        accuracy_range=None if None in ends else ends,
        shifted=shifted,
    )
    return {**_NEED_LABELS, **scores, "verdict": sentences, "labels_needed": shifted}


def _with_labels(
    head: AnalysedHead,
    target: DomainData,
    descriptions: tuple[_Description, _Description],
    *,
    best: BestMethod | None,
    differ: bool | None,
    prevalence: float,
    human: float | None,
    seed: int,
) -> _Record:
    """What the labels of the target show, which are open now.

    The prevalence of the second class is estimated without them.
    """
    source, ((groups_s, measures_s), (groups_t, measures_t)) = head.source, descriptions
    both = zip(groups_s, groups_t, strict=False)
    effects = decompose(source, target, groupings=both, seed=seed)
    errors = error_table(
        head.linear.data, target, source=source, training=head.training, human=human, seed=seed
    )
    effects |= {n: step for n, step in errors.steps.items() if step.division == "transfer"}
    covariates = None
    if measures_s is not None and measures_t is not None:
        rng = np.random.default_rng([seed, 17])
        covariates = acquisition_differences((source, measures_s), (target, measures_t), rng)
    scores = _scores(source, target)
    conclusion = verdict(
        target.name,
        effects,
        **scores,
        images_differ=differ,
        best=best,
        measured=summary(covariates) if any(c.named for c in covariates or ()) else None,
    )
    threshold = choose_threshold("youden", source) if target.scored().shape[1] == 2 else None
    return {
        **scores,
        "verdict": conclusion.sentences,
        "causes": conclusion.causes,
        "labels_needed": conclusion.labels_needed,
        "effects": list(effects.values()),
        "error_table": errors.record(),
        "calibration": [calibration(data) for data in (source, target)],
        "thresholds": transferred_thresholds(
            source, target, prevalence=prevalence, score_changed=conclusion.labels_needed
        ),
        "subgroups": subgroups(
            source, target, (groups_s, groups_t), threshold=threshold, seed=seed
        ),
        "covariates": covariates or [],
        "covariates_summary": summary(covariates),
    }


def _scores(source: DomainData, target: DomainData | None) -> dict[str, _Record]:
    """Accuracy, and AUROC of the second class (macro of more, None where a class is absent)."""
    accuracy, auroc = {}, {}
    for name, data in (("source", source), ("target", target)):
        accuracy[name] = None if data is None else float((~data.wrong()).mean())
        auroc[name] = None if data is None else metric("auroc", data.labelled(), data.scored())
    return {"accuracy": accuracy, "auroc": auroc}
