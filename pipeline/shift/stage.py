"""Stage 4: why a head is worse on a target, and what helps; from the features in the store.

Read from top to bottom: what is loaded and checked, the head that knows the source alone, then
each target. Until every adaptation method has predicted a target, its labels are sealed; after
that they measure, and heads that are fitted to them are a diagnosis and no result. No image is
read.

The record, ``shift.json``, is described key by key in the README beside this file.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.data.attributes import Grouping, groupings
from pipeline.data.domain import DomainData
from pipeline.data.facts import APPEARANCE
from pipeline.data.index import stored_facts
from pipeline.data.leaks import Finding, check_leaks, overlaps, refuse_leaks
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import StudyError
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.predictions import Predictions, predictions_file, predictions_of
from pipeline.evaluation.separability import DomainAUC
from pipeline.features.load import FeatureTable, load_features
from pipeline.heads.parallel import run_parallel
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
from pipeline.shift.domains import (
    SourceModel,
    digest_of,
    feature_map,
    fit_source,
    shared_patients,
    source_domain,
    too_few_patients,
)
from pipeline.shift.error_table import error_table
from pipeline.shift.label_free import NO_OVERLAP, AccuracyEstimate, estimate_accuracy
from pipeline.shift.subgroups import subgroups
from pipeline.shift.verdict import caveats, verdict, verdict_without_labels
from pipeline.study import SOURCE, Study
from pipeline.words import to_jsonable

SCHEMA = 8
SHIFT_REPORT = "shift.json"
SHIFT_PROBABILITIES = "shift.h5"
#: Name of the stage's own head among kept predictions.
HEAD = ("linear", 0)
#: Numbers of features below which products have one thread: two that wait for each other in
#: each of many small ones took 166 s of CPU for the demo, which takes 7 s with one.
LARGE = 1 << 25
#: What a target without labels has none of.
_NEED_LABELS: Mapping[str, Any] = {
    "causes": [],
    "effects": [],
    "error_table": None,
    "adaptation": [],
    "calibration": [],
    "thresholds": [],
    "subgroups": [],
    "covariates": [],
    "covariates_summary": None,
}
_Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """How stage 4 runs.

    Attributes:
        draws: Permutations of each test, 19 at least: of fewer none gives p <= 0.05.
        seeds: Divisions of the target into halves for the adaptation methods, 1 at least.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    draws: int = DRAWS
    seeds: int = 5
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

    groupings: Sequence[Grouping] = ()
    measures: Measures | None = None


def analyse(study: Study, options: ShiftOptions | None = None) -> _Record:
    """Compare the source with each target on every backbone.

    Returns:
        The record, JSON values; also written to ``results/<study>/shift.json``, and the
        probabilities of its head with the map of the features to ``shift.h5``.

    Raises:
        StudyError: The study has no target that could be compared, or the source has too
            few patients.
        MissingFeaturesError: Stage 1 has not been run.
        CheckFailedError: A patient or an image is in two roles.
    """
    options = options or ShiftOptions()
    if not study.targets:
        raise StudyError("the study has no [target.NAME]: there is no shift to look at")
    prepare(study.results)
    samples, _ = load_samples(study, options.samples)
    entries: list[_Record] = []
    skipped: list[_Record] = []
    predictions: dict[str, Predictions] = {}
    maps: dict[str, Mapping[str, NDArray[Any]]] = {}
    for choice in study.variants:
        table = load_features(study, choice, samples)
        facts = stored_facts(study.store_root, table.samples.key)
        findings = check_leaks(study, table.samples, overlaps(study, table.samples, facts), facts)
        if not options.samples.allow_leaks:
            refuse_leaks(findings)
        groups = groupings(study, table.samples)  # before any work: it may refuse a user's file
        targets = [table.domain(target.name) for target in study.targets]
        compared = [target for target in targets if not too_few_patients(target)]
        skipped += [_skipped(table, target) for target in targets if too_few_patients(target)]
        if not compared:
            continue
        source = source_domain(table)
        model, analysed = _analyse_targets(
            source,
            compared,
            {data.name: _describe(data, groups, facts) for data in (source, *compared)},
            classes=table.samples.classes,
            human=study.human_error,
            options=options,
            seed=study.seed,
        )
        entries += [
            _in_context(entry, table, source, target, findings)
            for entry, target in zip(analysed, compared, strict=True)
        ]
        predictions[choice.name] = _predictions(model, table)
        maps[choice.name] = _maps(model, compared)
    if not entries:
        raise _no_target(skipped)
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
        {SHIFT_PROBABILITIES: predictions_file(predictions, curves=maps)},
        owned=("shift*.csv", "shift.md", "figures/shift-*"),
    )
    return record


def _skipped(table: FeatureTable, target: DomainData) -> _Record:
    return {
        "backbone": table.backbone,
        "target": target.name,
        "images": len(target),
        "reason": too_few_patients(target),
    }


def _no_target(skipped: Sequence[Mapping[str, Any]]) -> StudyError:
    lines = dict.fromkeys(f"{entry['target']}: {entry['reason']}" for entry in skipped)
    return StudyError(" ".join(["no target can be compared.", *lines]))


def _describe(
    data: DomainData, groups: Mapping[str, Sequence[Grouping]], facts: NDArray[Any] | None
) -> _Description:
    measures = None
    if facts is not None:
        measures = {name: facts[name][data.row].astype(np.float64) for name in APPEARANCE}
    return _Description(groups.get(data.name, ()), measures)


def _analyse_targets(
    source: DomainData,
    targets: Sequence[DomainData],
    descriptions: Mapping[str, _Description],
    *,
    classes: Sequence[str],
    human: float | None,
    options: ShiftOptions,
    seed: int,
) -> tuple[SourceModel, list[_Record]]:
    """Fit the head to the source, and look at all targets side by side."""
    numbers = source.embedded().size + sum(target.embedded().size for target in targets)
    with threadpool_limits(1 if numbers < LARGE else None):
        model = fit_source(source)
        jobs = [
            partial(
                analyse_target,
                model,
                target,
                classes=classes,
                descriptions=(descriptions[SOURCE], descriptions[target.name]),
                human=human,
                options=options,
                seed=seed,
            )
            for target in targets
        ]
        return model, run_parallel(jobs)


def _in_context(
    entry: _Record,
    table: FeatureTable,
    source: DomainData,
    target: DomainData,
    findings: Sequence[Finding],
) -> _Record:
    """The entry of a target with what depends on the whole study."""
    shared = shared_patients(table.samples, source, target)
    patients = {"source": source.patients, "target": target.patients}
    others = set(table.samples.domain.tolist()) - {SOURCE, target.name}
    recipes = [store.recipe.fingerprint for store in table.stores]
    return {
        "backbone": table.backbone,
        **entry,
        "shared_patients": shared,
        "caveats": caveats(shared, patients, findings, others=others),
        "provenance": {
            **entry["provenance"],
            "inputs": {
                "source": digest_of(source),
                "target": digest_of(target),
                "recipes": recipes,
            },
        },
    }


def _predictions(model: SourceModel, table: FeatureTable) -> Predictions:
    """Probabilities of the head: out of fold on the source, as they are elsewhere."""
    proba = model.predict_proba(table.X)
    proba[model.data.row] = model.data.scored()
    return predictions_of(table.samples, {HEAD: proba})


def _maps(model: SourceModel, targets: Sequence[DomainData]) -> dict[str, NDArray[Any]]:
    """By name of the file's dataset, each labelled target on two principal components."""
    return {
        f"{target.name}/{name}": values
        for target in targets
        if target.label is not None
        for name, values in feature_map(model, target).items()
    }


def analyse_target(
    model: SourceModel,
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
        model: Of the source.
        target: Features; and labels, which stay sealed until every method has predicted.
        classes: Their names.
        descriptions: Of the images of source and target.
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.
        options: How the stage runs.
        seed: Of the study.

    Raises:
        StudyError: The domains have too few patients for any test.
    """
    start, source = time.perf_counter(), model.data
    plan = AdaptationPlan(seeds=tuple(range(options.seeds)))
    sealed = SealedLabels(target.label, plan.digest())
    blind = model.scored(target.sealed())
    tests, domain_auc = detect(source, blind, model.predict_proba, draws=options.draws)
    estimate = estimate_accuracy(source, blind, np.random.default_rng([seed, 11]))
    # An interval wholly above it: then no image of the source says how right the head is.
    withheld = domain_auc.overall.auc.low > NO_OVERLAP
    if target.label is None:
        details = _without_labels(source, blind.name, tests, None if withheld else estimate)
    else:
        adaptation = score(predict_target(model, blind, plan), sealed, model, blind, plan)
        # From here on the labels are open: no prediction that is scored comes after.
        details = _with_labels(
            model,
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
        "labelled": target.label is not None,
        "source_images": len(source),
        "source_patients": source.patients,
        "images": len(target),
        "patients": target.patients,
        **details,
        "detection": tests,
        "domain_auc": _domain_auc_rows(domain_auc, classes),
        "accuracy_range": estimate.record(classes, withheld=withheld),
        "provenance": {
            "seeds": {"study": seed, "permutations": 0, "halves": len(plan.seeds)},
            # Without labels no method is scored, so there is no plan.
            "plan": None if target.label is None else plan.digest(),
            "label_reads": sealed.reads,
            "seconds": round(time.perf_counter() - start, 2),
        },
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
    accuracy = float((~source.wrong()).mean())
    conclusion = verdict_without_labels(
        target,
        source_accuracy=accuracy,
        accuracy_range=None if estimate is None else (estimate.low, estimate.high),
        shifted=[test.name for test in tests if (test.p_adjusted or 1.0) <= LEVEL],
    )
    return {
        **_NEED_LABELS,
        "verdict": conclusion.sentences,
        "labels_needed": conclusion.labels_needed,
        "accuracy": {"source": accuracy, "target": None},
        "auroc": {"source": _auroc(source), "target": None},
    }


def _with_labels(
    model: SourceModel,
    target: DomainData,
    adaptation: AdaptationResult,
    descriptions: tuple[_Description, _Description],
    *,
    differ: bool | None,
    prevalence: float,
    human: float | None,
    seed: int,
) -> _Record:
    """What labels of the target show.

    Args:
        model: Of the source.
        target: With its labels, open now.
        adaptation: How the methods did.
        descriptions: See :func:`analyse_target`.
        differ: Whether the images differ.
        prevalence: Of the second class, estimated without labels.
        human: See :func:`analyse_target`.
        seed: See :func:`analyse_target`.
    """
    source, (of_source, of_target) = model.data, descriptions
    both = zip(of_source.groupings, of_target.groupings, strict=False)
    effects = decompose(source, target, groupings=both, seed=seed)
    errors = error_table(model, target, human=human, seed=seed)
    effects |= {n: step for n, step in errors.steps.items() if step.division == "transfer"}
    covariates = None
    if of_source.measures is not None and of_target.measures is not None:
        covariates = acquisition_differences(
            (source, of_source.measures),
            (target, of_target.measures),
            np.random.default_rng([seed, 17]),
        )
    accuracy = [float((~data.wrong()).mean()) for data in (source, target)]
    auroc = [_auroc(data) for data in (source, target)]
    conclusion = verdict(
        target.name,
        effects,
        accuracy=accuracy,
        auroc=[area for area in auroc if area is not None] if "auroc_loss" in effects else (),
        images_differ=differ,
        best=adaptation.best,
        measured=summary(covariates) if any(c.named for c in covariates or ()) else None,
    )
    return {
        "verdict": conclusion.sentences,
        "causes": conclusion.causes,
        "labels_needed": conclusion.labels_needed,
        "accuracy": dict(zip(("source", "target"), accuracy, strict=True)),
        "auroc": dict(zip(("source", "target"), auroc, strict=True)),
        "effects": list(effects.values()),
        "error_table": errors.record(),
        "adaptation": adaptation.rows,
        "calibration": [calibration(data) for data in (source, target)],
        "thresholds": transferred_thresholds(
            source, target, prevalence=prevalence, score_changed=conclusion.labels_needed
        ),
        "subgroups": subgroups(
            target,
            of_target.groupings,
            threshold=choose_threshold("youden", source) if model.classes == 2 else None,
            source=source,
            source_groupings=of_source.groupings,
            seed=seed,
        ),
        "covariates": covariates or [],
        "covariates_summary": summary(covariates),
    }


def _auroc(data: DomainData) -> float | None:
    """Of the second class; macro one-vs-rest of more; None where a class is absent."""
    return metric("auroc", data.labelled(), data.scored())
