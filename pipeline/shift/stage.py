"""Stage 4: why a head is worse on a target, and what helps; from the features in the store.

Read from top to bottom: the checks, the head that knows the source alone, then each target.
Until every adaptation method has predicted a target, its labels are sealed; after that they
measure, and heads that are fitted to them are a diagnosis and no result. No image is read.

The record, ``shift.json``, is described key by key in the README beside this file.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.data.attributes import groupings
from pipeline.data.domain import DomainData
from pipeline.data.facts import APPEARANCE
from pipeline.data.index import stored_facts
from pipeline.data.leaks import Finding, check_leaks, overlaps, refuse_leaks
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import StudyError
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.predictions import Predictions, predictions_file, predictions_of
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
from pipeline.shift.covariates import Covariate, acquisition_differences, summary
from pipeline.shift.decompose import decompose
from pipeline.shift.detect import DRAWS, FEWEST_DRAWS, LEVEL, Detection, detect, images_differ
from pipeline.shift.domains import (
    digest_of_domain,
    feature_map,
    fit_source,
    shared_patients,
    source_domain,
    too_few_patients,
)
from pipeline.shift.error_table import error_table
from pipeline.shift.fine_tuned import fine_tuned_losses
from pipeline.shift.label_free import NO_OVERLAP, AccuracyEstimate, estimate_accuracy
from pipeline.shift.record import (
    accuracy_range_record,
    adaptation_rows,
    detection_rows,
    domain_auc_rows,
    effect_row,
    error_table_record,
    method_rows,
    threshold_rows,
)
from pipeline.shift.subgroups import subgroups
from pipeline.shift.verdict import Evidence, caveats, verdict, verdict_without_labels
from pipeline.study import SOURCE, Study
from pipeline.words import to_jsonable

SCHEMA = 7
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
    "label_curve": [],
    "calibration": [],
    "thresholds": [],
    "subgroups": [],
    "covariates": [],
    "covariates_summary": None,
}


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


def analyse(study: Study, options: ShiftOptions | None = None) -> dict[str, Any]:
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
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    predictions: dict[str, Predictions] = {}
    maps: dict[str, Mapping[str, NDArray[Any]]] = {}
    for choice in study.variants:
        table = load_features(study, choice, samples)
        facts = stored_facts(study.store_root, table.samples.key)
        shared = overlaps(study, table.samples, facts)
        leaks = check_leaks(study, table.samples, shared, facts)
        if not options.samples.allow_leaks:
            refuse_leaks(leaks)
        targets = [table.domain(target.name) for target in study.targets]
        reasons = [too_few_patients(target) for target in targets]
        pairs = list(zip(targets, reasons, strict=True))
        skipped += [_skipped(table, target, reason) for target, reason in pairs if reason]
        compared = [target for target, reason in pairs if not reason]
        if not compared:
            continue
        with threadpool_limits(1 if table.X.size < LARGE else None):
            backbone = _Backbone(study, table, leaks, facts, options)
            entries += run_parallel([partial(backbone.analyse_target, t) for t in compared])
        predictions[choice.name] = backbone.predictions()
        maps[choice.name] = backbone.maps(compared)
    if not entries:
        raise _no_target(skipped)
    labelled = list(dict.fromkeys(e["target"] for e in entries if e["labelled"]))
    record: dict[str, Any] = to_jsonable(
        {
            "schema": SCHEMA,
            "study": study.name,
            "classes": table.samples.classes,
            "targets": entries,
            "not_compared": skipped,
            "fine_tuned": fine_tuned_losses(study.results, table.samples, labelled, study.seed),
        }
    )
    write_set(
        study.results / SHIFT_REPORT,
        record,
        {SHIFT_PROBABILITIES: predictions_file(predictions, curves=maps)},
        owned=("shift*.csv", "shift.md", "figures/shift-*"),
    )
    return record


def _no_target(skipped: Sequence[Mapping[str, Any]]) -> StudyError:
    lines = dict.fromkeys(f"{entry['target']}: {entry['reason']}" for entry in skipped)
    return StudyError(" ".join(["no target can be compared.", *lines]))


def _skipped(table: FeatureTable, target: DomainData, reason: str) -> dict[str, Any]:
    return {
        "backbone": table.backbone,
        "target": target.name,
        "images": len(target),
        "reason": reason,
    }


class _Backbone:
    """One backbone: what is fitted to the source alone, and the analysis of every target."""

    def __init__(
        self,
        study: Study,
        table: FeatureTable,
        leaks: Sequence[Finding],
        facts: NDArray[Any] | None,
        options: ShiftOptions,
    ) -> None:
        self.study, self.table, self.options = study, table, options
        self.leaks, self.facts = leaks, facts
        self.classes = table.samples.classes
        self.groupings = groupings(study, table.samples)  # first: it may refuse a user's file
        self.model = fit_source(source_domain(table))
        self.source = self.model.data

    def analyse_target(self, target: DomainData) -> dict[str, Any]:
        """The entry of one target in the record.

        Raises:
            StudyError: The domains have too few patients for any test.
        """
        start, model, source = time.perf_counter(), self.model, self.source
        plan = AdaptationPlan(seeds=tuple(range(self.options.seeds)))
        sealed = SealedLabels(target.label, plan.digest())
        blind = model.scored(target.sealed())
        detection = detect(source, blind, model.predict_proba, draws=self.options.draws)
        estimate = estimate_accuracy(source, blind, np.random.default_rng([self.study.seed, 11]))
        # An interval wholly above it: then no image of the source says how right the head is.
        withheld = detection.domain_auc.overall.auc.low > NO_OVERLAP
        if target.label is None:
            known = None if withheld else (estimate.low, estimate.high)
            details = self._without_labels(blind, detection, known)
        else:
            adaptation = score(predict_target(model, blind, plan), sealed, model, blind, plan)
            # From here on the labels are open: no prediction that is scored comes after.
            opened = blind.with_(label=sealed.unseal(plan.digest()))
            details = self._with_labels(opened, detection, estimate, adaptation)
        shared = shared_patients(self.table.samples, source, target)
        return {
            "backbone": self.table.backbone,
            "target": target.name,
            "labelled": target.label is not None,
            "source_images": len(source),
            "source_patients": source.patients,
            "images": len(target),
            "patients": target.patients,
            "shared_patients": shared,
            **details,
            "detection": detection_rows(detection),
            "domain_auc": domain_auc_rows(detection, self.classes),
            "accuracy_range": accuracy_range_record(
                estimate, blind, self.classes, withheld=withheld
            ),
            "caveats": [*detection.notes, *self._caveats(target, shared)],
            "provenance": self._provenance(target, plan, sealed.reads, start),
        }

    def _without_labels(
        self, blind: DomainData, detection: Detection, known: tuple[float, float] | None
    ) -> dict[str, Any]:
        accuracy = float((~self.source.wrong()).mean())
        shifted = [
            test.test
            for test in detection.tests
            if test.p_adjusted is not None and test.p_adjusted <= LEVEL
        ]
        conclusion = verdict_without_labels(
            blind.name,
            source_accuracy=accuracy,
            known=known,
            shifted=shifted,
        )
        return {
            **_NEED_LABELS,
            "verdict": conclusion.sentences,
            "labels_needed": conclusion.labels_needed,
            "accuracy": {"source": accuracy, "target": None},
            "auroc": {"source": _auroc(self.source), "target": None},
        }

    def _with_labels(
        self,
        opened: DomainData,
        detection: Detection,
        estimate: AccuracyEstimate,
        adaptation: AdaptationResult,
    ) -> dict[str, Any]:
        source, seed = self.source, self.study.seed
        both = (self.groupings.get(SOURCE, ()), self.groupings.get(opened.name, ()))
        effects = decompose(source, opened, groupings=zip(*both, strict=False), seed=seed)
        errors = error_table(self.model, opened, human=self.study.human_error, seed=seed)
        effects |= {n: step for n, step in errors.steps.items() if step.division == "transfer"}
        accuracy = [float((~data.wrong()).mean()) for data in (source, opened)]
        auroc = [_auroc(data) for data in (source, opened)]
        areas = [area for area in auroc if area is not None]
        covariates = self._covariates(opened)
        best = adaptation.best
        conclusion = verdict(
            opened.name,
            Evidence(
                effects=effects,
                images_differ=images_differ(detection.tests),
                adaptable=best is not None and best.shown,
            ),
            accuracy=(accuracy[0], accuracy[1]),
            auroc=(areas[0], areas[1]) if "auroc_loss" in effects else None,
            best=best,
            measured=summary(covariates) if any(c.named for c in covariates or ()) else None,
        )
        thresholds = transferred_thresholds(
            source,
            opened,
            prevalence=estimate.prevalence[1].estimate,
            score_changed=conclusion.labels_needed,
        )
        return {
            "verdict": conclusion.sentences,
            "causes": conclusion.causes,
            "labels_needed": conclusion.labels_needed,
            "accuracy": dict(zip(("source", "target"), accuracy, strict=True)),
            "auroc": dict(zip(("source", "target"), auroc, strict=True)),
            "effects": [effect_row(effect) for effect in effects.values()],
            "error_table": error_table_record(errors),
            "adaptation": adaptation_rows(adaptation),
            "label_curve": method_rows(adaptation.label_curve),
            "calibration": [calibration(data) for data in (source, opened)],
            "thresholds": threshold_rows(thresholds),
            "subgroups": self._subgroups(opened),
            "covariates": covariates or [],
            "covariates_summary": summary(covariates),
        }

    def _covariates(self, opened: DomainData) -> tuple[Covariate, ...] | None:
        """None where no audit has measured the images."""
        if self.facts is None:
            return None
        source, target = (
            (data, {name: self.facts[name][data.row].astype(np.float64) for name in APPEARANCE})
            for data in (self.source, opened)
        )
        rng = np.random.default_rng([self.study.seed, 17])
        return acquisition_differences(source, target, rng)

    def _subgroups(self, opened: DomainData) -> Any:
        binary = len(self.classes) == 2
        return subgroups(
            opened,
            self.groupings.get(opened.name, ()),
            classes=self.classes,
            threshold=choose_threshold("youden", self.source) if binary else None,
            source=self.source,
            source_groupings=self.groupings.get(SOURCE, ()),
            seed=self.study.seed,
        )

    def _caveats(self, target: DomainData, shared: int) -> tuple[str, ...]:
        others = set(self.table.samples.domain.tolist()) - {SOURCE, target.name}
        patients = {"source": self.source.patients, "target": target.patients}
        return caveats(shared, patients, self.leaks, others=others)

    def _provenance(
        self, target: DomainData, plan: AdaptationPlan, reads: int, start: float
    ) -> dict[str, Any]:
        samples = self.table.samples
        return {
            "seeds": {"study": self.study.seed, "permutations": 0, "halves": len(plan.seeds)},
            "inputs": {
                "source": digest_of_domain(samples, SOURCE),
                "target": digest_of_domain(samples, target.name),
                "recipes": [store.recipe.fingerprint for store in self.table.stores],
            },
            # Without labels no method is scored, so there is no plan.
            "plan": None if target.label is None else plan.digest(),
            "label_reads": reads,
            "leaks": self.leaks,
            "seconds": round(time.perf_counter() - start, 2),
        }

    def predictions(self) -> Predictions:
        """Probabilities of the head: out of fold on the source, as they are elsewhere."""
        proba = self.model.predict_proba(self.table.X)
        proba[self.source.row] = self.source.scored()
        return predictions_of(self.table.samples, {HEAD: proba})

    def maps(self, targets: Sequence[DomainData]) -> dict[str, NDArray[Any]]:
        """By name of the file's dataset, each labelled target on two principal components."""
        return {
            f"{target.name}/{name}": values
            for target in targets
            if target.label is not None
            for name, values in feature_map(self.model, target).items()
        }


def _auroc(data: DomainData) -> float | None:
    """Of the second class; macro one-vs-rest of more; None where a class is absent."""
    return metric("auroc", data.labelled(), data.scored())
