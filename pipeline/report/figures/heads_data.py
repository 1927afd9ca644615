"""What stage 2's files say, put together for its figures: a head is one entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.compare import HEADS_REPORT
from pipeline.data.patients import FIT
from pipeline.evaluation.predictions import PROBABILITIES, Predictions, read_predictions
from pipeline.evaluation.scores import ENSEMBLE
from pipeline.report.figures.ranked import Entry, Where, is_prior
from pipeline.report.figures.reports import read_report
from pipeline.report.figures.style import NothingToDrawError
from pipeline.study import SOURCE
from pipeline.words import printable


@dataclass(frozen=True, kw_only=True)
class HeadsData:
    """All that stage 2 found on one backbone.

    Attributes:
        entries: Best validation accuracy first.
        places: Where heads are judged, the fit split left out; validation first.
        details: Of single heads, with ``curves`` and ``path`` where they have them.
        predictions: None where the file is not there.
    """

    backbone: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    places: tuple[Where, ...]
    details: tuple[Mapping[str, Any], ...]
    predictions: Predictions | None

    def best(self, count: int) -> list[Entry]:
        """The first entries, without the head that only knows the classes' shares."""
        return [entry for entry in self.entries if not is_prior(entry)][:count]

    def asked(self, where: Where, entry: Entry) -> tuple[NDArray[Any], NDArray[Any]]:
        """Labels (n,) and probabilities (n, K) of one entry at one place.

        Raises:
            NothingToDrawError: They were not kept.
        """
        kept = self.predictions
        if kept is None or (entry.head, entry.seed) not in kept.proba:
            raise NothingToDrawError(f"{PROBABILITIES} holds no probabilities of {entry.name}")
        rows = (kept.domain == where[0]) & (kept.split == where[1])
        return kept.label[rows], kept.proba[entry.head, entry.seed][rows]


def read_heads(results: Path) -> list[HeadsData]:
    """By backbone, in the order of the file.

    Raises:
        MissingPredictionsError: Stage 2 has not been run.
    """
    report = read_report(results / HEADS_REPORT, "heads")
    kept = read_predictions(results / PROBABILITIES)
    names = dict.fromkeys(row["backbone"] for row in report["rows"])
    return [heads_data(report, name, kept.get(name)) for name in names]


def heads_data(
    report: Mapping[str, Any], backbone: str, predictions: Predictions | None
) -> HeadsData:
    """One backbone out of the values of ``heads.json``."""
    rows = [row for row in report["rows"] if row["backbone"] == backbone]
    places = dict.fromkeys((row["domain"], row["role"]) for row in rows if row["role"] != FIT)
    by_head: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_head.setdefault(row["head"].removesuffix(ENSEMBLE), []).append(row)
    entries = [_entry(name, of_head) for name, of_head in by_head.items()]
    return HeadsData(
        backbone=backbone,
        classes=tuple(printable(name) for name in report["classes"]),
        entries=tuple(sorted(entries, key=lambda e: -_rank_value(e, next(iter(places), None)))),
        places=tuple(sorted(places, key=lambda place: place[0] != SOURCE)),
        details=tuple(d for d in report.get("details", ()) if d["backbone"] == backbone),
        predictions=predictions,
    )


def _rank_value(entry: Entry, where: Where | None) -> float:
    return (
        entry.scores[where, "accuracy"][0] if where and (where, "accuracy") in entry.scores else 0.0
    )


def _entry(name: str, rows: list[Mapping[str, Any]]) -> Entry:
    singles = [row for row in rows if not row["head"].endswith(ENSEMBLE)]
    whole = [row for row in rows if row["head"].endswith(ENSEMBLE)]
    seeds = sorted({row["seed"] for row in singles})
    chosen = whole or [row for row in singles if row["seed"] == seeds[0]]
    many: dict[tuple[Where, str], tuple[float, ...]] = {}
    for row in singles if whole else ():
        place = ((row["domain"], row["role"]), row["metric"])
        many[place] = (*many.get(place, ()), row["value"])
    return Entry(
        head=chosen[0]["head"],
        name=f"{name} ({len(seeds)} seeds)" if whole else name,
        seed=chosen[0]["seed"],
        seconds=chosen[0]["seconds"],
        scores={
            ((row["domain"], row["role"]), row["metric"]): (row["value"], row["low"], row["high"])
            for row in chosen
        },
        seeds=many,
    )
