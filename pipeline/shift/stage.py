"""Stage 4: take the gap between the source and each target apart, from the store.

Read from top to bottom: the checks, the head that knows the source alone, then each target.
Until every adaptation method has predicted a target, its labels are sealed; after that they
measure and nothing is fitted any more. Nothing here reads an image.

The record, ``shift.json``, is described key by key in the README beside this file.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from cache import disk
from pipeline.data.attributes import Grouping, groupings
from pipeline.data.domain import DomainData
from pipeline.data.facts import APPEARANCE
from pipeline.data.index import known_facts
from pipeline.data.leaks import Finding, check_leaks, refuse_leaks
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.predictions import Predictions, predictions_of, write_predictions
from pipeline.features.load import FeatureTable, load_features
from pipeline.heads.parallel import run_parallel
from pipeline.shift.adapt_eval import (
    AdaptationPlan,
    AdaptationResult,
    AdaptationRow,
    SealedLabels,
    predict_target,
    score,
)
from pipeline.shift.calibrate import calibration, choose_threshold, transferred_thresholds
from pipeline.shift.covariates import Covariate, acquisition_differences, summary
from pipeline.shift.decompose import Effect, decompose
from pipeline.shift.detect import FEWEST_DRAWS, LEVEL, Detection, detect
from pipeline.shift.domains import (
    SourceModel,
    fit_source,
    shared_patients,
    source_domain,
    too_few_patients,
)
from pipeline.shift.error_table import REFITS, ErrorTable, Refits, error_table, refit
from pipeline.shift.fine_tuned import fine_tuned_losses
from pipeline.shift.label_free import AccuracyEstimate, estimate_accuracy
from pipeline.shift.provenance import caveats, digest_of_domain
from pipeline.shift.subgroups import subgroups
from pipeline.shift.verdict import Gain, Verdict, verdict, verdict_without_labels
from pipeline.study import SOURCE, Study
from pipeline.words import to_jsonable

SCHEMA = 6
SHIFT_REPORT = "shift.json"
SHIFT_PROBABILITIES = "shift.h5"
#: Name of the stage's own head among kept predictions.
HEAD = ("linear", 0)
#: Numbers of features below which products have one thread: two that wait for each other in
#: each of many small ones took 166 s of CPU for the demo, which takes 7 s with one.
_LARGE = 1 << 25
#: Images of each domain on the map: more points would hide one another.
_POINTS = 500
#: Standard deviations at most: one odd image would else be a component of its own.
_CLIP = 5.0
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
        refits: Heads fitted to other patients, for the second interval of the error table.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    draws: int = 999
    seeds: int = 10
    refits: int = REFITS
    samples: SampleOptions = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing can be said.

        Raises:
            StudyError: There are too few.
        """
        for name, least, why in (
            ("draws", FEWEST_DRAWS, "of fewer no test could reject"),
            ("seeds", 1, "a method adapts to one half of the target and is scored on the other"),
            ("refits", 2, "one head has no spread"),
        ):
            if (got := getattr(self, name)) < least:
                raise StudyError(f"{name} = {got}: ask for {least} or more; {why}")


#: Fewer draws for a first look; more where a number must hardly move.
QUICK = ShiftOptions(draws=199, seeds=3, refits=10)
THOROUGH = ShiftOptions(draws=4999, seeds=30, refits=200)


def analyse(study: Study, options: ShiftOptions | None = None) -> dict[str, Any]:
    """Compare the source with each target on every backbone.

    Returns:
        The record, JSON values; also written to ``results/<study>/shift.json``, and the
        probabilities of its head with the map of the features to ``shift.h5``.

    Raises:
        StudyError: The study has no target that could be compared, or the source has too
            few patients.
        MissingFeaturesError: Stage 1 has not been run.
        CheckFailedError: A patient or a picture is in two roles.
    """
    options = options or ShiftOptions()
    if not study.targets:
        raise StudyError("the study has no [target.NAME]: there is no shift to look at")
    disk.check_writable(study.results)
    samples, _ = load_samples(study, options.samples)
    entries: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    predictions: dict[str, Predictions] = {}
    maps: dict[str, Mapping[str, NDArray[Any]]] = {}
    for choice in study.variants:
        table = load_features(study, choice, samples)
        facts = known_facts(study.store_root, table.samples.key)
        leaks = check_leaks(study, table.samples, facts)
        if not options.samples.allow_leaks:
            refuse_leaks(leaks)
        targets = [table.domain(target.name) for target in study.targets]
        compared = []
        for target in targets:
            if reason := too_few_patients(target):
                skipped.append(_skipped(table, target, reason))
            else:
                compared.append(target)
        if not compared:
            continue
        with threadpool_limits(1 if table.X.size < _LARGE else None):
            found = _Backbone(study, table, leaks, facts, options)
            entries += run_parallel([partial(found.target, target) for target in compared])
        predictions[choice.name] = found.predictions()
        maps[choice.name] = found.maps(compared)
    if not entries:
        lines = dict.fromkeys(f"{entry['target']}: {entry['reason']}" for entry in skipped)
        raise StudyError(" ".join(["no target can be compared.", *lines]))
    labelled = list(dict.fromkeys(e["target"] for e in entries if e["labelled"]))
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "study": study.name,
        "classes": list(table.samples.classes),
        "targets": entries,
        "not_compared": skipped,
        "fine_tuned": fine_tuned_losses(study.results, table.samples, labelled, study.seed),
    }
    record = to_jsonable(record)
    disk.make_dir(study.results)
    write_predictions(study.results / SHIFT_PROBABILITIES, predictions, curves=maps)
    text = json.dumps(record, indent=1, allow_nan=False)
    disk.publish(study.results / SHIFT_REPORT, text.encode())
    return record


def _skipped(table: FeatureTable, target: DomainData, reason: str) -> dict[str, Any]:
    return {
        "backbone": table.backbone,
        "target": target.name,
        "images": len(target),
        "reason": reason,
    }


class _Backbone:
    """One backbone: what is fitted to the source alone, and every target looked at with it."""

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
        self.groupings = groupings(study, table.samples)  # first: it may refuse a user's file
        self.model = fit_source(source_domain(table))
        self.refits: Refits | None = None
        if any(target.labelled for target in study.targets):
            rng = np.random.default_rng([study.seed, 13])
            self.refits = refit(self.model, rng, count=options.refits)

    def target(self, target: DomainData) -> dict[str, Any]:
        """The entry of one target in the record."""
        start, model = time.perf_counter(), self.model
        plan = AdaptationPlan(seeds=tuple(range(self.options.seeds)))
        sealed = SealedLabels(target.label, plan.digest())
        blind = model.scored(target.sealed())
        detection = detect(model.data, blind, model.predict_proba, draws=self.options.draws)
        estimate = estimate_accuracy(
            model.data, blind, np.random.default_rng([self.study.seed, 11])
        )
        if target.label is None:
            details = self._without_labels(blind, detection, estimate)
        else:
            adaptation = score(predict_target(model, blind, plan), sealed, model, blind, plan)
            # From here on the labels are open: nothing that is fitted comes after.
            opened = blind.with_(label=sealed.unseal(plan.digest()))
            details = self._with_labels(opened, estimate, adaptation)
        shared = shared_patients(self.table.samples, model.data, target)
        return {
            "backbone": self.table.backbone,
            "target": target.name,
            "labelled": target.label is not None,
            "source_images": len(model.data),
            "source_patients": model.data.patients,
            "images": len(target),
            "patients": target.patients,
            "shared_patients": shared,
            **details,
            "detection": _detection(detection),
            "domain_auc": _domain_auc(detection, self.table.samples.classes),
            "accuracy_range": _accuracy_range(estimate, blind, self.table.samples.classes),
            "caveats": [*detection.notes, *self._caveats(target, shared)],
            "provenance": self._provenance(target, plan, sealed.reads, start),
        }

    def _without_labels(
        self, blind: DomainData, detection: Detection, estimate: AccuracyEstimate
    ) -> dict[str, Any]:
        accuracy = float((~self.model.data.wrong()).mean())
        shifted = [
            test.test
            for test in detection.tests
            if test.p_adjusted is not None and test.p_adjusted <= LEVEL
        ]
        found = verdict_without_labels(
            blind.name,
            source_accuracy=accuracy,
            low=estimate.low,
            high=estimate.high,
            shifted=shifted,
        )
        return {
            **_NEED_LABELS,
            "verdict": found.sentences,
            "labels_needed": found.labels_needed,
            "accuracy": {"source": accuracy, "target": None},
            "auroc": {"source": _auroc(self.model.data), "target": None},
        }

    def _with_labels(
        self, opened: DomainData, estimate: AccuracyEstimate, adaptation: AdaptationResult
    ) -> dict[str, Any]:
        source, seed = self.model.data, self.study.seed
        effects = decompose(source, opened, seed=seed)
        errors = error_table(
            self.model, opened, refits=self.refits, human=self.study.human_error, seed=seed
        )
        effects |= {n: step for n, step in errors.steps.items() if step.division == "transfer"}
        accuracy = {
            "source": 1 - errors.errors["source_new_patients"].estimate,
            "target": 1 - errors.errors["target"].estimate,
        }
        auroc = {"source": _auroc(source), "target": _auroc(opened)}
        found = _verdict(opened.name, effects, accuracy, auroc, adaptation)
        rng = np.random.default_rng([seed, 12])
        covariates = self._covariates(opened)
        return {
            "verdict": found.sentences,
            "causes": found.causes,
            "labels_needed": found.labels_needed,
            "accuracy": accuracy,
            "auroc": auroc,
            "effects": [effect.record() for effect in effects.values()],
            "error_table": _error_table(errors),
            "adaptation": [_adaptation(row) for row in (*adaptation.rows, *_labels(adaptation))],
            "label_curve": [_adaptation(row) for row in adaptation.label_curve],
            "calibration": [calibration(data, rng) for data in (source, opened)],
            "thresholds": _thresholds(source, opened, estimate, found),
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
            for data in (self.model.data, opened)
        )
        rng = np.random.default_rng([self.study.seed, 17])
        return acquisition_differences(source, target, rng)

    def _subgroups(self, opened: DomainData) -> Any:
        classes, source = self.table.samples.classes, self.model.data
        divided: Sequence[Grouping] = self.groupings.get(opened.name, ())
        return subgroups(
            opened,
            divided,
            classes=classes,
            threshold=choose_threshold("youden", source) if len(classes) == 2 else None,
            source=source,
            source_groupings=self.groupings.get(SOURCE, ()),
            seed=self.study.seed,
        )

    def _caveats(self, target: DomainData, shared: int) -> tuple[str, ...]:
        others = set(self.table.samples.domain.tolist()) - {SOURCE, target.name}
        patients = {"source": self.model.data.patients, "target": target.patients}
        return caveats(shared, patients, self.leaks, others=others)

    def _provenance(
        self, target: DomainData, plan: AdaptationPlan, reads: int, start: float
    ) -> dict[str, Any]:
        samples, labelled = self.table.samples, target.label is not None
        return {
            "seeds": {"study": self.study.seed, "permutations": 0, "halves": len(plan.seeds)},
            "inputs": {
                "source": digest_of_domain(samples, SOURCE),
                "target": digest_of_domain(samples, target.name),
                "recipes": [store.recipe.fingerprint for store in self.table.stores],
            },
            # Without labels nothing is chosen that labels could judge, so there is no plan.
            "plan": plan.digest() if labelled else None,
            "label_reads": reads,
            "leaks": self.leaks,
            "seconds": round(time.perf_counter() - start, 2),
        }

    def predictions(self) -> Predictions:
        """Probabilities of the head: out of fold on the source, as they are elsewhere."""
        proba = self.model.predict_proba(self.table.X)
        proba[self.model.data.row] = self.model.data.scored()
        return predictions_of(self.table.samples, {HEAD: proba})

    def maps(self, targets: Sequence[DomainData]) -> dict[str, NDArray[Any]]:
        """By name of the file's dataset, each labelled target on two principal components."""
        arrays = {}
        for target in targets:
            if target.label is not None:
                for name, values in feature_map(self.model, target).items():
                    arrays[f"{target.name}/{name}"] = values
        return arrays


def feature_map(model: SourceModel, target: DomainData) -> dict[str, NDArray[Any]]:
    """Project a sample of both domains, of equal weight, on two dimensions.

    Args:
        model: With the source's rows and scale.
        target: Features and labels.

    Returns:
        ``embedding`` (n, 2), ``embedding_target`` (n,) bool, ``embedding_label`` (n,).
    """
    rng = np.random.default_rng(0)
    parts = [
        data.take(np.sort(rng.permutation(len(data))[:_POINTS])) for data in (model.data, target)
    ]
    rows = np.vstack([model.standardise(part.embedded()) for part in parts]).clip(-_CLIP, _CLIP)
    return {
        "embedding": PCA(2, svd_solver="randomized", random_state=0).fit_transform(rows),
        "embedding_target": np.repeat([False, True], [len(part) for part in parts]),
        "embedding_label": np.concatenate([part.labelled() for part in parts]),
    }


def _auroc(data: DomainData) -> float | None:
    """Of the second class; macro one-vs-rest of more; None where a class is absent."""
    return metric("auroc", data.labelled(), data.scored())


def _verdict(
    target: str,
    effects: Mapping[str, Effect],
    accuracy: Mapping[str, float],
    auroc: Mapping[str, float | None],
    adaptation: AdaptationResult,
) -> Verdict:
    source_auroc, target_auroc = auroc["source"], auroc["target"]
    areas = None
    if source_auroc is not None and target_auroc is not None and "auroc_loss" in effects:
        areas = (source_auroc, target_auroc)
    gains = {
        row.method: Gain(difference=row.difference.interval, p_adjusted=row.difference.p_adjusted)
        for row in adaptation.rows
        if row.difference is not None
    }
    return verdict(
        target,
        effects,
        accuracy=(accuracy["source"], accuracy["target"]),
        auroc=areas,
        gains=gains,
    )


# Rows of the record.


def _interval(found: Interval) -> dict[str, Any]:
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def _error_table(table: ErrorTable) -> dict[str, Any]:
    return {
        "errors": [
            {"name": name, **_interval(e), "images": e.images, "patients": e.patients}
            for name, e in table.errors.items()
        ],
        "steps": [
            {**step.record(), "refit_low": step.refit_low, "refit_high": step.refit_high}
            for step in table.steps.values()
        ],
        "not_identifiable": table.not_identifiable,
        "refits": table.refits,
    }


def _detection(found: Detection) -> list[dict[str, Any]]:
    return [
        {
            "name": test.test,
            "statistic": test.statistic,
            "p": test.p,
            "p_adjusted": test.p_adjusted,
            "p_null_control": test.p_control,
            "p_positive_control": test.p_planted,
            "refused": test.refused,
        }
        for test in found.tests
    ]


def _domain_auc(found: Detection, classes: Sequence[str]) -> list[dict[str, Any]]:
    by_class = dict(zip(classes, found.domain_auc.by_class, strict=False))
    among = {"all images": found.domain_auc.overall, **by_class}
    return [
        {"among": name, **_interval(one.auc), "p": one.p}
        for name, one in among.items()
        if one is not None
    ]


def _accuracy_range(
    estimate: AccuracyEstimate, blind: DomainData, classes: Sequence[str]
) -> dict[str, Any]:
    predicted = np.bincount(blind.predicted(), minlength=len(classes)) / len(blind)
    return {
        "low": estimate.low,
        "high": estimate.high,
        "estimates": [
            {"method": method, **_interval(one)} for method, one in estimate.accuracy.items()
        ],
        "prevalence": [
            {"name": name, "method": "mlls", **_interval(one), "predicted": share}
            for name, one, share in zip(classes, estimate.prevalence, predicted, strict=True)
        ],
        "warning": estimate.assumption,
    }


def _adaptation(row: AdaptationRow) -> dict[str, Any]:
    gain = row.difference
    difference: dict[str, Any] = {"estimate": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    if gain is not None:
        difference = {**_interval(gain.interval), "p": gain.p}
    return {
        "method": row.method,
        "accuracy": row.accuracy,
        "auroc": row.auroc,
        "difference": {**difference, "p_adjusted": 1.0 if gain is None else gain.p_adjusted},
        "target_labels": row.labels_per_class > 0,
    }


def _labels(adaptation: AdaptationResult) -> tuple[AdaptationRow, ...]:
    """How many labels help: the fewest that are shown to, else the most that were tried."""
    needed = adaptation.enough_labels
    shown = [row for row in adaptation.label_curve if row.labels_per_class == needed]
    return tuple(shown or adaptation.label_curve[-1:])


def _thresholds(
    source: DomainData,
    opened: DomainData,
    estimate: AccuracyEstimate,
    found: Verdict,
) -> list[dict[str, Any]]:
    rows = transferred_thresholds(
        source,
        opened,
        prevalence=estimate.prevalence[1].estimate,
        score_changed=found.labels_needed,
    )
    intervals = ("sensitivity", "specificity")
    return [vars(row) | {name: _interval(getattr(row, name)) for name in intervals} for row in rows]
