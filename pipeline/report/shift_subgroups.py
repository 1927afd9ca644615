"""Subgroups as rows for a spreadsheet, as a chapter to read, and as a few lines to print.

Everything is made from the values of ``shift.json``.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pipeline.data.attributes import UNKNOWN
from pipeline.report.text_tables import WIDTH, grid, new_table, number, render
from pipeline.shift.subgroups import FEW_IMAGES, FEW_PATIENTS
from pipeline.words import in_cell, in_markdown, printable

Record = Mapping[str, Any]
#: Metrics in the order of columns, as they are printed.
METRICS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "accuracy",
        "auroc": "AUROC",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
    }
)


def subgroup_rows(target: Record) -> Iterable[dict[str, Any]]:
    """A row for each domain, attribute, group and metric; too few have a reason.

    Args:
        target: An entry of ``targets``.
    """
    for table in target.get("subgroups", ()):
        for group in table["groups"]:
            row = {
                "domain": table["domain"],
                "attribute": table["attribute"],
                "group": group["name"],
                "images": group["images"],
                "patients": group["patients"],
            }
            if group["few"]:
                yield {**row, "reason": group["few"]}
            if group["prevalence"]:
                yield {**row, "metric": "prevalence", **_numbers(group["prevalence"])}
            for metric, value in group["metrics"].items():
                worst = table["worst"].get(metric) == group["name"]
                yield {**row, "metric": metric, **_numbers(value), "worst": worst}
            for metric, why in group["missing"].items():
                yield {**row, "metric": metric, "reason": why}


def _numbers(value: Record) -> dict[str, Any]:
    once, rest = value["simultaneous"] or (None, None), value["rest"] or {}
    return {
        **{name: value[name] for name in ("n", "estimate", "low", "high")},
        "simultaneous_low": once[0],
        "simultaneous_high": once[1],
        "against_rest": rest.get("estimate"),
        "against_rest_low": rest.get("low"),
        "against_rest_high": rest.get("high"),
        "below_rest": rest.get("below"),
    }


@dataclass(frozen=True, kw_only=True)
class Part:
    """One attribute in one domain, as a table and what follows from it; names are as they are.

    Attributes:
        attribute: What the groups are of.
        domain: ``source`` or ``target``.
        columns: Of the table; the first names the group.
        rows: A cell for each column.
        sentences: The worst group by each metric, or why there is none.
    """

    attribute: str
    domain: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]


def subgroup_parts(target: Record) -> list[Part]:
    """What a reader is shown, on whatever page; none where the study looks at no subgroups.

    Args:
        target: An entry of ``targets``.
    """
    return [_part(table) for table in target.get("subgroups", ())]


def how_judged(target: Record) -> str:
    """How the numbers of the subgroups are to be read; the target must have some."""
    tables: Sequence[Record] = target["subgroups"]
    threshold = tables[0]["threshold"]
    at = (
        f"Sensitivity and specificity are at the source's threshold {threshold:.3f} (Youden)."
        if threshold is not None
        else "With more than two classes there are accuracy and macro AUROC alone."
    )
    judged = sum(len(table["worst"]) for table in tables)
    wrong = (
        f" Each attribute and metric is judged by itself: of these {judged} judgements one in "
        "twenty may be wrong."
    )
    return (
        "Intervals are 95 %, by patient: in a table those of each group alone, in a sentence those "
        "that hold for all groups at once, so that the worst may be picked. "
        f"{at} Groups with fewer than {FEW_IMAGES} images or {FEW_PATIENTS} patients have no "
        f"numbers; images without a value are {UNKNOWN} and are never the worst group. The rest "
        "is all other images of the domain, those of groups without numbers too."
        f"{wrong if judged else ''}"
    )


def subgroup_chapter(target: Record) -> list[str]:
    """Lines of Markdown; none where the study looks at no subgroups.

    Args:
        target: An entry of ``targets``.
    """
    parts = subgroup_parts(target)
    lines = ["", "### Subgroups", "", how_judged(target)] if parts else []
    for part in parts:
        lines += ["", f"#### {in_markdown(part.attribute)}, {part.domain}", ""]
        lines += grid(part.columns, [[in_cell(cell) for cell in row] for row in part.rows])
        lines += ["", *(f"- {in_markdown(said)}" for said in part.sentences)]
    return lines


def _part(table: Record) -> Part:
    groups = [group for group in table["groups"] if group["images"]]
    metrics = [name for name in METRICS if any(name in group["metrics"] for group in groups)]
    shares = ["prevalence"] if any(group["prevalence"] for group in groups) else []
    return Part(
        attribute=printable(table["attribute"]),
        domain=table["domain"],
        columns=("group", "images", "patients", *shares, *(METRICS[name] for name in metrics)),
        rows=tuple(
            (
                printable(group["name"]),
                str(group["images"]),
                str(group["patients"]),
                *(_cell(group[name]) for name in shares),
                *(_cell(group["metrics"].get(name)) for name in metrics),
            )
            for group in groups
        ),
        sentences=tuple(_sentences(table)),
    )


def _cell(value: Record | None) -> str:
    if value is None:
        return "too few"
    return f"{value['estimate']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _sentences(table: Record) -> Iterable[str]:
    by_name = _metrics(table)
    if not table["worst"]:
        yield _unranked(table)
    for metric, worst in table["worst"].items():
        value = by_name[worst][metric]
        low, high = value["simultaneous"]
        against = "; ".join(filter(None, [_against(value["rest"]), _above(table, metric)]))
        yield (
            f"{METRICS[metric]}: worst in {printable(worst)} with "
            f"{value['estimate']:.3f} ({low:.3f} to {high:.3f}); {against}"
        )
        if others := [
            printable(name)
            for name, values in by_name.items()
            if name != worst and metric in values and (values[metric]["rest"] or {}).get("below")
        ]:
            yield f"{METRICS[metric]}: also below the rest: {', '.join(others)}"


def _metrics(table: Record) -> dict[str, Record]:
    """By group."""
    return {group["name"]: group["metrics"] for group in table["groups"]}


def _unranked(table: Record) -> str:
    """Why an attribute has no worst group, by any metric."""
    known = [group for group in table["groups"] if group["images"] and group["name"] != UNKNOWN]
    large = [group for group in known if not group["few"]]
    if not large:
        return "no group is large enough to have numbers"
    name = printable(large[0]["name"])
    if len(known) == 1:
        return f"there is only one group, {name}: nothing to compare it with"
    return f"all groups but {name} are too few: nothing to compare it with"


def _against(rest: Record | None) -> str:
    if rest is None:
        return "the rest is too few to compare with"
    verdict = "shown to be below the rest" if rest["below"] else "not shown to be below the rest"
    return (
        f"{verdict} ({100 * rest['estimate']:+.1f} points, {100 * rest['low']:+.1f} to "
        f"{100 * rest['high']:+.1f})"
    )


def _above(table: Record, metric: str) -> str:
    """How the worst group can lie above all other images, where it does; else nothing."""
    rest = _metrics(table)[table["worst"][metric]][metric]["rest"]
    if rest is None or rest["estimate"] <= 0:
        return ""
    unranked = [
        printable(group["name"])
        for group in table["groups"]
        if group["images"] and (group["name"] == UNKNOWN or metric not in group["metrics"])
    ]
    if unranked:
        return (
            f"the rest includes images that are in no ranked group ({', '.join(unranked)}), so "
            "the worst of the ranked can lie above it"
        )
    return f"the {METRICS[metric]} of several groups together can be below that of each"


def subgroup_lines(target: Record) -> list[str]:
    """The worst groups of the target, or of the source if only that has attributes.

    Args:
        target: An entry of ``targets``.
    """
    tables: Sequence[Record] = target.get("subgroups", ())
    if not tables:
        return []
    domain = tables[-1]["domain"]
    shown = new_table(
        ["attribute", "metric", "worst group", "images", "", "95 % at once", "points", "", "below"],
        left=3,
    )
    few, notes = [], []
    for table in (one for one in tables if one["domain"] == domain):
        present = [group for group in table["groups"] if group["images"]]
        attribute = printable(table["attribute"])
        few += [f"{attribute} {one}" for one in map(_few, present) if one]
        notes += [] if table["worst"] else [f"{attribute}: {_unranked(table)}"]
        notes += _notes_above(table)
        by_name = _metrics(table)
        for metric, worst in table["worst"].items():
            value = by_name[worst][metric]
            once, rest = value["simultaneous"], value["rest"]
            shown.add_row(
                attribute,
                METRICS[metric],
                printable(worst),
                str(value["n"]),
                number(value["estimate"]),
                f"{once[0]:.3f} to {once[1]:.3f}",
                *(_points(rest) if rest else ("-", "-", "-")),
            )
    lines = [
        f"subgroups of the {domain}: the worst by each metric, and its points against the rest"
    ]
    lines += [render(shown)] if shown.row_count else []
    notes += [f"too few to say: {', '.join(few)}"] if few else []
    return [*lines, *(line for note in notes for line in textwrap.wrap(note, WIDTH - 20)), ""]


def _notes_above(table: Record) -> list[str]:
    """A line for each reason why a worst group lies above the rest."""
    reasons: dict[str, list[str]] = {}
    for metric in table["worst"]:
        if why := _above(table, metric):
            reasons.setdefault(why, []).append(METRICS[metric])
    return [
        f"{printable(table['attribute'])}, {', '.join(metrics)}: {why}"
        for why, metrics in reasons.items()
    ]


def _few(group: Record) -> str:
    """The group's name if it has no numbers, with metrics if it lacks some; else nothing."""
    lacking = ", ".join(METRICS[name] for name in group["missing"])
    if group["few"] or not lacking:
        return printable(group["name"]) if group["few"] else ""
    return f"{printable(group['name'])} ({lacking})"


def _points(rest: Record) -> tuple[str, str, str]:
    low, high = f"{100 * rest['low']:+.1f}", f"{100 * rest['high']:+.1f}"
    verdict = "shown" if rest["below"] else "not shown"
    return f"{100 * rest['estimate']:+.1f}", f"{low} to {high}", verdict
