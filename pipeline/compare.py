"""Stage 2: fit heads on the stored features of the source, and compare them everywhere.

Everything that is fitted or chosen (preprocessing, parameters, heads) sees the fit split of
the source only. The validation split and the targets are predicted and scored. The seeds of
a stochastic head are kept as one ensemble, whose probability is their mean.

``heads.json`` has an entry for each backbone: see ``pipeline.evaluation.heads_record``, and here
how each head was fitted.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from cache import disk
from pipeline.data.leaks import CheckResult, find_leaks
from pipeline.data.patients import DRAWS, FIT, VALIDATION
from pipeline.data.samples import SampleOptions, Samples, load_samples
from pipeline.errors import (
    MissingFeaturesError,
    MissingResultsError,
    ModelError,
    PartialFailureError,
    ResultsError,
    UnknownNameError,
)
from pipeline.evaluation.compare_heads import eval_sets
from pipeline.evaluation.heads_record import HEADS_REPORT, HEADS_SCHEMA, Record, Scoring
from pipeline.evaluation.metrics import Proba
from pipeline.evaluation.predictions import (
    PROBABILITIES,
    Predictions,
    predictions_file,
    predictions_of,
)
from pipeline.features.load import FeatureTable, feature_tables
from pipeline.heads import HeadSpec
from pipeline.heads.base import PREPROCESSING, STANDARDISE, make_preprocessing
from pipeline.heads.custom import all_heads
from pipeline.heads.save import (
    Network,
    SavedHead,
    code_version,
    digest_of,
    fit_keys,
    read_fit,
    save_fit,
)
from pipeline.heads.search import Fit, HeadSearch, head_folds
from pipeline.results import ResultSet, read_set, write_set
from pipeline.study import SOURCE, Study
from pipeline.words import as_file_name, printable, to_jsonable

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How stage 2 runs.

    Attributes:
        heads: Names from ``HEADS`` or of the study's own heads; None takes all.
        baseline: The head that the others are compared with.
        preprocessing: Preprocessing of the features, an entry of ``PREPROCESSING``.
        seeds: Number of seeds of each stochastic head.
        repeats: How often the fit split is split into folds, on each of which every head is
            fitted again. 0: folds only choose parameters, and there is no value of the best
            head that is corrected for the selection.
        thorough: Whether the spread over seeds, the comparison of algorithms and the sets of
            heads that may be the best are computed too.
        draws: Bootstrap draws of an interval.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    heads: tuple[str, ...] | None = None
    baseline: str = "linear"
    preprocessing: str = STANDARDISE
    seeds: int = 3
    repeats: int = 1
    thorough: bool = False
    draws: int = DRAWS
    samples: SampleOptions = field(default_factory=SampleOptions)


QUICK = CompareOptions(seeds=1, repeats=0, draws=500)
THOROUGH = CompareOptions(seeds=10, repeats=5, thorough=True)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What all backbones share: the study, the options, and the results of an earlier run."""

    study: Study
    options: CompareOptions
    table: Mapping[str, HeadSpec]
    specs: Mapping[str, HeadSpec]
    seeds: tuple[int, ...]
    scoring: Scoring
    earlier: ResultSet | None


@dataclass(kw_only=True)
class _Heads:
    """The heads on one backbone.

    Attributes:
        backbone: Its name, or the names of several.
        samples: The images that have its features.
        key: Hash of everything that the entry depends on.
        fit_keys: By head, hash of everything that its fit depends on.
        entry: The backbone's entry in the record; None until a head is scored.
        fits: The fitted heads, by name.
        failures: By head, the reason why it could not be fitted.
        not_saved: By head, the reason why it could not be saved.
        files: SHA-256 of each file of these heads, by name below the results.
    """

    backbone: str
    samples: Samples
    key: str = ""
    fit_keys: Mapping[str, str] = field(default_factory=dict)
    entry: Record | None = None
    fits: dict[str, Fit] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    not_saved: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def proba(self) -> dict[str, Proba]:
        """Probabilities of every image, ``(N, K)``, by head."""
        return {name: fit.mean_proba for name, fit in self.fits.items()}

    def predictions(self) -> Predictions:
        """Probabilities of all images by each head; for its training images out of fold or NaN."""
        fitted_to, proba = self.samples.split == FIT, {}
        for head, fit in self.fits.items():
            proba[head, fit.seeds[0]] = of_head = fit.mean_proba
            if fit.out_of_fold is not None:
                of_head[fitted_to] = fit.out_of_fold[0]
        return predictions_of(self.samples, proba)


def compare(
    study: Study,
    options: CompareOptions | None = None,
    on_scores: Callable[[Record, bytes], None] = lambda _record, _file: None,
) -> Record:
    """Fit heads on every backbone of a study and score them on every domain.

    A head that fails, or a backbone without features, is listed with its reason, and the others
    go on. A head that an earlier run fitted to the same features with the same settings is not
    fitted again. If that is true for all heads of a backbone, and nothing else has changed, the
    scores and figures of the earlier run are kept.

    Args:
        study: The study with features and results.
        options: How the stage runs; None: the defaults.
        on_scores: Is called when the heads of a backbone are scored, before any is fitted out
            of fold or saved. It gets the record so far, and the content of a file of that
            backbone's probabilities, so that figures can be drawn meanwhile. The content is
            empty if the figures of an earlier run are kept.

    Returns:
        The record; also written to ``results/<study>/heads.json``. The probability of each
        class for each image goes to ``probabilities.h5``, the heads to ``heads/``.

    Raises:
        UnknownNameError: A head or preprocessing is unknown.
        MissingFeaturesError: Stage 1 has not been run, or no head could be fitted.
        PartialFailureError: A backbone or a target has no scores; the record is of the others.
    """
    run = _plan(study, options or CompareOptions())
    disk.prepare(study.results)
    samples, _ = load_samples(study, run.options.samples)
    leaks = find_leaks(study, samples)
    scored: list[_Heads] = []
    failures: dict[str, Exception] = {}
    for backbone, features in feature_tables(study, samples):
        if isinstance(features, Exception):
            failures[f"backbone.{backbone}"] = features
            scored.append(_left_out(run, backbone, samples, features))
            continue
        samples = features.samples
        unfitted = _unfitted(study, features)
        heads = _reuse(run, features, unfitted)
        scored.append(heads)
        search = None if heads.entry else _fit(run, heads, features)
        if heads.entry:
            drawn = any(name.startswith("figures/") for name in heads.files)
            file = b"" if drawn else predictions_file({backbone: heads.predictions()})
            on_scores(_record(run, samples, leaks, scored), file)
        else:
            reasons = "; ".join(f"{head}: {why}" for head, why in heads.failures.items())
            why = MissingFeaturesError(f"no head could be fitted: {reasons}")
            failures[f"backbone.{backbone}"] = why
        if search:
            _finish(run, heads, search)
            _save(run, heads, unfitted)
    record = _record(run, samples, leaks, scored)
    if not record["backbones"]:
        raise next(iter(failures.values()))
    write_set(
        study.results / HEADS_REPORT,
        record,
        {PROBABILITIES: predictions_file({h.backbone: h.predictions() for h in scored if h.fits})},
        unchanged={name: digest for heads in scored for name, digest in heads.files.items()},
        owned=("heads*.csv", "figures/heads-*", "heads/*/*/*"),
    )
    failures = {f"target.{name}": why for name, why in samples.failures.items()} | failures
    if failures:
        raise PartialFailureError(failures, record)
    return record


def _plan(study: Study, options: CompareOptions) -> _Run:
    """What is to be done; an unknown name must show before any work."""
    table = all_heads(study.heads)
    names = tuple(table) if options.heads is None else tuple(dict.fromkeys(options.heads))
    for name in (*names, options.baseline):
        if name not in table:
            raise UnknownNameError("head", name, table)
    if options.preprocessing not in PREPROCESSING:
        raise UnknownNameError("preprocessing", options.preprocessing, PREPROCESSING)
    try:
        earlier = read_set(study.results / HEADS_REPORT, "heads")
    except (MissingResultsError, ResultsError):
        earlier = None
    return _Run(
        study=study,
        options=options,
        table=table,
        specs={name: table[name] for name in names},
        seeds=tuple(range(study.seed, study.seed + max(1, options.seeds))),
        scoring=Scoring(baseline=options.baseline, seed=study.seed, draws=options.draws),
        earlier=earlier,
    )


def _left_out(run: _Run, backbone: str, samples: Samples, reason: Exception) -> _Heads:
    """The result for a backbone without features; heads of an earlier run stay on the disk."""
    folder = f"heads/{as_file_name(backbone)}/"
    earlier = run.earlier.digests if run.earlier else {}
    return _Heads(
        backbone=backbone,
        samples=samples,
        failures={"all heads": str(reason)},
        files={name: digest for name, digest in earlier.items() if name.startswith(folder)},
    )


def _unfitted(study: Study, features: FeatureTable) -> SavedHead:
    """The parts of a saved head that all heads on a backbone have in common."""
    choices = study.variants[features.backbone]
    files = [
        c.weights if c.weights == "imagenet" else str(Path(c.weights).resolve()) for c in choices
    ]
    return SavedHead(
        head="",
        study=study.name,
        classes=tuple(printable(label) for label in features.samples.classes),
        networks=tuple(
            Network(recipe=store.recipe, dim=width, weights=file)
            for file, store, width in zip(files, features.stores, features.widths, strict=True)
        ),
        models=(),
        seeds=(),
        parameters={},
        images=int(np.sum(features.samples.split == FIT)),
        window=features.samples.items[0].options.window,  # the source comes first
        frame=features.samples.items[0].options.frame,
    )


def _reuse(run: _Run, features: FeatureTable, unfitted: SavedHead) -> _Heads:
    """Take over the fits of an earlier run, and its entry if it has all of these heads.

    Fits of heads that are not requested now are kept too.
    """
    options, name = run.options, features.backbone
    keys = fit_keys(
        unfitted,
        features.samples,
        features.X if features.views is None else features.views,
        run.table,
        seeds=run.seeds,
        preprocessing=options.preprocessing,
    )
    settings = (options.baseline, options.repeats, options.thorough, options.draws)
    code = code_version(Path(__file__).parent)
    key = digest_of([name, {head: keys[head] for head in run.specs}, run.seeds, settings, code])
    heads = _Heads(backbone=name, samples=features.samples, key=key, fit_keys=keys)
    for head in keys:
        fit, digests = read_fit(run.study.results, name, head, keys[head]) or (None, {})
        heads.files |= digests
        stored = 0 if fit is None or fit.out_of_fold is None else len(fit.out_of_fold)
        if fit and head in run.specs and options.repeats <= stored:
            heads.fits[head] = fit
    heads.fits = {head: heads.fits[head] for head in run.specs if head in heads.fits}
    if run.earlier and heads.fits.keys() == run.specs.keys():
        for entry in run.earlier.record["backbones"]:
            if entry.get("key") == key:
                heads.entry = entry | {"reused": len(run.specs), "fitted": 0}
                heads.files |= _figures(run.earlier, name)
    return heads


def _figures(earlier: ResultSet, backbone: str) -> dict[str, str]:
    """SHA-256 of a backbone's figures that are unchanged since an earlier run drew them."""
    try:
        return {
            name: digest
            for name, digest in earlier.digests.items()
            if name.startswith("figures/heads-")
            and f"-{as_file_name(backbone)}." in name
            and earlier.read(name)
        }
    except ResultsError:
        return {}


def _fit(run: _Run, heads: _Heads, features: FeatureTable) -> HeadSearch:
    """Fit the heads that no earlier run has fitted, and score all."""
    fit_rows, split = features.domain(SOURCE, FIT), features.samples.split
    validation = features.domain(SOURCE, VALIDATION) if (split == VALIDATION).any() else None
    search = HeadSearch(
        fit_rows,
        {head: spec for head, spec in run.specs.items() if head not in heads.fits},
        seeds=run.seeds,
        preprocessing=partial(make_preprocessing, run.options.preprocessing, features.widths),
        views=None if features.views is None else features.views[fit_rows.row],
    )
    new = search.fit(features.X, np.flatnonzero(split != FIT), validation)
    fits = heads.fits | new
    heads.fits = {head: fits[head] for head in run.specs if head in fits}
    heads.failures = search.failures
    if fits:
        seconds = {name: round(fit.seconds, 3) for name, fit in heads.fits.items()}
        heads.entry = {
            "backbone": heads.backbone,
            "reused": len(fits) - len(new),
            "fitted": len(new),
            "key": heads.key,
            "heads": [
                {
                    "head": name,
                    "about": run.specs[name].about,
                    "seeds": len(fit.seeds),
                    "fit_seconds": seconds[name],
                    "chosen": dict(fit.chosen),
                    "curves": dict(fit.curves),
                }
                for name, fit in heads.fits.items()
            ],
            **run.scoring.shown(eval_sets(heads.samples), heads.proba, seconds),
        }
    return search


def _finish(run: _Run, heads: _Heads, search: HeadSearch) -> None:
    """Fit the new heads out of fold, and add all scores that the printed table does not show."""
    if not heads.entry:
        return
    repeats, fits, fit_rows = run.options.repeats, heads.fits, search.data
    fits |= search.out_of_fold({name: fit for name, fit in fits.items() if fit.models}, repeats)
    held_out = {h: fit.out_of_fold for h, fit in fits.items() if fit.out_of_fold is not None}
    out_of_fold, sets = held_out if repeats else {}, eval_sets(heads.samples)
    run.scoring.add(heads.entry, sets, heads.proba, fit_rows, out_of_fold)
    if run.options.thorough:
        by_seed = {name: fit.proba for name, fit in fits.items()}
        folds = [head_folds(fit_rows, run.study.seed + k) for k in range(repeats)]
        heads.entry |= run.scoring.thorough(sets, by_seed, fit_rows, out_of_fold, folds)


def _save(run: _Run, heads: _Heads, unfitted: SavedHead) -> None:
    """Save every new head; heads that cannot be saved are listed with their reasons."""
    for name, reason in heads.failures.items():
        _LOG.warning("%s on %s failed: %s", name, heads.backbone, reason)
    for name, fit in heads.fits.items():
        if not fit.models:  # of an earlier run
            continue
        head = replace(
            unfitted, head=name, models=fit.models, seeds=fit.seeds, parameters=fit.chosen
        )
        key = heads.fit_keys[name]
        try:
            heads.files |= save_fit(run.study.results, heads.backbone, head, fit, key)
        except ModelError as cause:
            _LOG.warning("%s on %s is not saved: %s", name, heads.backbone, cause)
            heads.not_saved[name] = str(cause)


def _record(
    run: _Run, samples: Samples, leaks: Sequence[CheckResult], heads: Sequence[_Heads]
) -> Record:
    """The record so far, JSON values."""

    def reasons(name: str) -> list[Record]:
        return [
            {"backbone": fitted.backbone, "head": head, "reason": reason}
            for fitted in heads
            for head, reason in getattr(fitted, name).items()
        ]

    record: Record = to_jsonable(
        {
            "schema": HEADS_SCHEMA,
            "study": run.study.name,
            "classes": samples.classes,
            "positive": samples.classes[1] if len(samples.classes) == 2 else None,
            "baseline": run.options.baseline,
            "preprocessing": run.options.preprocessing,
            "seeds": run.seeds,
            "unlabelled": dict(samples.unlabelled),
            "failed_targets": samples.reasons,
            "leaks": [asdict(leak) for leak in leaks],
            "backbones": [fitted.entry for fitted in heads if fitted.entry],
            "failures": reasons("failures"),
            "not_saved": reasons("not_saved"),
        }
    )
    return record
