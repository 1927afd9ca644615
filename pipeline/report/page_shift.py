"""The chapter of the shift stage: for each target the headline tables and the caveats."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.report.blocks import Block, Chapter, Grid, Heading, Items, Words, grid_of, listed
from pipeline.report.compare_text import points_text
from pipeline.report.page_figures import pictures
from pipeline.report.records import Records
from pipeline.report.shift_chapters import (
    LABEL_FREE,
    OPTIONAL,
    TABLES,
    TITLES,
    left_out,
    told_apart_in_words,
)
from pipeline.report.shift_subgroups import how_judged, subgroup_parts
from pipeline.report.text_tables import number, p_text
from pipeline.study import SOURCE
from pipeline.words import zero_noise

Row = Mapping[str, Any]
Cell = Callable[[Row], str]


def _plain(name: str) -> Cell:
    return lambda row: str(row[name])


def _number(name: str) -> Cell:
    return lambda row: number(row.get(name))


def _p(name: str) -> Cell:
    return lambda row: p_text(row.get(name))


def _word(name: str) -> Cell:
    return lambda row: "yes" if row[name] else "no"


def _percent(value: str, low: str, high: str) -> Cell:
    """A share in per cent, with its interval."""

    def cell(row: Row) -> str:
        found = (row.get(name) for name in (value, low, high))
        share, *ends = ("" if one is None else f"{100 * zero_noise(one):.1f}" for one in found)
        bounds = f"[{', '.join(ends)}]" if ends[0] else ""
        return f"{share} {bounds}".strip() or "-"

    return cell


def _every(_: Row) -> bool:
    return True


#: Tables of the stage that are shown: which rows of theirs, and which columns. The other
#: tables and columns are in the CSV files.
_SHOWN: Mapping[str, tuple[Callable[[Row], bool], Mapping[str, Cell]]] = MappingProxyType(
    {
        "ng": (
            lambda row: row["kind"] in ("error", "gap"),
            {
                "error or step": lambda row: f"{row['kind']} {row['name']}",
                "% of images, 95 % interval": _percent("estimate", "low", "high"),
                "head refitted": _percent("", "retrain_low", "retrain_high"),
            },
        ),
        "detect": (
            lambda row: row["primary"],
            {
                "test": _plain("name"),
                "statistic": _number("statistic"),
                "p (Holm)": _p("p_holm"),
                "p, halves of the source": _p("p_null_control"),
                "p, planted shift": _p("p_positive_control"),
            },
        ),
        "differences": (
            _every,
            {
                "habit": _plain("name"),
                "sd within classes": lambda row: (
                    f"{row['effect']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
                ),
                "named": _word("named"),
            },
        ),
        "calibration": (
            _every,
            {
                "domain": _plain("domain"),
                "Brier score": _number("brier"),
                "of it miscalibration": _number("miscalibration"),
                "ECE, debiased": _number("ece_debiased"),
            },
        ),
        "operating": (
            lambda row: row["rule"] == "youden",
            {
                "Youden's rule": lambda row: f"{row['way']} on the {row['domain']}",
                "threshold": _number("threshold"),
                "sensitivity, %": _percent("sensitivity", "sensitivity_low", "sensitivity_high"),
                "specificity, %": _percent("specificity", "specificity_low", "specificity_high"),
                "reliable": _word("reliable"),
            },
        ),
        "fixes": (
            lambda row: row["scored_on"] == "target",
            {
                "fix": _plain("name"),
                "accuracy": _number("accuracy"),
                "AUROC": _number("auroc"),
                "points": lambda row: points_text(
                    *(row[f"difference_{name}"] for name in ("estimate", "low", "high"))
                ),
                "p (Holm)": _p("p_holm"),
                "sees target labels": _word("uses_target_labels"),
            },
        ),
    }
)
_NAMES = (
    "s_fit: source, fitted images; s_traindev: source, other patients; t_test: target; "
    "t_oracle_cv: target, by a head trained on it. variance, mismatch, target_hardness and "
    "transfer_gap are the steps between them."
)


def shift_chapter(records: Records) -> Chapter:
    """All targets, then the figures of each backbone."""
    values = records.values["shift"]
    targets = values["targets"]
    blocks: list[Block] = []
    for target in targets:
        blocks += _target(target, values["classes"])
    for target in values["unlabelled"]:
        blocks += _unlabelled(target, values["classes"])
    blocks += [Words(sentence) for sentence in left_out(values)]
    blocks += _trained(values["trained"])
    everyone = [*targets, *values["unlabelled"]]
    for backbone in dict.fromkeys(target["backbone"] for target in everyone):
        blocks += pictures(records.results, "shift", backbone, _places(values, backbone))
    asked = [name for name, rows in OPTIONAL.items() if any(list(rows(t)) for t in targets)]
    files = ", ".join(f"shift_{name}.csv" for name in (*TABLES, *asked))
    blocks.append(Words(f"All tables in full: shift.md, {files}.", "note"))
    return Chapter(name="shift", title="From one hospital to the next", blocks=tuple(blocks))


def _places(values: Row, backbone: str) -> dict[str, str]:
    """What captions of figures call the places that they show."""
    here = [t for t in values["targets"] if t["backbone"] == backbone]
    blind = [t["target"] for t in values["unlabelled"] if t["backbone"] == backbone]
    names = [t["target"] for t in here]
    # Not every domain has a file of attributes.
    domains = {(t["target"], one["domain"]) for t in here for one in t.get("subgroups", ())}
    divided = ["the source"] if any(domain == SOURCE for _, domain in domains) else []
    divided += [name for name in names if (name, "target") in domains]
    return {
        "where": listed(names),
        "everywhere": listed([*names, *blind]),
        "divided": listed(divided),
    }


def _target(target: Row, classes: Sequence[str]) -> Iterator[Block]:
    yield from _seen(target, classes, tuple(_SHOWN))
    yield from _subgroups(target)
    unknown = tuple(
        f"{s}: not identifiable, {why}" for s, why in target["not_identifiable"].items()
    )
    yield Heading("Caveats", 4)
    yield Items((*unknown, *target["caveats"], target["forecast"]["warning"]))


def _unlabelled(target: Row, classes: Sequence[str]) -> Iterator[Block]:
    yield from _seen(target, classes, [name for name in LABEL_FREE if name in _SHOWN])
    yield Words(f"Not given, because it needs labels: {listed(target['needs_labels'])}.")
    yield Heading("Caveats", 4)
    yield Items((*target["caveats"], target["forecast"]["warning"]))


def _seen(target: Row, classes: Sequence[str], tables: Sequence[str]) -> Iterator[Block]:
    """What can be told from the features, and those of the tables that are shown."""
    yield Heading(f"{target['target']} ({target['backbone']})")
    yield Words(told_apart_in_words(target["source_prediction"], classes))
    for name in tables:
        wanted, columns = _SHOWN[name]
        rows = [row for row in TABLES[name](target) if wanted(row)]
        if rows:
            yield grid_of(f"{TITLES[name]}: {target['target']}", rows, columns)
        if rows and name == "ng":
            yield Words(_NAMES, "note")


def _subgroups(target: Row) -> Iterator[Block]:
    """A table for each attribute and domain, and what follows from it."""
    parts = subgroup_parts(target)
    if parts:
        yield Heading(f"Subgroups: {target['target']}", 4)
        yield Words(how_judged(target), "note")
    for part in parts:
        domain = SOURCE if part.domain == SOURCE else target["target"]
        yield Grid(
            caption=f"Subgroups by {part.attribute}: {domain}",
            columns=tuple((name, number > 0) for number, name in enumerate(part.columns)),
            rows=part.rows,
        )
        yield Items(part.sentences)


def _trained(rows: list[Row]) -> Iterator[Grid]:
    if rows:
        yield grid_of(
            "The same loss of networks that were trained on these images",
            [{**row, **row["total"]} for row in rows],
            {
                "method": _plain("method"),
                "backbone": _plain("backbone"),
                "target": _plain("target"),
                "source": _number("source_accuracy"),
                "on the target": _number("target_accuracy"),
                "points lost": _percent("estimate", "low", "high"),
            },
            left=3,
        )
