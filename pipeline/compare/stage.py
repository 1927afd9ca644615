"""Stage 2: train heads on the stored features of the source and compare them everywhere.

Everything that is fitted or chosen (scaler, parameters, heads) sees the fit split of
the source only; validation and targets are looked at, never learned from.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from cache import disk
from pipeline.compare.fitting import Failure, Fitted, Plan, fit_all
from pipeline.compare.procedures import honest_bests, procedures
from pipeline.compare.report import CompareReport, Table, write_report
from pipeline.compare.tabulate import Draws, tabulate
from pipeline.errors import MissingFeaturesError, UnknownNameError
from pipeline.features.joined import JoinedFeatures, load_joined
from pipeline.heads.named import heads_with
from pipeline.heads.out_of_fold import FitSplit, OutOfFold, out_of_fold
from pipeline.heads.treatments import DEFAULT, TREATMENTS, label_of
from pipeline.models.saving import save_heads
from pipeline.samples import SampleOptions, Samples
from pipeline.samples.gather import load_samples
from pipeline.samples.splits import FIT
from pipeline.scores.predictions import PROBABILITIES, predictions_of, write_predictions
from pipeline.scores.scoring import places_of
from pipeline.stats.intervals import DRAWS
from pipeline.study import Study


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
        samples: See :class:`pipeline.samples.SampleOptions`.
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
        The report; also written to ``results/<study>/heads.json`` and ``heads.csv``, and
        the probability of each class for each image to ``probabilities.h5`` beside them.

    Raises:
        UnknownNameError: A head is in no table.
        MissingFeaturesError: Stage 1 has not been run.
    """
    options = options or CompareOptions()
    names = _known(study, options)
    disk.probe(study.results)
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
        joined = load_joined(study, choice, samples)
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
        unsaved=tuple(save_heads(study, fitted)),
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
    joined: JoinedFeatures,
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
    places = places_of(s.domain, s.split, s.label, s.group, seed)
    table = tabulate(joined.backbone, places, done, options.baseline, Draws(single=options.draws))
    again = _out_of_fold(joined, done, options.repeats, failures)
    if again is None:
        return table
    fit = s.split == FIT
    return table.with_procedures(
        honest_bests(again, s.label[fit], s.group[fit], seed),
        procedures(again, s.label[fit], options.baseline),
    )


def _out_of_fold(
    joined: JoinedFeatures, done: list[Fitted], repeats: int, failures: list[Failure]
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


def _write(
    study: Study, report: CompareReport, fitted: dict[str, tuple[Samples, list[Fitted]]]
) -> None:
    kept = {
        backbone: predictions_of(samples, {(one.head, one.seed): one.proba for one in done})
        for backbone, (samples, done) in fitted.items()
    }
    write_predictions(study.results / PROBABILITIES, kept)
    write_report(study.results, report)
