"""The stage's record as a report to read and as tables for a spreadsheet.

Everything is made from the values of ``shift.json``, so the three cannot disagree.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.report.shift_subgroups import subgroup_chapter, subgroup_rows
from pipeline.report.text_tables import csv_text, prose, table
from pipeline.shift.probes import Probe
from pipeline.words import counted, in_markdown, printable

Record = Mapping[str, Any]
Row = dict[str, Any]


def _ng_rows(target: Record) -> Iterable[Row]:
    if target["ng"]["human"] is not None:
        yield {"kind": "error", "name": "human, as given", "estimate": target["ng"]["human"]}
    for role, cell in target["ng"].items():
        if cell is not None and role != "human":
            yield {"kind": "error", "name": role, **cell}
    for step, gap in target["gaps"].items():
        retrain = gap["ci_retrain"] or [None, None]
        yield {
            "kind": "gap",
            "name": step,
            "estimate": gap["est"],
            "low": gap["ci_sampling"][0],
            "high": gap["ci_sampling"][1],
            "retrain_low": retrain[0],
            "retrain_high": retrain[1],
            "p_largest": gap["p_largest"],
        }


def _detect_rows(target: Record) -> Iterable[Row]:
    for row in target["detect"]:
        yield {name: value for name, value in row.items() if name != "null"}


def _told_rows(target: Record) -> Iterable[Row]:
    told = target["source_prediction"]
    inside = {f"class {k}": probe for k, probe in enumerate(told["by_class"]) if probe}
    for among, probe in {"all images": told["overall"], **inside}.items():
        yield {"among": among, **probe}


def _fix_rows(target: Record) -> Iterable[Row]:
    for row in target["fixes"]:
        flat = {name: value for name, value in row.items() if name not in {"difference", "notes"}}
        yield {
            **flat,
            **{f"difference_{name}": v for name, v in row["difference"].items()},
        }


def _forecast_rows(target: Record) -> Iterable[Row]:
    for name, estimate in target["forecast"]["accuracy"].items():
        yield {"kind": "accuracy", "name": name, **estimate}
    for name, shares in target["forecast"]["prevalence"].items():
        for k, estimate in enumerate(shares):
            yield {"kind": f"prevalence of class {k}", "name": name, **estimate}


def _calibration_rows(target: Record) -> Iterable[Row]:
    for domain, found in target["calib"].items():
        yield {
            "domain": domain,
            "event": target["calib_event"],
            "brier": found["brier"]["score"],
            "miscalibration": found["brier"]["miscalibration"],
            "discrimination": found["brier"]["discrimination"],
            "uncertainty": found["brier"]["uncertainty"],
            "ece": found["ece"]["plug_in"],
            "ece_debiased": found["ece"]["debiased"],
            "ece_if_calibrated": found["ece"]["if_calibrated"],
            "slope": found["line"]["slope"],
            "intercept": found["line"]["intercept"],
        }


def _operating_rows(target: Record) -> Iterable[Row]:
    for use in target["operating_points"]:
        point = use["point"]
        row = {name: use[name] for name in ("rule", "domain", "way", "reliable")}
        row |= {"threshold": point["threshold"], "called": point["called"]}
        for name in ("sensitivity", "specificity"):
            row |= {
                name: point[name]["estimate"],
                f"{name}_low": point[name]["low"],
                f"{name}_high": point[name]["high"],
            }
        for share, values in point["predictive"].items():
            row |= {f"{name}_at_{share}": values[name][0] for name in ("ppv", "npv")}
        yield row


#: Tables by the end of their file's name: to add one, a function above and one line here.
TABLES: Mapping[str, Callable[[Record], Iterable[Row]]] = MappingProxyType(
    {
        "ng": _ng_rows,
        "detect": _detect_rows,
        "told": _told_rows,
        "differences": lambda target: target["differences"]["rows"],
        "forecast": _forecast_rows,
        "calibration": _calibration_rows,
        "operating": _operating_rows,
        "fixes": _fix_rows,
    }
)
#: Columns that say of what a row is; their values are a target's.
_EVERY_ROW = ("backbone", "target")
#: Tables that a target without labels has too.
LABEL_FREE = ("told", "detect", "forecast")
#: Tables that are there only where the study asks for them.
OPTIONAL: Mapping[str, Callable[[Record], Iterable[Row]]] = MappingProxyType(
    {"subgroups": subgroup_rows}
)
#: Of the tables, for people.
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "ng": "Errors by role, and the steps between them",
        "detect": "Tests of a difference, with their controls",
        "told": "How well the hospital can be told from the features (AUC)",
        "differences": "Habits of the hospitals",
        "forecast": "What the scores foretell without labels",
        "calibration": "Calibration",
        "operating": "Thresholds chosen on the source, at work in both domains",
        "fixes": "Fixes",
    }
)


def tables(record: Record) -> dict[str, bytes]:
    """Every table as CSV, rows of all targets below one another.

    A table without rows has a header of two columns: which backbone, which target.

    Args:
        record: The values of ``shift.json``.

    Returns:
        File contents, UTF-8, by the end of the file's name.
    """
    found = {
        name: [
            {name: t[name] for name in _EVERY_ROW} | row
            for t in [*record["targets"], *(record["unlabelled"] if name in LABEL_FREE else ())]
            for row in rows(t)
        ]
        for name, rows in {**TABLES, **OPTIONAL}.items()
    }
    return {name: _csv(rows) for name, rows in found.items() if rows or name in TABLES}


def _csv(kept: list[Row]) -> bytes:
    columns = list(dict.fromkeys([*_EVERY_ROW, *(name for row in kept for name in row)]))
    return csv_text(columns, [[row.get(name) for name in columns] for row in kept]).encode()


def report(record: Record) -> str:
    """The report in Markdown: for each target the verdict, then the tables.

    Args:
        record: The values of ``shift.json``.
    """
    lines = [f"# Domain shift: {in_markdown(record['study'])}"]
    for target in record["targets"]:
        lines += _chapter(target, record["classes"])
    for target in record["unlabelled"]:
        lines += _unlabelled_chapter(target, record["classes"])
    lines += [f"\n{prose(sentence)}" for sentence in left_out(record)]
    return "\n".join(lines) + "\n"


def left_out(record: Record) -> Iterator[str]:
    """A sentence for each target that was not compared."""
    for one in record["not_compared"]:
        where = f"{printable(one['target'])}, {printable(one['backbone'])}"
        yield f"{where}: not compared. {one['reason']}"


def _chapter(target: Record, classes: Sequence[str]) -> list[str]:
    verdict = target["verdict"]
    lines = [
        "",
        f"## {in_markdown(target['target'])}, {in_markdown(target['backbone'])}",
        "",
        prose(verdict["text"]),
        *(f"- {prose(advice)}" for advice in verdict["advice"]),
        "",
        prose(target["differences"]["said"]),
        prose(told_apart_in_words(target["source_prediction"], classes)),
        _lookups(target),
        *(f"- {prose(caveat)}" for caveat in target["caveats"]),
    ]
    for name, rows in TABLES.items():
        lines += ["", f"### {TITLES[name]}", "", *table(list(rows(target)), classes)]
        if name == "ng":
            lines += ["", *(f"- {s}: not identifiable, {why}" for s, why in _unknown(target))]
        if name == "forecast":
            lines += ["", target["forecast"]["warning"]]
        if name == "operating":
            lines += subgroup_chapter(target)
    return lines


def told_apart_in_words(found: Record, classes: Sequence[str]) -> str:
    """How well the hospital can be told, overall and in each class, a sentence.

    Args:
        found: ``source_prediction`` of a target.
        classes: In label order.
    """
    overall = Probe(**found["overall"]).text
    inside = [
        f"{printable(name)} {Probe(**probe).text}"
        for name, probe in zip(classes, found["by_class"], strict=False)
        if probe is not None
    ]
    classes_too = f"; inside the classes: {', '.join(inside)}" if inside else ""
    return f"The hospital can be told from the features with AUC {overall}{classes_too}."


def _unlabelled_chapter(target: Record, classes: Sequence[str]) -> list[str]:
    lines = [
        "",
        f"## {in_markdown(target['target'])}, {in_markdown(target['backbone'])}",
        "",
        prose(target["said"]),
        "",
        prose(told_apart_in_words(target["source_prediction"], classes)),
        *(f"- {prose(caveat)}" for caveat in target["caveats"]),
        "",
        "Not given, because it needs labels:",
        *(f"- {what}" for what in target["needs_labels"]),
    ]
    for name in LABEL_FREE:
        rows = table(list(TABLES[name](target)), classes)
        lines += ["", f"### {TITLES[name]}", "", *rows]
    return lines


def _lookups(target: Record) -> str:
    return (
        f"Labels of the target were read {counted(target['lookups_of_target_labels'], 'time')}, "
        f"all after the plan {target['plan_hash'][:12]} was fixed."
    )


def _unknown(target: Record) -> Iterable[tuple[str, str]]:
    unknown: Mapping[str, str] = target["not_identifiable"]
    return unknown.items()
