"""What stage 4 found: for each target the verdict, the effects, the adaptation methods."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.report.table import Column, Detail, Heading, Part, Table, table_of

Record = Mapping[str, Any]
Row = Mapping[str, Any]

#: Words for the names of the record.
EFFECTS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy_loss": "accuracy lost",
        "class_mix": "other class frequencies",
        "within_class": "more errors inside the classes",
        "confidence_shift": "more images near the threshold",
        "y_given_score": "a score means another risk",
        "threshold": "the threshold does not fit",
        "discrimination": "the classes overlap more",
        "target_hardness": "the target is harder",
        "transfer_gap": "the head does not transfer",
        "auroc_loss": "AUROC lost",
    }
)
ERRORS: Mapping[str, str] = MappingProxyType(
    {
        "human": "human, source",
        "source_training": "source, training images",
        "source_new_patients": "source, new patients",
        "target": "target",
        "target_trained": "target, head trained on it",
    }
)
STEPS: Mapping[str, str] = MappingProxyType(
    {
        "avoidable_bias": "avoidable bias",
        "variance": "variance",
        "mismatch": "domain mismatch",
        "target_hardness": "target hardness",
        "transfer_gap": "transfer gap",
    }
)
METRICS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "accuracy",
        "auroc": "AUROC",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
    }
)


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``shift.json``; a terminal is shown the first ones of a target."""
    parts: list[Part] = []
    for target in record["targets"]:
        parts += _target(target)
    parts += [
        f"{one['target']} on {one['backbone']} was not compared: {one['reason']}"
        for one in record["not_compared"]
    ]
    if record["fine_tuned"]:
        parts.append(_fine_tuned(record["fine_tuned"]))
    return parts


def _target(target: Row) -> Iterator[Part]:
    labelled = target["labelled"]
    more = {"about": {"backbone": target["backbone"], "target": target["target"]}}
    yield Heading(
        f"{target['target']} on {target['backbone']}{'' if labelled else ', without labels'}"
    )
    yield target["verdict"]
    if labelled:
        yield _effects(target, more)
        yield _adaptation(target, more)
        yield _error_table(target, more)
    yield _estimates(target, more)
    yield _detection(target, more)
    yield _domain_auc(target, more)
    if labelled:
        yield _covariates(target, more)
        yield _calibration(target, more)
        yield _thresholds(target, more)
        yield from _subgroups(target, more)
    yield from map(Detail, target["caveats"])


More = Mapping[str, Any]


def _named(rows: Sequence[Row], names: Mapping[str, str]) -> list[Row]:
    """Rows with names for people."""
    return [{**row, "name": names.get(row["name"], row["name"])} for row in rows]


def _effects(target: Row, more: More) -> Table:
    return table_of(
        "Why accuracy is lost. Each division splits the same loss in another way",
        (
            Column(name="division"),
            Column(name="effect", field="name"),
            Column(name="points lost", kind="points", interval=True),
            Column(
                name="largest, %",
                kind="percent",
                field="largest",
                help="Share of the bootstrap draws in which it is the largest of its division.",
            ),
        ),
        _named(target["effects"], EFFECTS),
        key="shift_effects",
        **more,
    )


def _adaptation(target: Row, more: More) -> Table:
    return table_of(
        "What adaptation gains: fitted on one half of the target, scored on the other",
        (
            Column(name="method"),
            Column(name="target labels", field="target_labels"),
            Column(name="accuracy", kind="share"),
            Column(name="AUROC", kind="share", field="auroc"),
            Column(name="points gained", kind="points", interval=True, field="difference"),
            Column(name="p", kind="p", help="Adjusted for the number of methods (Holm)."),
        ),
        [{**row, "p": row["difference"]["p_adjusted"]} for row in target["adaptation"]],
        key="shift_adaptation",
        **more,
    )


def _error_table(target: Row, more: More) -> Table:
    found = target["error_table"]
    steps = [
        {**row, "kind": "step", "refitted": _refitted(row)} for row in _named(found["steps"], STEPS)
    ]
    unknown = found["not_identifiable"].items()
    return table_of(
        "Error table (after Ng)",
        (
            Column(name="kind"),
            Column(name="of", field="name"),
            Column(name="% of images", kind="percent", interval=True),
            Column(
                name="head refitted",
                kind="percent",
                interval=True,
                field="refitted",
                help="The interval when the head is fitted again to other patients.",
            ),
        ),
        [*({**row, "kind": "error"} for row in _named(found["errors"], ERRORS)), *steps],
        notes=tuple(f"{STEPS[step]}: not identifiable, {why}." for step, why in unknown),
        key="shift_errors",
        detail=True,
        **more,
    )


def _refitted(step: Row) -> Row | None:
    if step["refit_low"] is None:
        return None
    return {"estimate": step["estimate"], "low": step["refit_low"], "high": step["refit_high"]}


def _estimates(target: Row, more: More) -> Table:
    found = target["accuracy_range"]
    shares = [{**row, "of": f"share of {row['name']}"} for row in found["prevalence"]]
    return table_of(
        "Estimates without labels of the target",
        (
            Column(name="of"),
            Column(name="method"),
            Column(name="%", kind="percent", interval=True),
            Column(
                name="predicted, %",
                kind="percent",
                field="predicted",
                help="Share of the images that the head assigns to the class.",
            ),
        ),
        [*({**row, "of": "accuracy"} for row in found["estimates"]), *shares],
        notes=(found["warning"],),
        key="shift_estimates",
        detail=target["labelled"],
        **more,
    )


def _detection(target: Row, more: More) -> Table:
    return table_of(
        "Is there a shift? Permutation tests by patient",
        (
            Column(name="test", field="name"),
            Column(name="statistic", kind="number"),
            Column(name="p", kind="p", field="p_adjusted", help="Adjusted for three tests (Holm)."),
            Column(
                name="p, source halves",
                kind="p",
                field="p_null_control",
                help="A control without a shift.",
            ),
            Column(
                name="p, planted shift",
                kind="p",
                field="p_positive_control",
                help="A control with a shift.",
            ),
            Column(name="not run because", field="refused"),
        ),
        target["detection"],
        key="shift_detection",
        detail=target["labelled"],
        **more,
    )


def _domain_auc(target: Row, more: More) -> Table:
    return table_of(
        "Domain classifier: how well features tell the source from the target",
        (
            Column(name="among"),
            Column(name="AUC", kind="share", interval=True),
            Column(name="p", kind="p"),
        ),
        target["domain_auc"],
        key="shift_domain_auc",
        detail=True,
        **more,
    )


def _covariates(target: Row, more: More) -> Table:
    return table_of(
        "Acquisition differences, in standard deviations within classes",
        (
            Column(name="property", field="name"),
            Column(name="difference", kind="change", interval=True),
            Column(name="shown", field="named"),
        ),
        target["covariates"],
        notes=(target["covariates_summary"],),
        key="shift_covariates",
        detail=True,
        **more,
    )


def _calibration(target: Row, more: More) -> Table:
    removed = "The part of it that recalibration removes."
    return table_of(
        "Calibration",
        (
            Column(name="domain"),
            Column(name="Brier score", kind="number", field="brier"),
            Column(name="miscalibration", kind="number", help=removed),
            Column(name="ECE", kind="number", field="ece"),
            Column(name="slope", kind="number", help="Below 1: scores are too extreme."),
            Column(name="intercept", kind="number"),
        ),
        target["calibration"],
        key="shift_calibration",
        detail=True,
        **more,
    )


def _thresholds(target: Row, more: More) -> Table:
    return table_of(
        "Thresholds chosen on the source",
        (
            Column(name="rule"),
            Column(name="domain"),
            Column(name="moved by", field="moved_by"),
            Column(name="threshold", kind="share"),
            Column(name="sensitivity, %", kind="percent", interval=True, field="sensitivity"),
            Column(name="specificity, %", kind="percent", interval=True, field="specificity"),
            Column(name="PPV", kind="share", field="ppv"),
            Column(name="NPV", kind="share", field="npv"),
            Column(name="reliable"),
        ),
        target["thresholds"],
        key="shift_thresholds",
        detail=True,
        **more,
    )


def _subgroups(target: Row, more: More) -> Iterator[Table]:
    rows = target["subgroups"]
    for attribute in dict.fromkeys(row["attribute"] for row in rows):
        groups = [row for row in rows if row["attribute"] == attribute]
        yield table_of(
            f"Subgroups by {attribute}, intervals for all groups at once",
            (
                Column(name="group"),
                Column(name="images", kind="count"),
                Column(name="patients", kind="count"),
                *(
                    Column(name=name, kind="share", interval=True, field=metric)
                    for metric, name in METRICS.items()
                ),
                *(
                    Column(name=f"{name}, source", kind="share", field=f"{metric} source")
                    for metric, name in METRICS.items()
                ),
                Column(name="no numbers because", field="reason"),
            ),
            [{**row, **row["metrics"], **_on_source(row)} for row in groups],
            notes=tuple(_lowest(groups)),
            key="shift_subgroups",
            detail=True,
            about={**more["about"], "attribute": attribute},
        )


def _on_source(group: Row) -> dict[str, Any]:
    return {f"{metric} source": value["source"] for metric, value in group["metrics"].items()}


def _lowest(groups: Sequence[Row]) -> Iterator[str]:
    """The lowest group by each metric, and whether it is shown to be below all other images."""
    for metric, name in METRICS.items():
        for group in groups:
            value = group["metrics"].get(metric, {})
            if value.get("worst"):
                against = ""
                if value["difference"] is not None:
                    shown = "is" if value["below"] else "is not"
                    points = [
                        f"{100 * value[key]:+.1f}"
                        for key in ("difference", "difference_low", "difference_high")
                    ]
                    against = (
                        f" It {shown} shown to be below all other images "
                        f"({points[0]} points, {points[1]} to {points[2]})."
                    )
                yield f"{name} is lowest in {group['group']}.{against}"


def _fine_tuned(rows: Sequence[Row]) -> Table:
    def loss(row: Row) -> Row | None:
        return next((e for e in row["effects"] if e["name"] == "accuracy_loss"), None)

    return table_of(
        "The same loss of fine-tuned networks",
        (
            *(Column(name=name) for name in ("method", "backbone", "target")),
            Column(name="source", kind="share", field="source_accuracy"),
            Column(name="on the target", kind="share", field="target_accuracy"),
            Column(name="points lost", kind="points", interval=True, field="loss"),
        ),
        [{**row, "loss": loss(row)} for row in rows],
        key="shift_fine_tuned",
        detail=True,
    )
