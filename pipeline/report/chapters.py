"""A chapter of the page for each of the stages audit, heads and finetune."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from pipeline.compare import CompareReport, Row
from pipeline.data.leaks import OK
from pipeline.data.patients import FIT
from pipeline.evaluation.predictions import PROBABILITIES, TRAINED_PROBABILITIES
from pipeline.evaluation.scores import ENSEMBLE, place_in_words, unscored
from pipeline.finetune.methods import METHODS
from pipeline.report.blocks import (
    Block,
    Chapter,
    Grid,
    Heading,
    Items,
    Words,
    grid_of,
    grid_of_text,
    listed,
)
from pipeline.report.compare_text import points_text, sections, with_interval
from pipeline.report.page_figures import pictures
from pipeline.report.records import Records

#: Stands for the backbone of networks that are trained from nothing.
_OWN = "pixels"


def audit_chapter(records: Records) -> Chapter:
    """All findings, the worst first; what is in order is only counted."""
    audit = records.values["audit"]
    fine = audit["counts"][OK]
    blocks: list[Block] = []
    # One advice for a check in several places stands once, below them.
    kind = itemgetter("severity", "check", "advice")
    for (severity, check, advice), found in groupby(audit["findings"], kind):
        if severity != OK:
            blocks += [
                Heading(f"{severity}: {check}"),
                Items(tuple(f"{f['where']}: {f['found']}" for f in found)),
                *([Words(f"{advice}.", "note")] if advice else []),
            ]
    blocks.append(
        Words(f"{fine} checks found nothing. Images and values are in audit.json.", "note")
    )
    if near := audit["near_copies"]:
        blocks.append(Words(f"{len(near)} pairs of near copies: look at near_copies.png."))
    if audit["scores"]:
        blocks.append(
            grid_of(
                "Accuracy of the linear head with and without near copies of fit",
                audit["scores"],
                {
                    "backbone": lambda row: row["backbone"],
                    "role": lambda row: row["everything"]["role"],
                    "all": lambda row: _wilson(row["everything"]),
                    "without": lambda row: _wilson(row["without_near_copies"]),
                },
                left=2,
            )
        )
    return Chapter(name="audit", title="Audit", blocks=tuple(blocks))


def _wilson(score: Mapping[str, Any]) -> str:
    return with_interval(score["accuracy"], score["low"], score["high"])


def heads_chapter(records: Records, report: CompareReport) -> Chapter:
    """The tables of a terminal, backbone by backbone, with their figures."""
    blocks: list[Block] = []
    for name, table in report.tables.items():
        blocks.append(Heading(f"Heads on {name}"))
        for section in sections(report, table):
            if section.question:
                blocks.append(Heading(section.question, 4))
            if section.grid is None:
                blocks.append(Items(section.lines))
                continue
            blocks += [Words(line, "note") for line in section.lines[1:]]
            blocks.append(grid_of_text(section.lines[0], section.grid))
            blocks += [Words(line, "note") for line in section.after]
        blocks += pictures(records.results, "heads", name, _of_heads(table.rows))
    blocks += [Words(text) for text in unscored(report.unlabelled, PROBABILITIES)]
    blocks += [Words(f"{f.head} on {f.backbone} failed: {f.reason}") for f in report.failures]
    blocks += [
        Words(f"{one['head']} on {one['backbone']} has no model file: {one['reason']}", "note")
        for one in report.unsaved
    ]
    blocks.append(Words("Every number, also of single seeds and other metrics: heads.csv.", "note"))
    return Chapter(name="heads", title="Heads on frozen features", blocks=tuple(blocks))


def _of_heads(rows: Sequence[Row]) -> dict[str, str]:
    where = dict.fromkeys(place_in_words(r.domain, r.role) for r in rows if r.role != FIT)
    heads = {row.head.removesuffix(ENSEMBLE) for row in rows}
    return {"what": f"{len(heads)} heads", "where": listed(list(where))}


def finetune_chapter(records: Records) -> Chapter:
    """Scores with intervals, costs, and every method against each baseline."""
    values = records.values["finetune"]
    rows = values["rows"]
    blocks: list[Block] = [
        _scores(rows, "accuracy", "Accuracy, 95 % intervals"),
        _scores(rows, "auroc", "AUROC, 95 % intervals"),
        *(Words(text) for text in unscored(values["unlabelled"], TRAINED_PROBABILITIES)),
        *_pairs(values["pairs"]),
        _costs(rows),
        *_caveats(rows),
    ]
    names = dict.fromkeys(row["backbone"] for row in rows)
    for name in [n for n in names if n != _OWN] or names:
        methods = dict.fromkeys(r["method"] for r in rows if r["backbone"] in (name, _OWN))
        fields = {"what": listed(list(methods)), "where": listed(_places(rows))}
        blocks += pictures(records.results, "finetune", name, fields)
    blocks.append(Words("Curves by epoch and all other metrics: comparison.json.", "note"))
    shown = tuple(b for b in blocks if not isinstance(b, Grid) or b.rows)
    return Chapter(name="finetune", title="Frozen against fine-tuned", blocks=shown)


def _places(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = ((d["domain"], d["role"]) for row in rows for d in row["domains"] if d["role"] != FIT)
    return list(dict.fromkeys(place_in_words(*where) for where in found))


def _scores(rows: Sequence[Mapping[str, Any]], metric: str, caption: str) -> Grid:
    def score(row: Mapping[str, Any], where: str) -> str:
        found = {place_in_words(d["domain"], d["role"]): d["metrics"] for d in row["domains"]}
        one = found.get(where, {}).get(metric)
        return "-" if one is None else with_interval(one["value"], one["low"], one["high"])

    there = [r for r in rows if any(metric in d["metrics"] for d in r["domains"])]
    cells = {w: lambda row, w=w: score(row, w) for w in _places(there)}
    names = _names(rows)
    return grid_of(caption, there, {**names, **cells}, left=len(names))


def _names(rows: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Columns that begin a table of trained models; the seed where there are several."""
    names = {"method": lambda row: row["method"], "backbone": lambda row: row["backbone"]}
    many = len({row["seed"] for row in rows}) > 1
    return names | ({"seed": lambda row: row["seed"]} if many else {})


def _costs(rows: Sequence[Mapping[str, Any]]) -> Grid:
    def rate(row: Mapping[str, Any]) -> str:
        rate = row.get("images_per_second")
        return "-" if rate is None else f"{rate:.1f}"

    names = _names(rows)
    return grid_of(
        "What moved and what it cost; heads: how many could have been trained from the store "
        "in the same time",
        rows,
        {
            **names,
            "moved": lambda row: row["moved"],
            "parameters": lambda row: f"{row['trainable_parameters']:,}",
            "epochs": lambda row: row["epochs"],
            "seconds": lambda row: f"{row['seconds']:.1f}",
            "images/s": rate,
            "heads": lambda row: (row["break_even"] or {}).get("heads", "-"),
            "loss at the end": lambda row: row["convergence"]["trend"] or "-",
        },
        left=len(names) + 1,
    )


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Iterator[Grid]:
    """A table for each baseline, backbone and seed: a row for each method."""
    shown = [pair for pair in pairs if pair["metric"] == "accuracy"]
    for group in dict.fromkeys((p["baseline"], p["backbone"], p["seed"]) for p in shown):
        here = [p for p in shown if (p["baseline"], p["backbone"], p["seed"]) == group]
        cells = {(p["head"], place_in_words(p["domain"], p["role"])): _compared(p) for p in here}
        where = list(dict.fromkeys(place for _, place in cells))
        yield Grid(
            caption=f"Points of accuracy against {group[0]} on the same images, with 95 % "
            f"intervals ({group[1]}, seed {group[2]})",
            columns=(("method", False), *((place, True) for place in where)),
            rows=tuple(
                (head, *(cells.get((head, place), "-") for place in where))
                for head in dict.fromkeys(head for head, _ in cells)
            ),
        )


def _compared(pair: Mapping[str, Any]) -> str:
    points = points_text(pair["difference"], pair["low"], pair["high"])
    return f"{points} {pair['verdict']}"


def _caveats(rows: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    said = []
    if len({row["seed"] for row in rows}) == 1:
        said.append("One seed: a difference between methods may be one between seeds.")
    short = [r["method"] for r in rows if r["epochs"] and r["convergence"]["trend"] is None]
    if short:
        said.append(f"Too few epochs to tell whether the loss had settled: {listed(short)}.")
    said += [
        f"{row['method']}: alpha {row['mixed']['alpha']:g} was chosen on validation, from "
        f"{row['mixed']['from']} to {row['mixed']['to']}."
        for row in rows
        if row["mixed"]
    ]
    said += [
        f"{name}: {METHODS[name].about}"
        for name in dict.fromkeys(r["method"] for r in rows)
        if name in METHODS
    ]
    yield Items(tuple(said))
