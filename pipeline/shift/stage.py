"""Stage 4: why a head is worse on a target, and what helps; from the features in the store.

Read from top to bottom: what is loaded and checked, the head in question, then each target. The
adaptation methods start from a linear head of their own. Until each has predicted a target, its
labels are sealed; after that they measure, and heads that are fitted to them are a diagnosis and
no result. No image is read.

The record, ``shift.json``, is described key by key in the README beside this file.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.data.attributes import Grouping, groupings
from pipeline.data.domain import DomainData
from pipeline.data.facts import APPEARANCE
from pipeline.data.index import stored_facts
from pipeline.data.leaks import check_leaks, overlaps, refuse_leaks
from pipeline.data.patients import one_patient_hint
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import PipelineError, StudyError, go_on
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.predictions import Predictions, predictions_file, predictions_of
from pipeline.evaluation.separability import DomainAUC
from pipeline.features.load import FeatureTable, feature_tables
from pipeline.parallel import run_parallel
from pipeline.results import prepare, write_set
from pipeline.shift.adapt_eval import (
    AdaptationPlan,
    AdaptationResult,
    SealedLabels,
    predict_target,
    score,
)
from pipeline.shift.calibrate import calibration, choose_threshold, transferred_thresholds
from pipeline.shift.covariates import Measures, acquisition_differences, summary
from pipeline.shift.decompose import decompose
from pipeline.shift.detect import DRAWS, FEWEST_DRAWS, LEVEL, ShiftTest, detect, images_differ
from pipeline.shift.domains import feature_maps, fit_source
from pipeline.shift.error_table import error_table
from pipeline.shift.head import FEWEST_PATIENTS, AnalysedHead, analysed_head
from pipeline.shift.label_free import NO_OVERLAP, AccuracyEstimate, estimate_accuracy
from pipeline.shift.subgroups import subgroups
from pipeline.shift.verdict import caveats, verdict, verdict_without_labels
from pipeline.study import SOURCE, Study
from pipeline.words import counted, printable, to_jsonable

_LOG = logging.getLogger(__name__)
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
        """Refuse numbers with which nothing can be said.

        Raises:
            StudyError: There are too few.
        """
        for name, least, why in (
            ("draws", FEWEST_DRAWS, "of fewer no test could reject"),
            ("seeds", 1, "a method adapts to one half of the target and is scored on the other"),
        ):
            if (got := getattr(self, name)) < least:
                raise StudyError(f"{name} = {got}: ask for {least} or more; {why}")


#: Fewer draws for a first look; more where a number must hardly move.
QUICK = ShiftOptions(draws=199, seeds=2)
THOROUGH = ShiftOptions(draws=4999, seeds=30)


class _Description(NamedTuple):
    """What is known of the images of a domain beside their features.

    Attributes:
        groupings: By each attribute of the study; empty for a domain without attributes.
        measures: Of the pictures, by name; None where no audit has measured them.
    """

    groupings: Sequence[Grouping]
    measures: Measures | None


class _Analysis(NamedTuple):
    """All targets on one backbone: their entries in the record, and what goes to the HDF5 file.

    Without an entry there are neither predictions nor maps.
    """

    entries: list[_Record]
    skipped: list[_Record]
    predictions: Predictions | None = None
    maps: Mapping[str, NDArray[Any]] | None = None


def analyse(study: Study, options: ShiftOptions | None = None) -> _Record:
    """Compare the source with each target on every backbone.

    Returns:
        The record, JSON values; also written to ``results/<study>/shift.json``, and the
        probabilities of the head with the map of the features to ``shift.h5``.

    Raises:
        StudyError: The study has no target that could be compared, or the source has too
            few patients.
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
        with go_on(backbone, failures, alone=len(study.variants) == 1):
            if isinstance(table, Exception):
                failures[backbone] = table
            else:
                analyses[backbone] = _analyse_backbone(study, table, options)
    if not analyses:
        raise next(iter(failures.values()))
    entries = [entry for analysis in analyses.values() for entry in analysis.entries]
    skipped = [
        _skipped(backbone, target.name, 0, why)
        for backbone, why in failures.items()
        for target in study.targets
    ]
    skipped += [entry for analysis in analyses.values() for entry in analysis.skipped]
    if not entries:
        reasons = dict.fromkeys(f"{entry['target']}: {entry['reason']}" for entry in skipped)
        raise StudyError(" ".join(["no target can be compared.", *reasons]))
    predictions = {name: a.predictions for name, a in analyses.items() if a.predictions}
    maps = {name: a.maps for name, a in analyses.items() if a.maps}
    probabilities = predictions_file(predictions, curves=maps)
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
    skipped = [_skipped(table.backbone, name, 0, why) for name, why in failures.items()]
    skipped += [
        _skipped(table.backbone, target.name, len(target), _one_patient(target))
        for target in targets
        if target.patients == 1
    ]
    compared = [target for target in targets if target.patients > 1]
    if not compared:
        return _Analysis([], skipped)
    _check_classes(source, table.samples.classes)
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
    for entry, target in zip(outcomes, compared, strict=True):
        if isinstance(entry, str):
            skipped.append(_skipped(table.backbone, target.name, len(target), entry))
            continue
        entries.append(entry)
        entry["backbone"] = table.backbone
        entry |= {"head": head.name, "about_head": head.about}
        entry["caveats"] = caveats(head.source, target, findings, samples=table.samples)
        entry["provenance"]["recipes"] = [store.recipe.fingerprint for store in table.stores]
    if not entries:
        return _Analysis([], skipped)
    maps = feature_maps(model, [target for target in compared if target.label is not None])
    kept = predictions_of(table.samples, {head.trained: head.proba})
    return _Analysis(entries, skipped, kept, maps)


def _entry_or_reason(*arguments: Any, **named: Any) -> _Record | str:
    """The entry of a target, or why it has none: the other targets are compared all the same."""
    try:
        return analyse_target(*arguments, **named)
    except PipelineError as reason:
        return str(reason)


def _skipped(backbone: str, target: str, images: int, reason: object) -> _Record:
    return {"backbone": backbone, "target": target, "images": images, "reason": str(reason)}


def _one_patient(target: DomainData) -> str:
    return (
        f"Images: {len(target)}, all of one patient; a comparison by patient needs two, better 20 "
        f"or more. Add images of others; {one_patient_hint(f'target.{target.name}')}."
    )


def _check_classes(source: DomainData, classes: Sequence[str]) -> None:
    """Refuse a source with too few patients of a class, before any head is fitted."""
    for k, name in enumerate(classes):
        patients = np.unique(source.group[source.labelled() == k]).size
        if patients < FEWEST_PATIENTS:
            raise StudyError(
                f"class {printable(name)!r} of [source] has images of "
                f"{counted(patients, 'patient')}, and {FEWEST_PATIENTS} are needed: a head "
                "is tested on patients that it was not fitted to. Add images of others, or leave "
                f"out fewer; {one_patient_hint(SOURCE)}"
            )


def _describe(
    domain: DomainData,
    data: DomainData,
    groups: Mapping[str, Sequence[Grouping]],
    facts: NDArray[Any] | None,
) -> _Description:
    """Of some rows of a domain."""
    rows = np.isin(np.asarray(domain.row), np.asarray(data.row))
    of_rows = [replace(g, member=g.member[rows]) for g in groups.get(data.name, ())]
    measures = None
    if facts is not None:
        measures = {name: facts[name][data.row].astype(np.float64) for name in APPEARANCE}
    return _Description(of_rows, measures)


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
    withheld = domain_auc.overall.auc.low > NO_OVERLAP
    if not labelled:
        details = _without_labels(source, blind.name, tests, None if withheld else estimate)
    else:
        adaptation = score(predict_target(model, blind, plan), sealed, model, blind, plan)
        # From here on the labels are open: no prediction that is scored comes after.
        details = _with_labels(
            head,
            blind.with_(label=sealed.unseal(plan.digest())),
            adaptation,
            descriptions,
            differ=images_differ(tests),
            prevalence=estimate.prevalence[1].estimate,
            human=human,
            seed=seed,
        )
    return {
        "target": target.name,
        "labelled": labelled,
        "source_images": len(source),
        "source_patients": source.patients,
        "images": len(target),
        "patients": target.patients,
        **details,
        "detection": tests,
        "domain_auc": _domain_auc_rows(domain_auc, classes),
        "accuracy_range": estimate.record(classes, withheld=withheld),
        # Without labels no method is scored, so there is no plan.
        "provenance": {"plan": plan.digest() if labelled else None, "label_reads": sealed.reads},
    }


def _domain_auc_rows(domain_auc: DomainAUC, classes: Sequence[str]) -> list[_Record]:
    """The domain classifier on all images, and inside each class that has patients enough."""
    by_class = dict(zip(classes, domain_auc.by_class, strict=False))
    among = {"all images": domain_auc.overall, **by_class}
    return [
        {"among": name, **classifier.auc.ends(), "p": classifier.p}
        for name, classifier in among.items()
        if classifier is not None
    ]


def _without_labels(
    source: DomainData, target: str, tests: Sequence[ShiftTest], estimate: AccuracyEstimate | None
) -> _Record:
    scores = _scores(source, None)
    conclusion = verdict_without_labels(
        target,
        source_accuracy=scores["accuracy"]["source"],
        accuracy_range=None if estimate is None else (estimate.low, estimate.high),
        shifted=any(test.p_adjusted is not None and test.p_adjusted <= LEVEL for test in tests),
    )
    return {
        **_NEED_LABELS,
        **scores,
        "verdict": conclusion.sentences,
        "labels_needed": conclusion.labels_needed,
    }


def _with_labels(
    head: AnalysedHead,
    target: DomainData,
    adaptation: AdaptationResult,
    descriptions: tuple[_Description, _Description],
    *,
    differ: bool | None,
    prevalence: float,
    human: float | None,
    seed: int,
) -> _Record:
    """What the labels of the target show, which are open now.

    The prevalence of the second class is estimated without them.
    """
    source, (of_source, of_target) = head.source, descriptions
    both = zip(of_source.groupings, of_target.groupings, strict=False)
    effects = decompose(source, target, groupings=both, seed=seed)
    errors = error_table(
        head.linear, target, source=source, training=head.training, human=human, seed=seed
    )
    effects |= {n: step for n, step in errors.steps.items() if step.division == "transfer"}
    covariates = None
    if of_source.measures is not None and of_target.measures is not None:
        measured = (source, of_source.measures), (target, of_target.measures)
        covariates = acquisition_differences(*measured, np.random.default_rng([seed, 17]))
    scores = _scores(source, target)
    conclusion = verdict(
        target.name,
        effects,
        **scores,
        images_differ=differ,
        best=adaptation.best,
        measured=summary(covariates) if any(c.named for c in covariates or ()) else None,
    )
    threshold = choose_threshold("youden", source) if target.scored().shape[1] == 2 else None
    groups = (of_source.groupings, of_target.groupings)
    return {
        **scores,
        "verdict": conclusion.sentences,
        "causes": conclusion.causes,
        "labels_needed": conclusion.labels_needed,
        "effects": list(effects.values()),
        "error_table": errors.record(),
        "adaptation": adaptation.rows,
        "calibration": [calibration(data) for data in (source, target)],
        "thresholds": transferred_thresholds(
            source, target, prevalence=prevalence, score_changed=conclusion.labels_needed
        ),
        "subgroups": subgroups(source, target, groups, threshold=threshold, seed=seed),
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
