"""How a page begins: what was studied, and the answer in short."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from pipeline.compare import CompareReport
from pipeline.data.leaks import LEAK, OK, SEVERITIES, WARNING
from pipeline.data.patients import FIT
from pipeline.evaluation.compare_heads import Pair
from pipeline.evaluation.scores import place_in_words
from pipeline.finetune.methods import BASELINE
from pipeline.report.blocks import Block, Chapter, Grid, Heading, Items, Words, grid_of
from pipeline.report.compare_text import head_name, honest_lines, verdicts, with_interval
from pipeline.report.records import STAGES, Records, places
from pipeline.report.shift_chapters import left_out
from pipeline.words import counted

#: A verdict has a sentence for each of its rules.
_SENTENCE_ENDS = re.compile(r"(?<=\.) (?=[A-Z0-9])")


def study_chapter(records: Records) -> Chapter:
    """Domains, backbones, and which record says what of them since when."""
    values = records.values
    classes: list[str] = next((v["classes"] for v in values.values() if "classes" in v), [])
    positive = f"; positive class: {classes[1]}" if len(classes) == 2 else ""
    blocks: list[Block] = []
    if classes:
        blocks.append(Words(f"Classes: {', '.join(classes)}{positive}."))
    if found := places(records):
        blocks.append(_domains(found))
    if "features" in values:
        blocks.append(_backbones(values["features"]["backbones"]))
    blocks.append(_files(records))
    if records.missing:
        blocks.append(Items(records.missing))
    return Chapter(name="study", title="What was studied", blocks=tuple(blocks))


def _domains(found: dict[tuple[str, str], tuple[int, int | str]]) -> Grid:
    return grid_of(
        "Domains; patients are counted within each",
        found.items(),
        {
            "domain": lambda row: row[0][0],
            "role": lambda row: row[0][1],
            "images": lambda row: row[1][0],
            "patients": lambda row: row[1][1],
        },
        left=2,
    )


def _backbones(rows: Sequence[dict[str, Any]]) -> Grid:
    return grid_of(
        "Backbones; a fingerprint stands for all that determines the features",
        rows,
        {
            "backbone": lambda row: row["backbone"],
            "fingerprint": lambda row: row["fingerprint"][:16],
            "features": lambda row: row["dim"],
            "images": lambda row: row["images_in"],
            "skipped": lambda row: row["skipped"],
        },
        left=2,
    )


def _files(records: Records) -> Grid:
    def written(row: tuple[str, datetime]) -> str:
        return f"{row[1]:%Y-%m-%d %H:%M}"

    return grid_of(
        f"Records below results/{records.results.name}, with the time of their files (UTC)",
        records.written.items(),
        {
            "stage": lambda row: row[0],
            "record": lambda row: STAGES[row[0]].file,
            "written": written,
            "layout": lambda row: STAGES[row[0]].layout or "-",
        },
        left=2,
    )


def answer_chapter(records: Records, heads: CompareReport | None) -> Chapter:
    """What the records allow to be said, without a table but one."""
    values = records.values
    blocks: list[Block] = []
    if "audit" in values:
        blocks += _leaks(values["audit"])
    if "shift" in values:
        blocks.append(Heading("Does a head hold in another hospital?"))
        blocks += _shift(values["shift"])
    if heads is not None:
        blocks += [Heading("What is the best head worth?"), *_heads(heads)]
    if "finetune" in values:
        blocks += [Heading("Frozen or fine-tuned?"), *_finetune(values["finetune"])]
    if "audit" in values:
        blocks += [Heading("Can the numbers be believed?"), _audit(values["audit"])]
    if not blocks:
        blocks.append(Words("Nothing yet: features alone answer no question."))
    return Chapter(name="answer", title="The answer in short", blocks=tuple(blocks))


def _leaks(audit: dict[str, Any]) -> Iterator[Block]:
    """First of all, where there are any."""
    leaks = [
        f"{f['check']} ({f['where']}): {f['found']}. {f['advice']}."
        for f in audit["findings"]
        if f["severity"] == LEAK
    ]
    if leaks:
        yield Words(
            "The audit found leaks: the numbers on this page are not to be believed.", "warning"
        )
        yield Items(tuple(leaks))


def _audit(audit: dict[str, Any]) -> Words:
    counts = audit["counts"]
    where: dict[str, list[str]] = {}
    for finding in audit["findings"]:
        if finding["severity"] == WARNING:
            where.setdefault(finding["check"], []).append(finding["where"])
    warnings = "; ".join(f"{check} ({', '.join(names)})" for check, names in where.items())
    summary = ", ".join(
        counted(counts[s], s, OK if s == OK else "") for s in SEVERITIES if counts[s]
    )
    none = "" if counts[LEAK] else "No leak. "
    more = f" Warnings: {warnings}." if warnings else ""
    return Words(f"{none}The audit of {counted(audit['images'], 'image')}: {summary}.{more}")


def _heads(report: CompareReport) -> Iterator[Block]:
    for name, table in report.tables.items():
        lines = honest_lines(table)
        if lines:
            yield Words(f"{name}, on new patients of the source (out of fold, BBC-CV):")
            yield Items(tuple(lines))
        else:
            yield Words(
                f"{name}: what the best is honestly worth was not asked; the table shows what "
                "looked best, which is too good. headrace heads STUDY --repeats 1 asks.",
                "note",
            )
    yield from _best(report)


def _best(report: CompareReport) -> Iterator[Grid]:
    """The head that validation chose, where it was not chosen: on the targets."""
    rows = {
        (name, row.domain, row.role): row
        for name, table in report.tables.items()
        for row in table.rows
        if row.head == table.best and row.metric == "accuracy" and row.role != FIT
    }
    domains = dict.fromkeys((domain, role) for _, domain, role in rows)
    chosen = {name: table.best for name, table in report.tables.items() if table.best}

    def cell(name: str, place: tuple[str, str]) -> str:
        row = rows.get((name, *place))
        return "-" if row is None else with_interval(row.value, row.low, row.high)

    if chosen:
        yield Grid(
            caption="Accuracy of the head with the best validation accuracy, 95 % intervals",
            columns=(
                ("backbone", False),
                ("head", False),
                *((place_in_words(*place), True) for place in domains),
            ),
            rows=tuple(
                (name, head_name(head), *(cell(name, place) for place in domains))
                for name, head in chosen.items()
            ),
        )


def _finetune(values: dict[str, Any]) -> Iterator[Block]:
    """Each place against the frozen probe, in words."""
    by_place: dict[tuple[str, str, str], list[Pair]] = {}
    for one in values["pairs"]:
        where = place_in_words(one["domain"], one["role"])
        if one["baseline"] == BASELINE and one["metric"] == "accuracy":
            place = (one["backbone"], f"seed {one['seed']}", where)
            fields = {k: v for k, v in one.items() if k not in ("backbone", "seed")}
            by_place.setdefault(place, []).append(Pair(**fields))
    lines = [
        f"{', '.join(place)}: {verdicts('accuracy', pairs)}" for place, pairs in by_place.items()
    ]
    if not lines:
        yield Words(f"Nothing was compared with the frozen probe {BASELINE}.")
        return
    differs = {p.verdict for pairs in by_place.values() for p in pairs} & {"better", "worse"}
    if not differs:
        yield Words(f"No method is shown to differ from the frozen probe {BASELINE} anywhere.")
    yield Items(tuple(lines))


def _shift(values: dict[str, Any]) -> Iterator[Block]:
    """The verdict, sentence by sentence, and what to do."""
    everyone = [*values["targets"], *values["unlabelled"]]
    many = len({target["backbone"] for target in everyone}) > 1
    for target in values["targets"]:
        verdict = target["verdict"]
        first, *others = _SENTENCE_ENDS.split(verdict["text"])
        yield Words(f"{target['backbone']}, {first}" if many else first, "lead")
        yield Items((*others, target["differences"]["said"], *verdict["advice"]))
    for target in values["unlabelled"]:
        yield Words(f"{target['backbone']}, {target['said']}" if many else target["said"])
    yield from (Words(sentence) for sentence in left_out(values))
