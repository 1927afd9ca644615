"""Stage 2: fit heads on the stored features of the source, and compare them everywhere.

Everything that is fitted or chosen (preprocessing, parameters, heads) sees the fit split of
the source only. The validation split and the targets are predicted and scored. The seeds of
a stochastic head are kept as one ensemble, whose probability is their mean.

``heads.json`` has, for each backbone: one entry a domain with a row for each head (scores
with intervals, differences from the baseline), what the best head is worth after correction
for the selection, how each head was fitted; and with ``thorough`` the spread over seeds, the
comparison of algorithms over folds, and the sets of heads that may be the best.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.domain import DomainData
from pipeline.data.leaks import Finding, find_leaks
from pipeline.data.patients import DRAWS, FIT, VALIDATION, draw_patients
from pipeline.data.samples import SampleOptions, Samples, load_samples
from pipeline.errors import MissingFeaturesError, ModelError, UnknownNameError
from pipeline.evaluation.bootstrap import bootstrap_interval
from pipeline.evaluation.clinical import clinical
from pipeline.evaluation.compare_heads import (
    COMPARED_BY,
    bases,
    best_by_validation,
    compare_heads,
    confidence_sets,
    eval_sets,
    score_heads,
)
from pipeline.evaluation.metrics import METRICS, Proba, on_all_rows, score
from pipeline.evaluation.paired_tests import ROPE, correlated_t
from pipeline.evaluation.predictions import (
    PROBABILITIES,
    Predictions,
    predictions_file,
    predictions_of,
)
from pipeline.evaluation.selection import bbc_cv
from pipeline.features.backbones import spec_of
from pipeline.features.load import FeatureTable, load_features, store_for
from pipeline.heads import HeadSpec
from pipeline.heads.custom import all_heads
from pipeline.heads.fit_cache import data_digest, fit_file, fit_key, read_fit
from pipeline.heads.parallel import run_parallel
from pipeline.heads.preprocessing import PREPROCESSING, STANDARDISE, make_preprocessing
from pipeline.heads.save import Network, SavedHead, head_folder, save_head
from pipeline.heads.search import TIME_LIMIT, Fit, Fitting, deal_folds
from pipeline.progress import Progress
from pipeline.randomness import stream
from pipeline.results import prepare, write_set
from pipeline.study import SOURCE, Study
from pipeline.words import printable, to_jsonable

_LOG = logging.getLogger(__name__)
HEADS_REPORT = "heads.json"
#: Version of the layout of ``heads.json``; it rises when a field changes its meaning.
SCHEMA = 6
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How stage 2 runs.

    Attributes:
        heads: Names from ``HEADS`` or of the study; None takes all.
        baseline: The head that the others are compared with.
        preprocessing: Of the features, an entry of ``PREPROCESSING``.
        seeds: How many seeds of each stochastic head.
        repeats: How often the fit split is divided in folds, on each of which every head is
            fitted again. 0: only to choose parameters, so that nothing can be said about
            the best head after correction for the selection.
        thorough: Whether the spread over seeds, the comparison of algorithms and the sets of
            heads that may be the best are computed too.
        draws: Bootstrap draws of an interval.
        time_limit: Seconds after which one fit of a head is given up, and the head with it.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    heads: tuple[str, ...] | None = None
    baseline: str = "linear"
    preprocessing: str = STANDARDISE
    seeds: int = 3
    repeats: int = 1
    thorough: bool = False
    draws: int = DRAWS
    time_limit: float = TIME_LIMIT
    samples: SampleOptions = field(default_factory=SampleOptions)


QUICK = CompareOptions(repeats=0, draws=500)
THOROUGH = CompareOptions(seeds=10, repeats=5, thorough=True)


def compare(
    study: Study,
    options: CompareOptions | None = None,
    on_scores: Callable[[Record], None] = lambda _: None,
) -> Record:
    """Fit heads on every backbone of a study and score them on every domain.

    A head that fails is listed with its reason, and the others go on. A head that an earlier
    run fitted to the same features with the same settings is not fitted again.

    Args:
        study: Where features and results are.
        options: How the stage runs; None: the defaults.
        on_scores: Gets the record as far as it is known when the heads of a backbone are scored,
            before any is fitted out of fold or saved.

    Returns:
        The record; also written to ``results/<study>/heads.json``. The probability of each
        class for each image goes to ``probabilities.h5``, the heads to ``heads/``.

    Raises:
        UnknownNameError: A head or preprocessing is in no table.
        MissingFeaturesError: Stage 1 has not been run, or no head could be fitted.
    """
    options = options or CompareOptions()
    specs = _chosen_specs(study, options)
    prepare(study.results)
    samples, _ = load_samples(study, options.samples)
    leaks = find_leaks(study, samples)
    entries: list[Record] = []
    failures: dict[str, Mapping[str, str]] = {}
    not_saved: list[Record] = []
    predictions: dict[str, Predictions] = {}
    saved: dict[str, str] = {}
    for choice in study.variants:
        features = load_features(study, choice, samples)
        samples, name = features.samples, features.backbone
        keys = _keys(features, specs, study, options)
        reused, digests = _read_fits(study, name, keys, options)
        missing = {head: spec for head, spec in specs.items() if head not in reused}
        fitting = _fitting(features, missing, study, options)
        new = _fit(fitting, features)
        failures[name] = fitting.failures
        fits = {head: fit for head in specs if (fit := reused.get(head) or new.get(head))}
        if fits:
            entry: Record = {"backbone": name, "reused": len(reused), "fitted": len(new)}
            entries.append(entry | _scores(features, fits, specs, study, options))
            on_scores(_record(study, samples, options, entries, failures, not_saved, leaks))
        new = fitting.out_of_fold(new, options.repeats)
        fits |= new
        if fits:
            entries[-1] |= _out_of_fold_scores(features, fits, study, options)
            predictions[name] = predictions_of(
                samples, {(head, fit.seeds[0]): _mean(fit) for head, fit in fits.items()}
            )
        for head, reason in fitting.failures.items():
            _LOG.warning("%s on %s failed: %s", head, name, reason)
        new_digests, refused = _save_fits(study, features, new, keys)
        saved |= digests | new_digests
        not_saved += refused
    record = _record(study, samples, options, entries, failures, not_saved, leaks)
    if not entries:
        reasons = "; ".join(f"{one['head']}: {one['reason']}" for one in record["failures"])
        raise MissingFeaturesError(f"no head could be fitted: {reasons}")
    write_set(
        study.results / HEADS_REPORT,
        record,
        {PROBABILITIES: predictions_file(predictions)},
        kept=saved,
        owned=("heads*.csv", "figures/heads-*", "heads/*/*/*"),
    )
    return record


def _record(
    study: Study,
    samples: Samples,
    options: CompareOptions,
    entries: Sequence[Record],
    failures: Mapping[str, Mapping[str, str]],
    not_saved: Sequence[Record],
    leaks: Sequence[Finding],
) -> Record:
    """The record of what is known so far, JSON values."""
    record: Record = to_jsonable(
        {
            "schema": SCHEMA,
            "study": study.name,
            "classes": samples.classes,
            "positive": samples.classes[1] if len(samples.classes) == 2 else None,
            "baseline": options.baseline,
            "preprocessing": options.preprocessing,
            "seeds": _seeds(study, options),
            "unlabelled": dict(samples.unlabelled),
            "leaks": [asdict(leak) for leak in leaks],
            "backbones": entries,
            "failures": [
                {"backbone": backbone, "head": head, "reason": reason}
                for backbone, of_backbone in failures.items()
                for head, reason in of_backbone.items()
            ],
            "not_saved": not_saved,
        }
    )
    return record


def _chosen_specs(study: Study, options: CompareOptions) -> dict[str, HeadSpec]:
    """The heads that are wanted; an unknown name must show before any work."""
    table = all_heads(study.heads)
    names = tuple(table) if options.heads is None else tuple(dict.fromkeys(options.heads))
    for name in (*names, options.baseline):
        if name not in table:
            raise UnknownNameError("head", name, table)
    if options.preprocessing not in PREPROCESSING:
        raise UnknownNameError("preprocessing", options.preprocessing, PREPROCESSING)
    return {name: table[name] for name in names}


def _seeds(study: Study, options: CompareOptions) -> tuple[int, ...]:
    return tuple(range(study.seed, study.seed + max(1, options.seeds)))


def _mean(fit: Fit) -> Proba:
    """Probabilities of the ensemble of seeds, ``(N, K)``."""
    return np.asarray(fit.proba.mean(axis=0))


# Fitting: the heads of one backbone, from an earlier run where nothing has changed.


def _fitting(
    features: FeatureTable, specs: Mapping[str, HeadSpec], study: Study, options: CompareOptions
) -> Fitting:
    data = features.domain(SOURCE, FIT)
    return Fitting(
        data,
        specs,
        seeds=_seeds(study, options),
        preprocessing=partial(make_preprocessing, options.preprocessing, features.widths),
        limit=options.time_limit,
        views=None if features.views is None else features.views[data.row],
    )


def _fit(fitting: Fitting, features: FeatureTable) -> dict[str, Fit]:
    if not fitting.specs:
        return {}
    split = features.samples.split
    validation = features.domain(SOURCE, VALIDATION) if (split == VALIDATION).any() else None
    return fitting.fit(features.X, np.flatnonzero(split != FIT), validation)


def _keys(
    features: FeatureTable, specs: Mapping[str, HeadSpec], study: Study, options: CompareOptions
) -> dict[str, str]:
    """What each fit depends on; see :func:`pipeline.heads.fit_cache.fit_key`."""
    X = features.X if features.views is None else features.views
    data, seeds = data_digest(features.samples, X), _seeds(study, options)
    return {
        name: fit_key(data, spec, seeds=seeds, preprocessing=options.preprocessing)
        for name, spec in specs.items()
    }


def _read_fits(
    study: Study, backbone: str, keys: Mapping[str, str], options: CompareOptions
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fits of an earlier run that hold, and the SHA-256 of the files of their heads."""
    fits: dict[str, Fit] = {}
    saved: dict[str, str] = {}
    for name, key in keys.items():
        folder = head_folder(study.results, backbone, name)
        if found := read_fit(folder, key, repeats=options.repeats):
            fits[name], digests = found
            saved |= _below(study, folder, digests)
    return fits, saved


def _save_fits(
    study: Study, features: FeatureTable, fits: Mapping[str, Fit], keys: Mapping[str, str]
) -> tuple[dict[str, str], list[Record]]:
    """Write every new head.

    Returns:
        SHA-256 of the files written, by name; and backbone, head and reason of each head that
        cannot be saved.
    """
    samples, not_saved = features.samples, []
    networks = _networks(study, features.backbone)
    digests: dict[str, str] = {}
    for name, fit in fits.items():
        folder = head_folder(study.results, features.backbone, name)
        saved = SavedHead(
            head=name,
            study=study.name,
            classes=tuple(printable(label) for label in samples.classes),
            networks=networks,
            models=fit.models,
            seeds=fit.seeds,
            parameters=fit.chosen,
            images=int(np.sum(samples.split == FIT)),
            window=samples.items[0].reading.window,  # the source comes first
            frame=samples.items[0].reading.frame,
        )
        try:
            digests |= _below(study, folder, save_head(folder, saved, fit_file(keys[name], fit)))
        except ModelError as reason:
            _LOG.warning("%s on %s is not saved: %s", name, features.backbone, reason)
            not_saved.append({"backbone": features.backbone, "head": name, "reason": str(reason)})
    return digests, not_saved


def _below(study: Study, folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """The files of a head under their names below the study's results."""
    place = folder.relative_to(study.results).as_posix()
    return {f"{place}/{name}": digest for name, digest in digests.items()}


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


# Evaluation: the entry of one backbone in the record.


def _scores(
    features: FeatureTable,
    fits: Mapping[str, Fit],
    specs: Mapping[str, HeadSpec],
    study: Study,
    options: CompareOptions,
) -> Record:
    seed, proba = study.seed, {name: _mean(fit) for name, fit in fits.items()}
    sets = [data for data in eval_sets(features.samples) if data.role != FIT]
    with Progress("scores", len(sets), unit="domains") as progress:
        domains = run_parallel(
            [partial(_domain, data, proba, fits, seed, options) for data in sets],
            done=progress.advance,
        )
    best = None
    for data in sets:
        if data.role == VALIDATION:
            best = best_by_validation(data, {name: p[data.row] for name, p in proba.items()})
    order = _order(domains, best)
    for domain in domains:
        domain["rows"].sort(key=lambda row: order.index(row["head"]))
    return {
        "best": best,
        "domains": domains,
        "heads": [_description(name, fit, specs[name]) for name, fit in fits.items()],
        "selection_corrected": {},
        "seed_spread": [],
        "algorithms": [],
        "confidence_sets": [],
    }


def _out_of_fold_scores(
    features: FeatureTable, fits: Mapping[str, Fit], study: Study, options: CompareOptions
) -> Record:
    """What is known only of heads that were fitted again out of fold, or asked for."""
    if not options.repeats:
        return {}
    fit_rows = features.domain(SOURCE, FIT)
    corrected = {"selection_corrected": _selection_corrected(fit_rows, fits, study.seed)}
    if not options.thorough:
        return corrected
    return corrected | _thorough(features, fit_rows, fits, study.seed, options)


def _domain(
    data: DomainData,
    proba: Mapping[str, Proba],
    fits: Mapping[str, Fit],
    seed: int,
    options: CompareOptions,
) -> Record:
    """A row for each head: scores with intervals, and differences from the baseline."""
    of_domain = {name: p[data.row] for name, p in proba.items()}
    scores = score_heads(data, of_domain, seed=seed, draws=options.draws)
    drawn = draw_patients(
        data.group, stream(f"clinical {data.name} {data.role}", seed), draws=options.draws
    )
    differences: Mapping[str, Mapping[str, Any]] = {}
    if options.baseline in of_domain and len(of_domain) > 1:
        differences = compare_heads(data, of_domain, options.baseline, seed=seed)
    return {
        **data.record(),
        "rows": [
            {
                "head": name,
                "fit_seconds": round(fits[name].seconds, 3),
                "scores": {m: _short(interval.record()) for m, interval in scores[name].items()},
                "clinical": clinical(data.with_(proba=of_domain[name]), drawn),
                "differences": {
                    metric: _short(by_head[name].record())
                    for metric, by_head in differences.items()
                    if name in by_head
                },
            }
            for name in of_domain
        ],
    }


def _short(record: Mapping[str, Any]) -> Record:
    """Without what the domain or the report says once for all."""
    return {k: v for k, v in record.items() if k not in ("images", "patients", "level")}


def _order(domains: Sequence[Record], best: str | None) -> list[str]:
    """Heads by validation accuracy, else by that of the first domain; the best one first."""
    if not domains:
        return [] if best is None else [best]
    ranking = next((domain for domain in domains if domain["role"] == VALIDATION), domains[0])
    accuracy = {row["head"]: row["scores"]["accuracy"]["estimate"] for row in ranking["rows"]}
    return sorted(accuracy, key=lambda name: (name != best, -accuracy[name]))


def _description(name: str, fit: Fit, spec: HeadSpec) -> Record:
    """How a head was fitted."""
    return {
        "head": name,
        "about": spec.about,
        "seeds": len(fit.seeds),
        "fit_seconds": round(fit.seconds, 3),
        "chosen": dict(fit.chosen),
        "path": list(fit.path),
        "curves": dict(fit.curves),
    }


def _selection_corrected(data: DomainData, fits: Mapping[str, Fit], seed: int) -> Record:
    """What the best head is worth on new patients, by metric; empty without folds."""
    proba = {h: fit.out_of_fold[0] for h, fit in fits.items() if fit.out_of_fold is not None}
    if not proba:
        return {}
    held_out = np.isfinite(np.stack(list(proba.values()))).all(axis=(0, 2))
    label, group = data.labelled()[held_out], data.group[held_out]
    values = {}
    for metric in COMPARED_BY:
        statistics = [METRICS[metric](label, p[held_out]) for p in proba.values()]
        if not np.isfinite([on_all_rows(statistic, len(label)) for statistic in statistics]).all():
            continue
        best = bbc_cv(statistics, group, stream("selection", seed), *bases(metric, label, group))
        values[metric] = {
            "head": list(proba)[best.chosen],
            "among": len(proba),
            "apparent": best.apparent,
            **best.interval.record(),
        }
    return values


# What --thorough adds.


def _thorough(
    features: FeatureTable,
    fit_rows: DomainData,
    fits: Mapping[str, Fit],
    seed: int,
    options: CompareOptions,
) -> Record:
    sets = [data for data in eval_sets(features.samples) if data.role != FIT]
    spread = run_parallel([partial(_seed_spread, data, fits, seed, options) for data in sets])
    best = run_parallel([partial(_confidence_sets, data, fits, seed, options) for data in sets])
    return {
        "seed_spread": [row for rows in spread for row in rows],
        "algorithms": list(_algorithms(fit_rows, fits, seed, options)),
        "confidence_sets": [row for rows in best for row in rows],
    }


def _seed_spread(
    data: DomainData, fits: Mapping[str, Fit], seed: int, options: CompareOptions
) -> list[Record]:
    """Mean and spread of the scores of each head that was fitted for several seeds."""
    rows = []
    for head, fit in fits.items():
        for metric in COMPARED_BY:
            statistics = [METRICS[metric](data.labelled(), p[data.row]) for p in fit.proba]
            values = np.array([on_all_rows(statistic, len(data)) for statistic in statistics])
            if len(values) < 2 or not np.isfinite(values).all():
                continue
            rng = stream(f"seeds {data.name} {data.role}", seed)
            mean = bootstrap_interval(statistics, data.group, rng, draws=options.draws)
            rows.append(
                {
                    "head": head,
                    "domain": data.name,
                    "role": data.role,
                    "metric": metric,
                    "seeds": len(values),
                    "sd": float(values.std(ddof=1)),
                    **mean.record(),
                }
            )
    return rows


def _confidence_sets(
    data: DomainData, fits: Mapping[str, Fit], seed: int, options: CompareOptions
) -> list[Record]:
    """The heads that may be the best of a domain, by metric."""
    proba = {name: _mean(fit)[data.row] for name, fit in fits.items()}
    names = list(proba)
    by_metric = confidence_sets(data, proba, seed=seed, draws=options.draws)
    return [
        {
            "domain": data.name,
            "role": data.role,
            "metric": metric,
            "members": [names[k] for k in confidence.members],
            "p": dict(zip(names, confidence.p.tolist(), strict=True)),
            "alpha": confidence.alpha,
        }
        for metric, confidence in by_metric.items()
    ]


def _algorithms(
    data: DomainData, fits: Mapping[str, Fit], seed: int, options: CompareOptions
) -> Iterator[Record]:
    """Every kind of head against the baseline, fitted again on each fold of each division."""
    folds = [
        (repeat, outside)
        for repeat in range(options.repeats)
        for _, outside in deal_folds(data, seed + repeat)
    ]
    label = data.labelled()
    for metric in COMPARED_BY:
        values = {
            name: np.array(
                [score(metric, label[out], fit.out_of_fold[repeat, out]) for repeat, out in folds],
                np.float64,
            )
            for name, fit in fits.items()
            if fit.out_of_fold is not None
        }
        baseline = values.pop(options.baseline, None)
        for head, of_head in values.items():
            if baseline is None or len(folds) < 2 or not np.isfinite(of_head - baseline).all():
                continue
            difference = of_head - baseline
            yield {
                "head": head,
                "metric": metric,
                "difference": float(difference.mean()),
                "splits": len(difference),
                "rope": ROPE,
                **asdict(correlated_t(difference, runs=options.repeats)),
            }
