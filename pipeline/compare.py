"""Fit heads on one backbone's features of the source, and ask them about every sample.

Everything that is fitted or chosen here (treatment, parameters, heads) sees the fit split of
the source only. Seeds of a head are joined in an ensemble, a row of its own.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline

from cache import disk
from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, FIT, VALIDATION
from pipeline.data.samples import SampleOptions, Samples, load_samples
from pipeline.errors import MissingFeaturesError, ModelError, UnknownNameError
from pipeline.evaluation.bootstrap import two_way_interval
from pipeline.evaluation.compare_heads import (
    COMPARED_BY,
    ENSEMBLE,
    best_by_validation,
    compare_heads,
    confidence_sets,
    eval_sets,
    score_heads,
)
from pipeline.evaluation.metrics import METRICS, Labels, Proba, confusion, on_all_rows, score
from pipeline.evaluation.paired_tests import ROPE, correlated_t
from pipeline.evaluation.predictions import PROBABILITIES, predictions_of, write_predictions
from pipeline.evaluation.selection import bbc_cv
from pipeline.features.backbones import spec_of
from pipeline.features.load import FeatureTable, load_features, store_for
from pipeline.heads import HEADS, HeadSpec
from pipeline.heads.custom import heads_with
from pipeline.heads.mlp import Watched
from pipeline.heads.out_of_fold import FitSplit, OutOfFold, out_of_fold
from pipeline.heads.parallel import side_by_side
from pipeline.heads.preprocessing import (
    DEFAULT,
    TREATMENTS,
    TreatedRows,
    fit_treatment,
    label_of,
    make_treatment,
    predict_in_blocks,
)
from pipeline.heads.save import DESCRIPTION, Network, SavedHead, head_folder, save_head
from pipeline.heads.search import Problem, train_head
from pipeline.randomness import stream
from pipeline.study import Study
from pipeline.words import printable, to_jsonable

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A head that could not be fitted, and why."""

    backbone: str
    head: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One fitted head on one backbone.

    Attributes:
        head: Its name in the table, with the treatment where that is not the default (see
            :func:`pipeline.heads.preprocessing.label_of`), and ``_ensemble`` where it is one.
        treatment: An entry of ``TREATMENTS``.
        seed: Of an ensemble, the first one.
        seconds: Time to fit, its share of what was fitted together.
        proba: For all samples, shape ``(n, K)``.
        model: From features as the backbone gave them to ``predict_proba``; None for an
            ensemble, whose members are rows of their own.
        chosen: Parameters that inner folds chose, with their values.
        spec: How it was fitted, and how it can be again; None for an ensemble.
    """

    head: str
    seed: int
    seconds: float
    proba: NDArray[np.float64]
    treatment: str = DEFAULT
    model: Any = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    spec: HeadSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is fitted.

    Attributes:
        heads: Names in ``table``.
        seeds: One head of each seeded kind is fitted for each.
        treatments: Every head is fitted on the features under each.
        table: ``HEADS``, or that with the heads of the study.
    """

    heads: Sequence[str]
    seeds: tuple[int, ...]
    treatments: Sequence[str] = (DEFAULT,)
    table: Mapping[str, HeadSpec] = field(default_factory=lambda: HEADS)


def fit_all(joined: FeatureTable, plan: Plan) -> tuple[list[Fitted], list[Failure]]:
    """Fit every head that can be fitted; a head that cannot is a failure with its reason.

    Memory that cannot be had is such a reason too.

    Args:
        joined: All samples of a study, with features.
        plan: What is fitted on them.
    """
    done: list[Fitted] = []
    failures = []
    for treatment in plan.treatments:
        try:
            fit = _Fit(joined, plan, treatment)
        except (ValueError, MemoryError) as cause:
            failures += [_failure(joined, label_of(h, treatment), cause) for h in plan.heads]
            continue
        for name in plan.heads:
            try:
                done += fit.head(name)
            except (ValueError, MemoryError) as cause:
                failures.append(_failure(joined, label_of(name, treatment), cause))
    return done, failures


def _failure(joined: FeatureTable, head: str, cause: BaseException) -> Failure:
    reason = str(cause) or type(cause).__name__
    _LOG.warning("%s on %s failed: %s", head, joined.backbone, reason)
    return Failure(backbone=joined.backbone, head=head, reason=reason)


class _Fit:
    """Heads on the features of one backbone under one treatment."""

    def __init__(self, joined: FeatureTable, plan: Plan, name: str) -> None:
        s, self.plan, self.name = joined.samples, plan, name
        self.raw = joined.X
        fit, seen = (np.flatnonzero(s.split == split) for split in (FIT, VALIDATION))
        self.treatment = fit_treatment(make_treatment(name, joined.widths), joined.X, fit)
        self.problem = Problem(
            X=TreatedRows(joined.X, fit, self.treatment),
            y=s.label[fit],
            group=s.group[fit],
            seeds=plan.seeds,
            watched=Watched(X=TreatedRows(joined.X, seen, self.treatment), y=s.label[seen])
            if len(seen)
            else None,
        )

    def head(self, name: str) -> list[Fitted]:
        """A head for each seed and, where there are several, their ensemble."""
        start = time.perf_counter()
        heads = train_head(name, self.problem, self.plan.table)
        each = (time.perf_counter() - start) / len(heads)
        fitted = [
            self._fitted(name, seed, each, head)
            for seed, head in zip(self.plan.seeds, heads, strict=False)
        ]
        if len(fitted) == 1:
            return fitted
        whole = Fitted(
            head=label_of(name, self.name) + ENSEMBLE,
            seed=self.plan.seeds[0],
            seconds=each * len(heads),
            proba=np.mean([one.proba for one in fitted], axis=0),
            treatment=self.name,
        )
        return [*fitted, whole]

    def _fitted(self, name: str, seed: int, seconds: float, head: Any) -> Fitted:
        model = make_pipeline(self.treatment, head)
        of_grid = {key: head.get_params()[key] for key in self.plan.table[name].grid}
        return Fitted(
            head=label_of(name, self.name),
            seed=seed,
            seconds=seconds,
            proba=predict_in_blocks(model, self.raw),
            treatment=self.name,
            model=model,
            chosen=getattr(head, "best_params_", of_grid),
            spec=self.plan.table[name],
        )


# Which kind of head is better for data like this, and what "the best of them" is worth.


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """One kind of head against the baseline over splits: training varies.

    Attributes:
        difference: Mean over the splits, head minus baseline.
        splits: Repeats times folds.
        worse: Probability that it is worse by more than ``rope`` (correlated t-test).
        equal: That both are practically equal.
        better: That it is better by more than ``rope``.
    """

    head: str
    baseline: str
    metric: str
    difference: float
    splits: int
    rope: float
    worse: float
    equal: float
    better: float


@dataclass(frozen=True, kw_only=True)
class Honest:
    """What the best of several heads is worth on new patients (BBC-CV).

    Attributes:
        head: The one that looks best out of fold.
        among: How many it was chosen from.
        apparent: Its score on the rows that chose it: too good.
        honest: What the choice is worth where it was not made.
        low: Lower bound of ``honest``, 95 %.
        high: Upper bound.
        optimism: ``apparent`` minus ``honest``.
        images: Of the fit split.
        patients: How many they are of.
    """

    head: str
    among: int
    metric: str
    apparent: float
    honest: float
    low: float
    high: float
    optimism: float
    images: int
    patients: int


def honest_bests(
    found: OutOfFold, y: Labels, group: NDArray[np.generic], seed: int
) -> list[Honest]:
    """The honest best by each metric of comparison that the rows define.

    Args:
        found: Its first repeat is used.
        y: Labels of the fit split.
        group: Its patients.
        seed: Of the study.
    """
    proba = {head: values[0] for head, values in found.proba.items()}
    bests = []
    for metric in _defined(y, proba):
        best = bbc_cv(
            [METRICS[metric](y, p) for p in proba.values()],
            group,
            stream("honest best", seed),
        )
        bests.append(
            Honest(
                head=list(proba)[best.chosen],
                among=len(proba),
                metric=metric,
                apparent=best.apparent,
                honest=best.interval.estimate,
                low=best.interval.low,
                high=best.interval.high,
                optimism=best.apparent - best.interval.estimate,
                images=len(y),
                patients=len(np.unique(group)),
            )
        )
    return bests


def procedures(found: OutOfFold, y: Labels, baseline: str) -> list[Procedure]:
    """Every head against the baseline over all splits.

    Args:
        found: All repeats are used.
        y: Labels of the fit split.
        baseline: The head that the others are compared with; none of them if it is not
            among the heads.
    """
    if baseline not in found.proba:
        return []
    rows: list[Procedure] = []
    for metric in _defined(y, {head: values[0] for head, values in found.proba.items()}):
        scores = {head: _by_split(found, y, head, metric) for head in found.proba}
        rows += _against(scores, baseline, metric, found.folds)
    return rows


def _against(
    scores: Mapping[str, NDArray[np.float64]], baseline: str, metric: str, folds: int
) -> list[Procedure]:
    differences = {h: values - scores[baseline] for h, values in scores.items() if h != baseline}
    rows = []
    for head, d in differences.items():
        if len(d) < 2 or not np.isfinite(d).all():
            continue
        posterior = correlated_t(d, runs=len(d) // folds)
        rows.append(
            Procedure(
                head=head,
                baseline=baseline,
                metric=metric,
                difference=float(d.mean()),
                splits=len(d),
                rope=ROPE,
                worse=posterior.worse,
                equal=posterior.equal,
                better=posterior.better,
            )
        )
    return rows


def _by_split(found: OutOfFold, y: Labels, head: str, metric: str) -> NDArray[np.float64]:
    """Score on the outside rows of each fold of each repeat; NaN where undefined."""
    values = []
    for fold, proba in zip(found.fold, found.proba[head], strict=True):
        for number in range(found.folds):
            value = score(metric, y[fold == number], proba[fold == number])
            values.append(np.nan if value is None else value)
    return np.array(values, np.float64)


def _defined(y: Labels, proba: Mapping[str, Proba]) -> list[str]:
    """Metrics of comparison that these rows define; none without heads."""
    one = next(iter(proba.values()), None)
    return [] if one is None else [m for m in COMPARED_BY if score(m, y, one) is not None]


# Heads that draw: how much their scores move with the seed.


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """One seeded kind of head on one domain.

    Attributes:
        seeds: How many trainings.
        mean: Over them.
        sd: Standard deviation over them.
        low: Lower bound of the mean, 95 %, over seeds and patients.
        high: Upper bound.
        method: How that interval was made.
    """

    head: str
    domain: str
    role: str
    metric: str
    seeds: int
    mean: float
    sd: float
    low: float
    high: float
    method: str
    images: int
    patients: int


def seed_spread(
    data: DomainData, members: Mapping[str, Sequence[Proba]], *, seed: int, draws: int = DRAWS
) -> list[SeedSpread]:
    """The spread of every head that was trained more than once.

    Args:
        data: Rows with labels.
        members: For each head, probabilities ``(n, K)`` of each seed; one if it has none.
        seed: Of the study.
        draws: Bootstrap draws.
    """
    label = data.labelled()
    found = []
    for metric in COMPARED_BY:
        for head, each in members.items():
            statistics = [METRICS[metric](label, p) for p in each]
            values = np.array([on_all_rows(statistic, len(data)) for statistic in statistics])
            if len(each) < 2 or not np.isfinite(values).all():
                continue
            rng = stream(f"seeds {data.name} {data.role}", seed)
            mean = two_way_interval(statistics, data.group, rng, draws=draws)
            found.append(
                SeedSpread(
                    head=head,
                    domain=data.name,
                    role=data.role,
                    metric=metric,
                    seeds=len(values),
                    mean=mean.estimate,
                    sd=float(values.std(ddof=1)),
                    low=mean.low,
                    high=mean.high,
                    method=mean.method,
                    images=mean.images,
                    patients=mean.patients,
                )
            )
    return found


# What stage 2 found, as records and as a file: ``heads.json``.


HEADS_REPORT = "heads.json"
#: Version of the layout of ``heads.json``; it rises when a field changes its meaning.
SCHEMA = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number: how one head does by one metric on one domain.

    Attributes:
        role: ``fit``, ``validation`` or ``target``.
        seconds: Time to fit the head, its share of what was fitted together.
        low: Lower bound of the 95 % interval; None where there is none.
        high: Upper bound.
        images: How many.
        patients: How many they are of.
        method: How the interval was made.
    """

    backbone: str
    head: str
    seed: int
    domain: str
    role: str
    metric: str
    estimate: float
    seconds: float
    low: float | None
    high: float | None
    images: int
    patients: int
    method: str


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of one head on one domain: true class by row, called class by column."""

    head: str
    seed: int
    domain: str
    role: str
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class HeadDetail:
    """How one head came to be.

    Attributes:
        chosen: Parameters that were chosen by inner folds, with their values.
        curves: By name, a value for each epoch; None for heads without epochs.
        path: What the head tells of its choice (inner log loss by penalty); None if it
            tells nothing.
    """

    head: str
    seed: int
    seconds: float
    chosen: Mapping[str, Any]
    curves: Mapping[str, Sequence[float]] | None
    path: Any


@dataclass(frozen=True, kw_only=True)
class Table:
    """All numbers of one backbone.

    Attributes:
        best: The head of the best validation accuracy; None without validation rows.
        pairs: Every head against the baseline, and against ``best``: names of the two, domain,
            role and metric, then the fields of :meth:`Difference.record`.
        best_sets: For each domain, the heads that may be the best.
        honest: What the best is worth; empty if folds were not asked for.
        procedures: Kinds of head over splits; empty if folds were not asked for.
    """

    rows: tuple[Row, ...]
    best: str | None
    pairs: tuple[Mapping[str, Any], ...]
    best_sets: tuple[Mapping[str, Any], ...]
    seed_spread: tuple[SeedSpread, ...]
    confusion: tuple[Confusion, ...]
    details: tuple[HeadDetail, ...]
    honest: tuple[Honest, ...] = ()
    procedures: tuple[Procedure, ...] = ()

    def with_procedures(self, honest: Sequence[Honest], found: Sequence[Procedure]) -> "Table":
        """The same with what was found out of fold."""
        return replace(self, honest=tuple(honest), procedures=tuple(found))


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """All numbers of one comparison.

    Attributes:
        classes: In label order.
        baseline: The declared one, whether it was among the heads or not.
        seeds: Of the heads that draw.
        tables: By backbone.
        unsaved: Backbone, head and reason of each head that has no model file.
        unlabelled: Images of each target without labels: its probabilities are kept, and
            nothing can be said of how right they are.
    """

    study: str
    classes: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    tables: Mapping[str, Table]
    failures: tuple[Failure, ...]
    unsaved: tuple[Mapping[str, str], ...] = ()
    unlabelled: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    schema: int = field(default=SCHEMA)

    @property
    def positive(self) -> str | None:
        """The positive class: the second of two; None for more."""
        return self.classes[1] if len(self.classes) == 2 else None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those of all backbones, tidy."""
        return tuple(row for table in self.tables.values() for row in table.rows)


def to_json(report: CompareReport) -> dict[str, Any]:
    """As ``heads.json`` has it: one tidy list for each kind of row, backbone by backbone."""
    values: dict[str, Any] = {
        "schema": report.schema,
        "study": report.study,
        "classes": list(report.classes),
        "positive": report.positive,
        "baseline": report.baseline,
        "seeds": list(report.seeds),
        "unlabelled": dict(report.unlabelled),
        "best_by_validation": {name: table.best for name, table in report.tables.items()},
        "rows": [asdict(row) for row in report.rows],
    }
    for kind in _KINDS:
        values[kind] = [
            {"backbone": name, **(one if isinstance(one, Mapping) else asdict(one))}
            for name, table in report.tables.items()
            for one in getattr(table, kind)
        ]
    values["failures"] = [asdict(failure) for failure in report.failures]
    values["unsaved"] = list(report.unsaved)
    found: dict[str, Any] = to_jsonable(values)
    return found


#: What the lists of ``heads.json`` are made of, ``rows`` apart: they name their backbone.
_KINDS: Mapping[str, Any] = MappingProxyType(
    {
        "pairs": dict,
        "best_sets": dict,
        "seed_spread": SeedSpread,
        "confusion": Confusion,
        "details": HeadDetail,
        "honest": Honest,
        "procedures": Procedure,
    }
)


def write_report(folder: Path, report: CompareReport) -> None:
    """Put the file in place, whole."""
    text = json.dumps(to_json(report), indent=1, allow_nan=False)
    disk.publish(folder / HEADS_REPORT, text.encode())


# All numbers of the fitted heads of one backbone, put in their table.


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Bootstrap draws: ``single`` for an interval, ``paired`` where two heads are compared."""

    single: int = DRAWS
    seed: int = 0

    @property
    def paired(self) -> int:
        """Their ends decide, so they must hardly move."""
        return 5 * self.single


def tabulate(
    backbone: str, places: Sequence[DomainData], done: Sequence[Fitted], baseline: str, draws: Draws
) -> Table:
    """Score every head on every place, and compare those that are trained for good.

    Args:
        backbone: Name for the rows.
        places: Each domain in each role.
        done: In order: the seeds of a kind of head, then their ensemble.
        baseline: A kind of head; it need not be among them.
        draws: How many.
    """
    final = _final(done)
    best = _best(places, final)
    kinds = [one.head.removesuffix(ENSEMBLE) for one in final]
    declared = final[kinds.index(baseline)].head if baseline in kinds else None
    references = _references(declared, best)
    asked = [place for place in places if place.role != FIT]
    rows = side_by_side([partial(_rows, backbone, at, done, draws) for at in places])
    compared = side_by_side([partial(_compare, at, final, references, draws) for at in asked])
    spread = side_by_side([partial(_spread, at, done, draws) for at in asked])
    return Table(
        rows=tuple(row for some in rows for row in some),
        best=best,
        pairs=tuple(pair for some, _ in compared for pair in some),
        best_sets=tuple(one for _, some in compared for one in some),
        seed_spread=tuple(one for some in spread for one in some),
        confusion=tuple(_confusion(place, one) for place in places for one in done),
        details=tuple(_detail(one) for one in done if one.model is not None),
    )


def _compare(
    place: DomainData, final: Sequence[Fitted], references: Sequence[tuple[str, str]], draws: Draws
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Rows of differences from each reference, and of confidence sets."""
    proba = {one.head: one.proba[place.row] for one in final}
    where = {"domain": place.name, "role": place.role}
    compared: list[Mapping[str, Any]] = [
        {"head": head, "baseline": name, "reference": reference, **where, "metric": metric}
        | difference.record()
        for name, reference in references
        for metric, rows in compare_heads(
            place, proba, name, seed=draws.seed, draws=draws.paired
        ).items()
        for head, difference in rows.items()
    ]
    found = confidence_sets(place, proba, seed=draws.seed, draws=draws.single)
    heads = list(proba)
    sets: list[Mapping[str, Any]] = [
        {
            **where,
            "metric": metric,
            "members": [heads[k] for k in one.members],
            "p": dict(zip(heads, one.p.tolist(), strict=True)),
            "alpha": one.alpha,
        }
        for metric, one in found.items()
    ]
    return compared, sets


def _spread(place: DomainData, done: Sequence[Fitted], draws: Draws) -> list[SeedSpread]:
    members: dict[str, list[Proba]] = {}
    for one in done:
        if not one.head.endswith(ENSEMBLE):
            members.setdefault(one.head, []).append(one.proba[place.row])
    return seed_spread(place, members, seed=draws.seed, draws=draws.single)


def _references(declared: str | None, best: str | None) -> list[tuple[str, str]]:
    """Whom the heads are compared with, once each."""
    named = [(declared, "baseline")]
    if best != declared:
        named.append((best, "best by validation"))
    return [(name, reference) for name, reference in named if name is not None]


def _final(done: Sequence[Fitted]) -> list[Fitted]:
    """One of each kind: the ensemble where there are several seeds."""
    return list({one.head.removesuffix(ENSEMBLE): one for one in done}.values())


def _best(places: Sequence[DomainData], final: Sequence[Fitted]) -> str | None:
    for place in places:
        if place.role == VALIDATION:
            return best_by_validation(place, {one.head: one.proba[place.row] for one in final})
    return None


def _rows(backbone: str, place: DomainData, done: Sequence[Fitted], draws: Draws) -> list[Row]:
    proba = {(one.head, one.seed): one.proba[place.row] for one in done}
    found = score_heads(place, proba, seed=draws.seed, draws=draws.single)
    return [
        Row(
            backbone=backbone,
            head=one.head,
            seed=one.seed,
            domain=place.name,
            role=place.role,
            metric=metric,
            estimate=interval.estimate,
            seconds=round(one.seconds, 4),
            low=interval.low if np.isfinite(interval.low) else None,
            high=interval.high if np.isfinite(interval.high) else None,
            images=interval.images,
            patients=interval.patients,
            method=interval.method,
        )
        for one in done
        for metric, interval in found[one.head, one.seed].items()
    ]


def _confusion(place: DomainData, one: Fitted) -> Confusion:
    counts = confusion(place.labelled(), one.proba[place.row])
    return Confusion(
        head=one.head,
        seed=one.seed,
        domain=place.name,
        role=place.role,
        counts=tuple(tuple(row) for row in counts.tolist()),
    )


def _detail(one: Fitted) -> HeadDetail:
    head = one.model[-1] if hasattr(one.model, "steps") else one.model
    curves = getattr(head, "curves_", None)
    return HeadDetail(
        head=one.head,
        seed=one.seed,
        seconds=round(one.seconds, 4),
        chosen=dict(one.chosen),
        curves=None if curves is None else dict(curves),
        path=getattr(head, "path_", None),
    )


# Stage 2: train heads on the stored features of the source and compare them everywhere.


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How stage 2 runs.

    Attributes:
        heads: Names from ``HEADS`` or of the study; None takes all.
        seeds: How many seeds of each seeded head.
        baseline: The head that the others are compared with, under the first treatment.
        treatments: Names from ``TREATMENTS``; every head is fitted under each.
        repeats: How often the fit split is divided in folds to ask which procedure is
            better and what the best is honestly worth; each time every head is fitted
            again on every fold. 0 leaves both out.
        draws: Bootstrap draws of an interval; a comparison of two heads has five times
            as many.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    heads: tuple[str, ...] | None = None
    seeds: int = 10
    baseline: str = "linear"
    treatments: tuple[str, ...] = (DEFAULT,)
    repeats: int = 1
    draws: int = DRAWS
    samples: SampleOptions = field(default_factory=SampleOptions)


#: Fewer seeds and draws, and no second look at the fit split: minutes become seconds.
QUICK = CompareOptions(seeds=3, repeats=0, draws=500)


def compare(study: Study, options: CompareOptions | None = None) -> CompareReport:
    """Fit heads on every backbone of a study and score them on every domain.

    Returns:
        The report; also written to ``results/<study>/heads.json``, and
        the probability of each class for each image to ``probabilities.h5`` beside them.

    Raises:
        UnknownNameError: A head is in no table.
        MissingFeaturesError: Stage 1 has not been run.
    """
    options = options or CompareOptions()
    names = _known(study, options)
    disk.check_writable(study.results)
    tables: dict[str, Table] = {}
    failures: list[Failure] = []
    fitted: dict[str, tuple[Samples, list[Fitted]]] = {}
    seeds = tuple(range(study.seed, study.seed + max(1, options.seeds)))
    plan = Plan(
        heads=names,
        seeds=seeds,
        treatments=tuple(dict.fromkeys(options.treatments)),
        table=heads_with(study.heads),
    )
    options = replace(options, baseline=label_of(options.baseline, plan.treatments[0]))
    samples, _ = load_samples(study, options.samples)
    for choice in study.variants:
        joined = load_features(study, choice, samples)
        done, failed = fit_all(joined, plan)
        failures += failed
        if done:
            tables[choice.name] = table_of(joined, done, options, failures)
            fitted[choice.name] = (joined.samples, done)
    if not tables:
        raise MissingFeaturesError(
            "no head could be fitted: " + "; ".join(f"{f.head}: {f.reason}" for f in failures)
        )
    report = CompareReport(
        study=study.name,
        classes=joined.samples.classes,
        baseline=options.baseline,
        seeds=seeds,
        tables=tables,
        failures=tuple(failures),
        unsaved=tuple(_save_heads(study, fitted)),
        unlabelled=joined.samples.unlabelled,
    )
    _write(study, report, fitted)
    return report


def _known(study: Study, options: CompareOptions) -> tuple[str, ...]:
    """The heads asked for; an unknown name must show before any work."""
    table = heads_with(study.heads)
    names = tuple(table) if options.heads is None else tuple(dict.fromkeys(options.heads))
    for name in (*names, options.baseline):
        if name not in table:
            raise UnknownNameError("head", name, table)
    for name in options.treatments:
        if name not in TREATMENTS:
            raise UnknownNameError("treatment", name, TREATMENTS)
    return names


def table_of(
    joined: FeatureTable,
    done: list[Fitted],
    options: CompareOptions,
    failures: list[Failure],
) -> Table:
    """All numbers of one backbone.

    Args:
        joined: Its features.
        done: What was fitted on them.
        options: Baseline, repeats and draws.
        failures: Heads that fail on a fold are added.
    """
    s, seed = joined.samples, done[0].seed
    places = eval_sets(s)
    table = tabulate(
        joined.backbone, places, done, options.baseline, Draws(single=options.draws, seed=seed)
    )
    again = _out_of_fold(joined, done, options.repeats, failures)
    if again is None:
        return table
    fit = s.split == FIT
    return table.with_procedures(
        honest_bests(again, s.label[fit], s.group[fit], seed),
        procedures(again, s.label[fit], options.baseline),
    )


def _out_of_fold(
    joined: FeatureTable, done: list[Fitted], repeats: int, failures: list[Failure]
) -> OutOfFold | None:
    """The first of each kind of head again on folds of the fit split: nothing else is given."""
    if not repeats:
        return None
    models = {one.head: one.model for one in reversed(done) if one.model is not None}
    s, rows = joined.samples, np.flatnonzero(joined.samples.split == FIT)
    fit = FitSplit(X=joined.X, rows=rows, y=s.label[rows], group=s.group[rows], seed=done[0].seed)
    specs = {one.head: one.spec for one in done if one.spec is not None}
    try:
        found = out_of_fold(dict(reversed(models.items())), fit, repeats=repeats, specs=specs)
    except ValueError as cause:
        failures.append(Failure(backbone=joined.backbone, head="out of fold", reason=str(cause)))
        return None
    failures += [
        Failure(backbone=joined.backbone, head=head, reason=f"out of fold: {reason}")
        for head, reason in found.failures.items()
    ]
    return found


def _save_heads(
    study: Study, fitted: Mapping[str, tuple[Samples, Sequence[Fitted]]]
) -> list[dict[str, str]]:
    """Write every fitted head; backbone, head and reason of each that cannot be saved.

    Seeds of one head are saved together. A file that an earlier comparison left of a head
    that cannot be saved now is removed.
    """
    unsaved = []
    for backbone, (samples, heads) in fitted.items():
        networks = _networks(study, backbone)
        for name in dict.fromkeys(one.head for one in heads if one.model is not None):
            members = [one for one in heads if one.head == name]
            folder = head_folder(study.results, backbone, name)
            saved = SavedHead(
                head=name,
                study=study.name,
                classes=tuple(printable(label) for label in samples.classes),
                networks=networks,
                models=tuple(one.model for one in members),
                seeds=tuple(one.seed for one in members),
                parameters=members[0].chosen,
                images=int(np.sum(samples.split == FIT)),
            )
            try:
                save_head(folder, saved)
            except ModelError as reason:
                _LOG.warning("%s on %s is not saved: %s", name, backbone, reason)
                unsaved.append({"backbone": backbone, "head": name, "reason": str(reason)})
                if (folder / DESCRIPTION).exists():
                    disk.remove(folder, [DESCRIPTION])
    return unsaved


def _networks(study: Study, backbone: str) -> tuple[Network, ...]:
    """The frozen networks behind the features of one backbone, or of several joined by ``+``."""
    by_name = {choice.name: choice for choice in study.backbones}
    names = [backbone] if backbone in by_name else backbone.split("+")
    return tuple(
        Network(
            recipe=store_for(study, choice).recipe,
            dim=spec_of(choice.name).dim,
            weights=choice.weights
            if choice.weights == "imagenet"
            else str(Path(choice.weights).resolve()),
        )
        for choice in (by_name[name] for name in names)
    )


def _write(
    study: Study, report: CompareReport, fitted: dict[str, tuple[Samples, list[Fitted]]]
) -> None:
    kept = {
        backbone: predictions_of(samples, {(one.head, one.seed): one.proba for one in done})
        for backbone, (samples, done) in fitted.items()
    }
    write_predictions(study.results / PROBABILITIES, kept)
    write_report(study.results, report)
