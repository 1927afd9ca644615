"""Numbers of all trained models of a study: scores with intervals, costs, paired tests.

Everything here is derived from the models that are kept and can be made again from them,
so a run of one method leaves the results of earlier ones where they are.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.data.patients import FIT, VALIDATION
from pipeline.data.samples import Samples
from pipeline.errors import MissingPredictionsError
from pipeline.evaluation.compare_heads import Pair, pairs
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import score
from pipeline.evaluation.predictions import PROBABILITIES, Predictions, read_predictions
from pipeline.evaluation.scores import ENSEMBLE, Place, places_of, scores
from pipeline.finetune.methods import BASELINE, METHODS
from pipeline.finetune.runs import Proba, Record

_LOG = logging.getLogger(__name__)
#: Head of stage 2 that has the form of the heads here; break-even counts these.
HEAD = "mlp"
#: Before the name of a head of stage 2, where it is compared with a method.
STAGE_2 = "heads/"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of one model on one domain, with its 95 % interval where there is one."""

    value: float
    low: float | None
    high: float | None
    ci_method: str


@dataclass(frozen=True, kw_only=True)
class Domain:
    """How one model does on one domain.

    Attributes:
        domain: ``source`` or the target's name.
        role: ``fit``, ``validation`` or ``target``.
        n: Images.
        groups: Patients.
        metrics: By the names of ``pipeline.evaluation.metrics.METRICS``.
    """

    domain: str
    role: str
    n: int
    groups: int
    metrics: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trained model: what it can and what it cost.

    Attributes:
        record: See :class:`pipeline.finetune.runs.Record`.
        seconds_per_epoch: Of the training steps.
        domains: In the study's order, the fit split first.
        break_even: How many heads are trained from the store in the time of this
            training; ``heads``, ``head_seconds`` and where the seconds are from. None
            for the baseline, and where nobody has trained such a head yet.
    """

    record: Record
    seconds_per_epoch: float | None
    domains: tuple[Domain, ...]
    break_even: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One method against a baseline on the same images; see ``scoring.Pair``."""

    backbone: str
    seed: int
    pair: Pair


@dataclass(frozen=True, kw_only=True)
class Model:
    """A record with its probabilities of all samples, shape ``(n, K)``."""

    record: Record
    proba: Proba


def rows_of(samples: Samples, models: Sequence[Model], results: Path, seed: int) -> list[Row]:
    """Score every model on every domain."""
    places = places_of(samples.domain, samples.split, samples.label, samples.group, seed)
    numbered = dict(enumerate(models))
    found = [scores(p, {i: m.proba[p.rows] for i, m in numbered.items()}) for p in places]
    return [
        _row(model.record, places, [at_place[i] for at_place in found], results)
        for i, model in numbered.items()
    ]


def _row(
    r: Record, places: Sequence[Place], found: Sequence[Mapping[str, Interval]], results: Path
) -> Row:
    return Row(
        record=r,
        seconds_per_epoch=r.seconds / r.epochs if r.epochs else None,
        domains=tuple(
            Domain(
                domain=place.domain,
                role=place.role,
                n=len(place.label),
                groups=place.patients,
                metrics={m: _score(interval) for m, interval in metrics.items()},
            )
            for place, metrics in zip(places, found, strict=True)
        ),
        break_even=_break_even(r, results),
    )


def _score(found: Interval) -> Score:
    return Score(
        value=found.estimate,
        low=found.low if np.isfinite(found.low) else None,
        high=found.high if np.isfinite(found.high) else None,
        ci_method=found.method,
    )


def _break_even(record: Record, results: Path) -> Mapping[str, Any] | None:
    each = _seconds_of_a_head(results, record.backbone)
    if record.method == BASELINE or each is None or each <= 0:
        return None
    return {"heads": int(record.seconds / each), "head": HEAD, "head_seconds": each}


def _seconds_of_a_head(results: Path, backbone: str) -> float | None:
    """As stage 2 measured it; None where it has not run. Networks of their own have none."""
    try:
        report = json.loads(disk.read_all(results / "heads.json"))
        found = [
            float(row["seconds"])
            for row in report["rows"]
            if row["head"] == HEAD and row["backbone"] == backbone
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(np.mean(found)) if found else None


def pairs_of(
    tables: Mapping[str, Samples], models: Sequence[Model], results: Path, seed: int
) -> list[PairRow]:
    """Every model against ``lp``, and against the best head of stage 2, off the fit split.

    Models are compared within a backbone and a seed; networks of their own with ``lp`` of
    the first backbone. The head of stage 2 is the one with the best validation accuracy;
    targets choose nothing.
    """
    found = []
    for backbone, number, proba in _families(models):
        s = tables[backbone]
        places = places_of(s.domain, s.split, s.label, s.group, seed)
        baselines = {BASELINE: proba[BASELINE]} if BASELINE in proba else {}
        for name, base in {**baselines, **best_head(results, backbone, s)}.items():
            everyone = {**{k: p for k, p in proba.items() if k != name}, name: base}
            found += [
                PairRow(backbone=backbone, seed=number, pair=pair)
                for place in places
                if place.role != FIT
                for pair in pairs(place, {k: p[place.rows] for k, p in everyone.items()}, name)
            ]
    return found


def _families(models: Sequence[Model]) -> Iterator[tuple[str, int, dict[str, Proba]]]:
    """Backbone, seed, and probabilities by method: what is compared with each other."""
    own = [m for m in models if not METHODS[m.record.method].pretrained]
    named = dict.fromkeys(m.record.backbone for m in models if m not in own)
    for backbone in named or dict.fromkeys(m.record.backbone for m in own):
        guests = own if backbone == next(iter(named), backbone) else []
        family = [m for m in models if m.record.backbone == backbone or m in guests]
        for seed in dict.fromkeys(m.record.seed for m in family):
            yield (
                backbone,
                seed,
                {m.record.method: m.proba for m in family if m.record.seed == seed},
            )


def best_head(results: Path, backbone: str, samples: Samples) -> dict[str, Proba]:
    """The head of stage 2 with the best validation accuracy, asked about these samples.

    Rows are joined by content key. A head that was trained with several seeds stands
    there as their ensemble. Empty where stage 2 has not run on all of these images, or has
    fitted its heads to others: a network that saw 40 images is not to be judged by a head
    that saw 400.
    """
    predictions = _of_stage_2(results).get(backbone)
    if predictions is None or _fitted_to_others(predictions, samples):
        return {}
    row_of = {key.tobytes(): row for row, key in enumerate(predictions.key)}
    if not all(key in row_of for key in samples.key):
        _LOG.info("%s: stage 2 has not seen all of these images: not compared", backbone)
        return {}
    name, proba = _best(predictions)
    rows = [row_of[key] for key in samples.key]
    return {STAGE_2 + name: proba[rows].astype(np.float64)}


def heads_of_other_images(results: Path, tables: Mapping[str, Samples]) -> tuple[str, ...]:
    """Backbones whose heads of stage 2 were fitted to other images than these.

    Args:
        results: Of the study.
        tables: Samples that methods are trained on, by backbone.
    """
    kept = _of_stage_2(results)
    return tuple(
        name
        for name, samples in tables.items()
        if name in kept and _fitted_to_others(kept[name], samples)
    )


def _of_stage_2(results: Path) -> Mapping[str, Predictions]:
    """By backbone; empty where it has not run."""
    try:
        return read_predictions(results / PROBABILITIES)
    except MissingPredictionsError:
        return {}


def _fitted_to_others(predictions: Predictions, samples: Samples) -> bool:
    theirs = {key.tobytes() for key in predictions.key[predictions.split == FIT]}
    ours = {key for key, split in zip(samples.key, samples.split, strict=True) if split == FIT}
    return theirs != ours


def _best(predictions: Predictions) -> tuple[str, NDArray[np.float64]]:
    names = {name for name, _ in predictions.proba}
    singles = {
        name: proba
        for (name, _), proba in predictions.proba.items()
        if name + ENSEMBLE not in names
    }
    looked = predictions.split == VALIDATION
    label = predictions.label[looked]
    best = max(singles, key=lambda name: score("accuracy", label, singles[name][looked]) or 0.0)
    return best, singles[best]


def to_json(row: Row) -> dict[str, Any]:
    """One flat table row: the record's fields and what was derived from it."""
    values = asdict(row)
    record = values.pop("record")
    del record["identity"], record["samples"]
    settings = {
        key.removeprefix("settings."): value
        for key, value in row.record.identity.items()
        if key.startswith("settings.")
    }
    return {**record, "settings": settings, **values}
