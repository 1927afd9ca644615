"""Stage 2: train heads on the stored features of the source and compare them everywhere.

Everything that is fitted or chosen (scaler, parameters, heads) sees the fit split of
the source only; validation and targets are looked at, never learned from.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from cache import disk
from pipeline.errors import MissingFeaturesError, UnknownNameError
from pipeline.heads import HEADS
from pipeline.heads.training import Problem, train_head
from pipeline.joined import JoinedFeatures, load_joined
from pipeline.names import legible
from pipeline.samples import SampleOptions, Samples
from pipeline.scoring import Pair, Place, ensemble, pairs, places_of, scores
from pipeline.splits import FIT
from pipeline.study import Study

_LOG = logging.getLogger(__name__)
HEADS_REPORT = "heads.json"
PROBABILITIES = "probabilities.h5"
#: Row of the mean probability of a head's seeds.
ENSEMBLE = "_ensemble"


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
class Failure:
    """A head that could not be fitted, and why."""

    backbone: str
    head: str
    reason: str


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


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """One fitted head on one backbone, with its probabilities ``(n, K)`` for all samples."""

    head: str
    seed: int
    seconds: float
    proba: NDArray[np.float64]


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
    fitted: dict[str, tuple[Samples, list[_Fitted]]] = {}
    paired: dict[str, tuple[Pair, ...]] = {}
    for choice in study.backbones:
        joined = load_joined(study, choice, options.samples)
        done, failed = _fit_all(joined, names, _seeds(study.seed, options.seeds))
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


def _seeds(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + max(1, count)))


def _fit_all(
    joined: JoinedFeatures, names: Sequence[str], seeds: tuple[int, ...]
) -> tuple[list[_Fitted], list[Failure]]:
    fit = joined.samples.split == FIT
    scaler = StandardScaler().fit(joined.X[fit])
    X = scaler.transform(joined.X)
    s = joined.samples
    problem = Problem(X=X[fit], y=s.label[fit], group=s.group[fit], seeds=seeds)
    done: list[_Fitted] = []
    failures = []
    for name in names:
        try:
            done += _fit(name, problem, X)
        except (ValueError, np.linalg.LinAlgError) as cause:
            _LOG.warning("%s on %s failed: %s", name, joined.backbone, cause)
            failures.append(Failure(backbone=joined.backbone, head=name, reason=str(cause)))
    return done, failures


def _fit(name: str, problem: Problem, X: NDArray[np.float32]) -> list[_Fitted]:
    """A head for each seed and, where there are several, their ensemble."""
    start = time.perf_counter()
    heads = train_head(name, problem)
    each = (time.perf_counter() - start) / len(heads)
    fitted = [
        _Fitted(head=name, seed=seed, seconds=each, proba=head.predict_proba(X))
        for seed, head in zip(problem.seeds, heads, strict=False)
    ]
    if len(fitted) == 1:
        return fitted
    mean = ensemble([one.proba for one in fitted])
    whole = _Fitted(
        head=name + ENSEMBLE, seed=problem.seeds[0], seconds=each * len(heads), proba=mean
    )
    return [*fitted, whole]


def _rows(backbone: str, place: Place, fitted: _Fitted) -> list[Row]:
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


def _paired(places: list[Place], done: list[_Fitted], baseline: str) -> tuple[Pair, ...]:
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
    study: Study, report: CompareReport, fitted: dict[str, tuple[Samples, list[_Fitted]]]
) -> None:
    with h5py.File.in_memory(libver=("earliest", "v108")) as file:
        for backbone, (samples, done) in fitted.items():
            _write_probabilities(file.create_group(backbone), samples, done)
        file.flush()
        disk.publish(study.results / PROBABILITIES, file.id.get_file_image())
    disk.publish(study.results / HEADS_REPORT, json.dumps(asdict(report), indent=1).encode())


def _write_probabilities(group: Any, samples: Samples, done: list[_Fitted]) -> None:
    """Rows of every dataset of a backbone's group describe the same image."""
    group.attrs["classes"] = [legible(name) for name in samples.classes]
    group["key"] = np.frombuffer(b"".join(samples.key), np.uint8).reshape(len(samples), -1)
    group["label"] = samples.label
    for name, values in (("domain", samples.domain), ("split", samples.split)):
        group.create_dataset(name, data=[str(v) for v in values], dtype=h5py.string_dtype())
    for one in done:
        group[f"heads/{one.head}/{one.seed}"] = one.proba.astype(np.float32)
