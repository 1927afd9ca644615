"""Subgroups as rows for a spreadsheet, as a chapter to read, and as a few lines to print.

Everything is made from the values of ``shift.json``.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.names import legible
from pipeline.shift.subgroups import FEW_IMAGES, FEW_PATIENTS
from pipeline.text_table import new_table, number, render

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


def subgroup_chapter(target: Record) -> list[str]:
    """Lines of Markdown; none where the study looks at no subgroups.

    Args:
        target: An entry of ``targets``.
    """
    tables: Sequence[Record] = target.get("subgroups", ())
    if not tables:
        return []
    threshold = tables[0]["threshold"]
    at = (
        f"Sensitivity and specificity are at the source's threshold {threshold:.3f} (Youden)."
        if threshold is not None
        else "With more than two classes there are accuracy and macro AUROC alone."
    )
    judged = sum(len(table["worst"]) for table in tables)
    how = (
        "Intervals are 95 %, by patient: in a table those of each group alone, in a sentence those "
        "that hold for all groups at once, so that the worst may be picked. "
        f"{at} Groups with fewer than {FEW_IMAGES} images or {FEW_PATIENTS} patients have no "
        "numbers. Each attribute and metric is judged by itself: of these "
        f"{judged} judgements one in twenty may be wrong."
    )
    lines = ["", "### Subgroups", "", how]
    for table in tables:
        lines += ["", f"#### {legible(table['attribute'])}, {table['domain']}", ""]
        lines += _table(table)
        lines += ["", *(f"- {said}" for said in _sentences(table))]
    return lines


def _table(table: Record) -> list[str]:
    groups = [group for group in table["groups"] if group["images"]]
    metrics = [name for name in METRICS if any(name in group["metrics"] for group in groups)]
    shares = ["prevalence"] if any(group["prevalence"] for group in groups) else []
    names = ["group", "images", "patients", *shares, *(METRICS[name] for name in metrics)]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for group in groups:
        values = [group["prevalence"]] if shares else []
        values += [group["metrics"].get(name) for name in metrics]
        cells = [_cell(value) for value in values]
        name = _shown(group["name"])
        lines.append(f"| {name} | {group['images']} | {group['patients']} | {' | '.join(cells)} |")
    return lines if metrics else [*lines, "", "no group is large enough"]


def _cell(value: Record | None) -> str:
    if value is None:
        return "too few"
    return f"{value['estimate']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _sentences(table: Record) -> Iterable[str]:
    by_name = _metrics(table)
    for metric, worst in table["worst"].items():
        value = by_name[worst][metric]
        low, high = value["simultaneous"]
        yield (
            f"{METRICS[metric]}: worst in {_shown(worst)} with "
            f"{value['estimate']:.3f} ({low:.3f} to {high:.3f}); {_against(value['rest'])}"
        )
        if others := [
            _shown(name)
            for name, values in by_name.items()
            if name != worst and metric in values and (values[metric]["rest"] or {}).get("below")
        ]:
            yield f"{METRICS[metric]}: also below the rest: {', '.join(others)}"


def _metrics(table: Record) -> dict[str, Record]:
    """By group."""
    return {group["name"]: group["metrics"] for group in table["groups"]}


def _shown(name: str) -> str:
    """A group's name as Markdown shows it plainly."""
    return legible(name).replace("|", "\\|").replace("<", "&lt;")


def _against(rest: Record | None) -> str:
    if rest is None:
        return "the rest is too few to compare with"
    verdict = "shown to be below the rest" if rest["below"] else "not shown to be below the rest"
    return (
        f"{verdict} ({100 * rest['estimate']:+.1f} points, {100 * rest['low']:+.1f} to "
        f"{100 * rest['high']:+.1f})"
    )


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
    few = []
    for table in (one for one in tables if one["domain"] == domain):
        present = [group for group in table["groups"] if group["images"]]
        few += [f"{legible(table['attribute'])} {one}" for one in map(_few, present) if one]
        by_name = _metrics(table)
        for metric, worst in table["worst"].items():
            value = by_name[worst][metric]
            once, rest = value["simultaneous"], value["rest"]
            shown.add_row(
                legible(table["attribute"]),
                METRICS[metric],
                legible(worst),
                str(value["n"]),
                number(value["estimate"]),
                f"{once[0]:.3f} to {once[1]:.3f}",
                *(_points(rest) if rest else ("-", "-", "-")),
            )
    lines = [
        f"subgroups of the {domain}: the worst by each metric, and its points against the rest"
    ]
    lines += [render(shown)] if shown.row_count else ["too few images in all groups but one"]
    return [*lines, *([f"too few to say: {', '.join(few)}"] if few else []), ""]


def _few(group: Record) -> str:
    """The group's name if it has no numbers, with metrics if it lacks some; else nothing."""
    lacking = ", ".join(METRICS[name] for name in group["missing"])
    if group["few"] or not lacking:
        return legible(group["name"]) if group["few"] else ""
    return f"{legible(group['name'])} ({lacking})"


def _points(rest: Record) -> tuple[str, str, str]:
    low, high = f"{100 * rest['low']:+.1f}", f"{100 * rest['high']:+.1f}"
    verdict = "shown" if rest["below"] else "not shown"
    return f"{100 * rest['estimate']:+.1f}", f"{low} to {high}", verdict
