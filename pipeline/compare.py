"""Stage 2: train heads on the stored features of the source and compare them everywhere.

Everything that is fitted or chosen (scaler, parameters, heads) sees the fit split of
the source only; validation and targets are looked at, never learned from.
"""

import json
from dataclasses import asdict, dataclass, field

import numpy as np

from cache import disk
from pipeline.errors import MissingFeaturesError, UnknownNameError
from pipeline.fitting import ENSEMBLE, Failure, Fitted, fit_all
from pipeline.heads import HEADS
from pipeline.joined import load_joined
from pipeline.models.saving import save_heads
from pipeline.predictions import predictions_of, write_predictions
from pipeline.samples import SampleOptions, Samples
from pipeline.scoring import Pair, Place, pairs, places_of, scores
from pipeline.splits import FIT
from pipeline.study import Study

HEADS_REPORT = "heads.json"
PROBABILITIES = "probabilities.h5"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How stage 2 runs.

    Attributes:
        heads: Names from ``HEADS``; None takes all.
        seeds: How many seeds of each seeded head.
        baseline: The head that the others are compared with.
        samples: See :class:`pipeline.samples.SampleOptions`.
    """

    heads: tuple[str, ...] | None = None
    seeds: int = 10
    baseline: str = "linear"
    samples: SampleOptions = field(default_factory=SampleOptions)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number: how one head does by one metric on one domain.

    Attributes:
        role: ``fit``, ``validation`` or ``target``.
        seconds: Time to fit the head, its share of what was fitted together.
        low: Lower bound of the 95 % interval; None where there is none.
        high: Upper bound.
        n: Images.
        groups: Patients.
        ci_method: How the interval was made.
    """

    backbone: str
    head: str
    seed: int
    domain: str
    role: str
    metric: str
    value: float
    seconds: float
    low: float | None
    high: float | None
    n: int
    groups: int
    ci_method: str


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """All numbers of one comparison, tidy.

    Attributes:
        classes: In label order; with two classes the second is the positive one.
        pairs: By backbone, every head against the baseline on the same images.
    """

    study: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: dict[str, tuple[Pair, ...]]
    failures: tuple[Failure, ...]


def compare(study: Study, options: CompareOptions | None = None) -> CompareReport:
    """Fit heads on every backbone of a study and score them on every domain.

    Returns:
        The report; also written to ``results/<study>/heads.json``, and the probability
        of each class for each image to ``probabilities.h5`` beside it.

    Raises:
        UnknownNameError: A head is in no table.
        MissingFeaturesError: Stage 1 has not been run.
    """
    options = options or CompareOptions()
    names = _known(options)
    disk.probe(study.results)
    rows: list[Row] = []
    failures: list[Failure] = []
    fitted: dict[str, tuple[Samples, list[Fitted]]] = {}
    paired: dict[str, tuple[Pair, ...]] = {}
    seeds = tuple(range(study.seed, study.seed + max(1, options.seeds)))
    for choice in study.backbones:
        joined = load_joined(study, choice, options.samples)
        done, failed = fit_all(joined, names, seeds)
        s = joined.samples
        places = places_of(s.domain, s.split, s.label, s.group, study.seed)
        rows += [row for place in places for one in done for row in _rows(choice.name, place, one)]
        failures += failed
        paired[choice.name] = _paired(places, done, options.baseline)
        fitted[choice.name] = (joined.samples, done)
    if not rows:
        raise MissingFeaturesError(
            "no head could be fitted: " + "; ".join(f"{f.head}: {f.reason}" for f in failures)
        )
    report = CompareReport(
        study=study.name,
        classes=joined.samples.classes,
        rows=tuple(rows),
        pairs=paired,
        failures=tuple(failures),
    )
    _write(study, report, fitted)
    return report


def _known(options: CompareOptions) -> tuple[str, ...]:
    """The heads asked for; an unknown name must show before any work."""
    names = tuple(HEADS) if options.heads is None else tuple(dict.fromkeys(options.heads))
    for name in (*names, options.baseline):
        if name not in HEADS:
            raise UnknownNameError("head", name, HEADS)
    return names


def _rows(backbone: str, place: Place, fitted: Fitted) -> list[Row]:
    return [
        Row(
            backbone=backbone,
            head=fitted.head,
            seed=fitted.seed,
            domain=place.domain,
            role=place.role,
            metric=metric,
            value=found.estimate,
            seconds=round(fitted.seconds, 4),
            low=found.low if np.isfinite(found.low) else None,
            high=found.high if np.isfinite(found.high) else None,
            n=found.n,
            groups=found.groups,
            ci_method=found.method,
        )
        for metric, found in scores(place, fitted.proba[place.rows])
    ]


def _paired(places: list[Place], done: list[Fitted], baseline: str) -> tuple[Pair, ...]:
    """Each head (the ensemble where it has seeds) against the baseline, off the fit split."""
    last = {one.head.removesuffix(ENSEMBLE): one for one in done}
    if baseline not in last:
        return ()
    return tuple(
        pair
        for place in places
        if place.role != FIT
        for pair in pairs(
            place, {one.head: one.proba[place.rows] for one in last.values()}, last[baseline].head
        )
    )


def _write(
    study: Study, report: CompareReport, fitted: dict[str, tuple[Samples, list[Fitted]]]
) -> None:
    kept = {
        backbone: predictions_of(samples, {(one.head, one.seed): one.proba for one in done})
        for backbone, (samples, done) in fitted.items()
    }
    write_predictions(study.results / PROBABILITIES, kept)
    values = asdict(report) | {"unsaved": save_heads(study, fitted)}
    disk.publish(study.results / HEADS_REPORT, json.dumps(values, indent=1).encode())
