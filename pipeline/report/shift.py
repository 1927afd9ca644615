"""Reports on ``shift``: for each target the verdict, the effects and the adaptation methods."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.table import Column, Detail, Heading, Part, Record, Table, about
from pipeline.words import counted

#: Words for the effects of the record.
_EFFECTS = {
    "accuracy_loss": "accuracy lost",
    "class_mix": "other class mix",
    "within_class": "more errors inside the classes",
    "confidence_shift": "more images near the threshold",
    "y_given_score": "the same score means another risk",
    "threshold": "the threshold does not fit",
    "discrimination": "the classes overlap more",
    "target_hardness": "the target is harder",
    "transfer_gap": "the head does not transfer",
    "auroc_loss": "AUROC lost",
}
#: Words for errors, steps, estimates and tests.
_NAMES = {
    "human": "a person, source",
    "source_training": "source, training images",
    "source_new_patients": "source, new patients",
    "source_few_patients": "source, heads of as few patients",
    "target": "target",
    "target_trained": "target, heads trained on it",
    "avoidable_bias": "avoidable bias: training images minus a person",
    "variance": "variance: new patients minus training images",
    "mismatch": "domain mismatch: target minus new patients of the source",
    "target_hardness": "target hardness: heads trained on it minus heads of as few patients",
    "atc": "share of confident images (ATC)",
    "doc": "mean confidence (DoC)",
    "label_shift": "class mix (label shift)",
    "mlls": "class mix that fits the scores best (MLLS)",
    "bbsd_ks": "scores of a linear head (BBSD)",
    "ridge_c2st": "features, linear classifier (C2ST)",
    "mmd_aggregated": "features, distances (MMD)",
}
METRICS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


_MIX = "at the class mix of the target"
#: By the end of its key, the title and the columns of each table; subgroups have their own.
_TABLES: Mapping[str, tuple[str, tuple[Column, ...]]] = {
    "effects": (
        "Why accuracy is lost: each decomposition splits the same loss in another way",
        (
            Column("decomposition"),
            Column("effect", field="name"),
            Column("points lost", "points", interval=True),
            Column(
                "largest, %",
                "percent",
                "Share of bootstrap draws in which the effect is the largest of its decomposition.",
                field="largest",
            ),
        ),
    ),
    "adaptation": (
        "What adaptation gains (adapted to one half of the target, scored on the other)",
        (
            Column("method"),
            Column("target labels", field="target_labels"),
            Column("accuracy", "share"),
            Column("AUROC", "share", field="auroc"),
            Column("points gained", "points", interval=True, field="difference"),
            Column("p", "p", "Adjusted for the number of methods (Holm); the intervals are not."),
        ),
    ),
    "errors": (
        "Error table (after Ng)",
        (
            Column("kind"),
            Column("of", field="name"),
            Column("% of images", "percent", interval=True),
        ),
    ),
    "estimates": (
        "Estimates without labels of the target",
        (Column("of"), Column("method"), Column("%", "percent", interval=True)),
    ),
    "detection": (
        "Is there a shift? Permutation tests by patient",
        (
            Column("test", field="name"),
            Column("statistic", "number"),
            Column("p", "p", "Adjusted for three tests (Holm).", field="p_adjusted"),
            Column("not run because", field="refused"),
        ),
    ),
    "covariates": (
        "Acquisition differences, in standard deviations within classes",
        (
            Column("measure", field="name"),
            Column("difference", "change", interval=True),
            Column("shown to differ", field="shown"),
        ),
    ),
    "calibration": (
        "Calibration",
        (
            Column("domain"),
            Column("Brier score", "number", "Mean squared error; 0 is best.", field="brier"),
            Column("miscalibration", "number", "The part that recalibration would remove."),
            Column("ECE", "number", "Calibration error; 0 is best.", field="ece"),
            Column("slope", "number", "Below 1: scores are too extreme."),
            Column("intercept", "number", "Above 0: scores are too low."),
        ),
    ),
    "thresholds": (
        "Thresholds chosen on the source",
        (
            Column("rule"),
            Column("domain"),
            Column("threshold", "share"),
            Column("sensitivity, %", "percent", interval=True, field="sensitivity"),
            Column("specificity, %", "percent", interval=True, field="specificity"),
            *(
                Column(name, "share", f"Share of {sign} calls that are right, {_MIX}.", field=field)
                for name, sign, field in (("PPV", "positive", "ppv"), ("NPV", "negative", "npv"))
            ),
        ),
    ),
}


def shift(record: Record) -> Iterator[Part]:
    """The parts of a report on ``shift.json``; a terminal shows the first ones of each target."""
    parts: list[Part] = []
    for target in record["targets"]:
        if target["about_head"] not in parts:  # said once for several targets
            parts.append(target["about_head"])
        parts += _target(target)
    yield from parts
    for pair in record["not_compared"]:
        yield f"{pair['target']} on {pair['backbone']} was not compared: {pair['reason']}"


def _target(target: Record) -> Iterator[Part]:
    name = f"{target['target']} on {target['backbone']}"
    yield Heading(name if target["labelled"] else f"{name}, without labels")
    yield " ".join(target["verdict"])
    yield from about(_tables(target), backbone=target["backbone"], target=target["target"])
    yield Detail(
        f"The source has {counted(target['source_images'], 'image')} of "
        f"{counted(target['source_patients'], 'patient')}, {target['target']} has "
        f"{counted(target['images'], 'image')} of {counted(target['patients'], 'patient')}."
    )
    yield from map(Detail, target["caveats"])


def _tables(target: Record) -> Iterator[Table]:
    labelled, errors, estimates = (target[k] for k in ("labelled", "error_table", "accuracy_range"))
    if labelled:
        rows, unshown = _effects(target["effects"])
        yield _table("effects", rows, *unshown, detail=False)
        rows = [
            {**row, "p": row["difference"] and row["difference"]["p_adjusted"]}
            for row in target["adaptation"]
        ]
        start = "All methods start from a linear head; source_only is that head without adaptation."
        yield _table("adaptation", rows, start, detail=False)
        rows = [*_named(errors["errors"], kind="error"), *_named(errors["steps"], kind="step")]
        unknown = errors["not_identifiable"].items()
        notes = [f"{_NAMES[step]}: not computed because {why}." for step, why in unknown]
        linear = "The heads of few patients and the heads trained on the target are linear."
        yield _table("errors", rows, linear, *notes)
    rows = [{**row, "of": "accuracy"} for row in estimates["estimates"]]
    rows += [{**row, "of": f"share of {row['name']}"} for row in estimates["prevalence"]]
    rows = [{**row, "method": _NAMES[row["method"]]} for row in rows]
    yield _table("estimates", rows, estimates["warning"], detail=labelled)
    yield _table("detection", _named(target["detection"]))
    if labelled:
        yield _table("covariates", target["covariates"], target["covariates_summary"])
        yield _table("calibration", target["calibration"])
        yield _table("thresholds", target["thresholds"])
    for attribute in dict.fromkeys(row["attribute"] for row in target["subgroups"]):
        yield _subgroups(attribute, target["subgroups"])


def _table(name: str, rows: Sequence[Record], *notes: str, detail: bool = True) -> Table:
    return Table(*_TABLES[name], rows, notes=notes, key=f"shift_{name}", detail=detail)


def _named(rows: Sequence[Record], names: Mapping[str, str] = _NAMES, **more: Any) -> list[Record]:
    """Rows with names for people."""
    return [{**row, "name": names[row["name"]], **more} for row in rows]


def _effects(effects: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Rows, AUROC last; one sentence replaces the groups whose shares are not shown to matter."""
    names, unshown = dict(_EFFECTS), list[str]()
    for row in effects:
        attribute = row["decomposition"].removeprefix("by ")
        if row["name"] == f"{attribute}_mix" and attribute != row["decomposition"]:
            names[f"{attribute}_mix"] = f"other mix of {attribute} groups"
            names[f"within_{attribute}"] = f"more errors inside the {attribute} groups"
            unshown += [row["decomposition"]] if row["low"] <= 0 <= row["high"] else []
    rows = [row for row in effects if row["decomposition"] not in unshown]
    note = f"Another mix of the groups {' or '.join(unshown)} is not shown to cost accuracy."
    ordered = sorted(_named(rows, names), key=lambda row: row["decomposition"] == "AUROC")
    return ordered, [note] if unshown else []


def _subgroups(attribute: str, subgroups: Sequence[Record]) -> Table:
    groups = [row for row in subgroups if row["attribute"] == attribute]
    on_source = [{f"{m}_source": v["source"] for m, v in g["metrics"].items()} for g in groups]
    return Table(
        f"Subgroups by {attribute}, intervals for all groups at once",
        (
            Column("group"),
            Column("images", "count"),
            Column("patients", "count"),
            *(Column(n, "share", interval=True, field=m) for m, n in METRICS.items()),
            *(Column(f"{n}, source", "share", field=f"{m}_source") for m, n in METRICS.items()),
            Column("no numbers because", field="reason"),
        ),
        [{**g, **g["metrics"], **more} for g, more in zip(groups, on_source, strict=True)],
        notes=tuple(_lowest(groups)),
        key="shift_subgroups",
        about={"attribute": attribute},
        detail=True,
    )


def _lowest(groups: Sequence[Record]) -> Iterator[str]:
    """The group with the lowest value of each metric, and its distance from all other images."""
    keys = ("difference", "difference_low", "difference_high")
    lowest = (
        (name, group["group"], value)
        for metric, name in METRICS.items()
        for group in groups
        if (value := group["metrics"].get(metric)) and value["worst"]
    )
    for name, group, value in lowest:
        sentence = f"{name[0].upper()}{name[1:]} is lowest in {group}"
        if value["difference"] is not None:
            points, low, high = (f"{100 * value[key]:+.1f}" for key in keys)
            chance = "" if value["difference_high"] < 0 else "; this may be chance"
            sentence += f": {points} points against all other images ({low} to {high}){chance}"
        yield sentence + "."
