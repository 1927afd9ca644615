"""What stage 2 found, as records and as files: ``heads.json``, and its rows as ``heads.csv``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cache import disk
from pipeline.compare.fitting import Failure
from pipeline.compare.procedures import Honest, Procedure
from pipeline.compare.seed_spread import SeedSpread
from pipeline.scores.pairing import BestSet, Pair
from pipeline.text.csv import csv_text
from pipeline.text.json_values import plain

HEADS_REPORT = "heads.json"
HEADS_ROWS = "heads.csv"
#: Version of the layout of ``heads.json``; it rises when a field changes its meaning.
SCHEMA = 3


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
        pairs: Every head against the baseline, and against ``best``.
        best_sets: For each domain, the heads that cannot be told from its best.
        honest: What the best is worth; empty if folds were not asked for.
        procedures: Kinds of head over splits; empty if folds were not asked for.
    """

    rows: tuple[Row, ...]
    best: str | None
    pairs: tuple[Pair, ...]
    best_sets: tuple[BestSet, ...]
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
        return self.classes[1] if len(self.classes) == 2 else None  # noqa: PLR2004

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
            {"backbone": name, **asdict(one)}
            for name, table in report.tables.items()
            for one in getattr(table, kind)
        ]
    values["failures"] = [asdict(failure) for failure in report.failures]
    values["unsaved"] = list(report.unsaved)
    found: dict[str, Any] = plain(values)
    return found


#: What the lists of ``heads.json`` are made of, ``rows`` apart: they name their backbone.
_KINDS: Mapping[str, Any] = MappingProxyType(
    {
        "pairs": Pair,
        "best_sets": BestSet,
        "seed_spread": SeedSpread,
        "confusion": Confusion,
        "details": HeadDetail,
        "honest": Honest,
        "procedures": Procedure,
    }
)


def from_json(values: Mapping[str, Any]) -> CompareReport:
    """The report that :func:`to_json` turned into these values.

    Raises:
        KeyError: A list is missing.
        TypeError: An entry has other fields than ours.
    """

    def table(backbone: str) -> Table:
        parts = {
            kind: tuple(
                make(**{name: v for name, v in one.items() if name != "backbone"})
                for one in values[kind]
                if one["backbone"] == backbone
            )
            for kind, make in _KINDS.items()
        }
        rows = tuple(Row(**row) for row in values["rows"] if row["backbone"] == backbone)
        return Table(rows=rows, best=values["best_by_validation"][backbone], **parts)

    return CompareReport(
        study=values["study"],
        classes=tuple(values["classes"]),
        baseline=values["baseline"],
        seeds=tuple(values["seeds"]),
        tables={name: table(name) for name in values["best_by_validation"]},
        failures=tuple(Failure(**one) for one in values["failures"]),
        unsaved=tuple(values["unsaved"]),
        unlabelled=dict(values["unlabelled"]),
        schema=values["schema"],
    )


def write_report(folder: Path, report: CompareReport) -> None:
    """Put both files in place, each whole."""
    text = json.dumps(to_json(report), indent=1, allow_nan=False)
    disk.publish(folder / HEADS_REPORT, text.encode())
    disk.publish(folder / HEADS_ROWS, rows_as_csv(report.rows).encode())


def rows_as_csv(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values with a header; a missing bound is empty."""
    return csv_text([f.name for f in fields(Row)], [[*asdict(row).values()] for row in rows])
