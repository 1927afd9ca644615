"""What stage 4 found: for each target the verdict, the effects, the adaptation methods."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report import shift6
from pipeline.report.shift6 import EFFECTS, STEPS
from pipeline.report.table import Column, Detail, Heading, Part, Table, interval
from pipeline.words import counted

Record = Mapping[str, Any]
Row = Mapping[str, Any]


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``shift.json``; a terminal is shown the first three of a target."""
    if record["schema"] > 5:
        return shift6.tables(record)
    parts: list[Part] = []
    for target in record["targets"]:
        parts += _target(target, record["classes"])
    for target in record["unlabelled"]:
        parts += _unlabelled(target, record["classes"])
    parts += [
        f"{one['target']} on {one['backbone']} was not compared. {one['reason']}"
        for one in record["not_compared"]
    ]
    if record["trained"]:
        parts.append(_trained(record["trained"]))
    return parts


def _target(target: Row, classes: Sequence[str]) -> Iterator[Part]:
    yield Heading(f"{target['target']} on {target['backbone']}")
    yield target["verdict"]["text"]
    yield from target["verdict"]["advice"]
    yield _effects(target)
    yield _adaptation(target)
    yield _error_table(target)
    yield _detection(target)
    yield _domain_auc(target, classes)
    yield _differences(target)
    yield _estimates(target, classes)
    yield _calibration(target)
    yield _thresholds(target)
    yield from _subgroups(target)
    yield from map(Detail, target["caveats"])


def _unlabelled(target: Row, classes: Sequence[str]) -> Iterator[Part]:
    yield Heading(f"{target['target']} on {target['backbone']}, without labels")
    yield target["said"]
    yield _estimates(target, classes, detail=False)
    yield _detection(target)
    yield _domain_auc(target, classes)
    yield Detail(f"Not given, because it needs labels: {'; '.join(target['needs_labels'])}.")
    yield from map(Detail, target["caveats"])


def _about(target: Row) -> dict[str, str]:
    return {"backbone": target["backbone"], "target": target["target"]}


#: Effects in the order of the table: division, path in the record, name.
_EFFECTS = (
    ("all", ("total",), "accuracy_loss"),
    ("class", ("kitagawa", "mix"), "class_mix"),
    ("class", ("kitagawa", "rate"), "within_class"),
    ("score", ("score", "terms", "confidence_shift"), "confidence_shift"),
    ("score", ("score", "terms", "y_given_score"), "y_given_score"),
    ("threshold", ("threshold", "terms", "transfer"), "threshold"),
    ("threshold", ("threshold", "terms", "discrimination"), "discrimination"),
)


def _effects(target: Row) -> Table:
    rows = []
    for division, path, effect in _EFFECTS:
        found: Any = target["decomposition"]
        for name in path:
            found = None if found is None else found.get(name)
        if found is not None:
            rows.append((division, EFFECTS[effect], interval(found), found["p_largest"]))
    for name in ("target_hardness", "transfer_gap"):
        if gap := target["gaps"].get(name):
            value = (gap["est"], *gap["ci_sampling"])
            rows.append(("transfer", EFFECTS[name], value, gap["p_largest"]))
    return Table(
        title="Why accuracy is lost. Each division splits the same loss in another way",
        columns=(
            Column("division"),
            Column("effect"),
            Column("points lost", "points", interval=True),
            Column(
                "largest",
                "percent",
                help="Share of the bootstrap draws, in %, in which the effect is the largest.",
            ),
        ),
        rows=tuple(rows),
        key="shift_effects",
        about=_about(target),
    )


def _adaptation(target: Row) -> Table:
    return Table(
        title="What adaptation regains: fitted on one half of the target, scored on the other",
        columns=(
            Column("method"),
            Column("target labels"),
            Column("accuracy", "share"),
            Column("AUROC", "share"),
            Column("points gained", "points", interval=True),
            Column("p", "p"),
        ),
        rows=tuple(
            (
                row["name"],
                row["uses_target_labels"],
                row["accuracy"],
                row["auroc"],
                interval(row["difference"]),
                row["p_holm"],
            )
            for row in target["fixes"]
        ),
        key="shift_adaptation",
        about=_about(target),
    )


ERRORS = {
    "human": "human, source",
    "s_fit": "source, training images",
    "s_traindev": "source, new patients",
    "t_test": "target",
    "t_oracle_cv": "target, head trained on it",
}


def _error_table(target: Row) -> Table:
    errors = {name: target["ng"].get(name) for name in ERRORS}
    rows: list[tuple[Any, ...]] = [
        ("error", words, interval(errors[name]), None)
        for name, words in ERRORS.items()
        if isinstance(errors[name], Mapping)
    ]
    if isinstance(errors["human"], float):
        rows.insert(0, ("error", "human, source", (errors["human"], None, None), None))
    for name, words in STEPS.items():
        if gap := target["gaps"].get(name):
            refitted = gap["ci_retrain"]
            rows.append(
                (
                    "step",
                    words,
                    (gap["est"], *gap["ci_sampling"]),
                    None if refitted is None else (gap["est"], *refitted),
                )
            )
    return Table(
        title="Error table (after Ng)",
        columns=(
            Column("kind"),
            Column("of"),
            Column("% of images", "percent", interval=True),
            Column(
                "head refitted",
                "percent",
                interval=True,
                help="The interval when the head is fitted again to other patients.",
            ),
        ),
        rows=tuple(rows),
        notes=tuple(
            f"{STEPS.get(step, step)}: not identifiable, {why}."
            for step, why in target["not_identifiable"].items()
        ),
        key="shift_errors",
        about=_about(target),
        detail=True,
    )


def _detection(target: Row) -> Table:
    return Table(
        title="Is there a shift? Permutation tests by patient",
        columns=(
            Column("test"),
            Column("statistic", "number"),
            Column("p", "p", help="After Holm."),
            Column(
                "p, source halves",
                kind="p",
                help="A control without a shift: the test must not find one.",
            ),
            Column(
                "p, planted shift",
                kind="p",
                help="A control with one: the test should find it.",
            ),
        ),
        rows=tuple(
            (
                row["name"],
                row["statistic"],
                row["p_holm"],
                row["p_null_control"],
                row["p_positive_control"],
            )
            for row in target["detect"]
            if row["primary"]
        ),
        key="shift_detect",
        about=_about(target),
        detail=True,
    )


def _domain_auc(target: Row, classes: Sequence[str]) -> Table:
    found = target["source_prediction"]
    inside = zip(classes, found["by_class"], strict=False)
    among = {"all images": found["overall"], **{f"class {name}": one for name, one in inside}}
    return Table(
        title="Domain classifier: how well features tell the source from the target",
        columns=(
            Column("among"),
            Column("AUC", "share", interval=True),
            Column("p", "p"),
        ),
        rows=tuple(
            (name, (one["auc"], one["low"], one["high"]), one["p"])
            for name, one in among.items()
            if one
        ),
        key="shift_domain_auc",
        about=_about(target),
        detail=True,
    )


def _differences(target: Row) -> Table:
    return Table(
        title="Acquisition differences, in standard deviations within classes",
        columns=(
            Column("property"),
            Column("difference", "change", interval=True),
            Column("named"),
        ),
        rows=tuple(
            (row["name"], (row["effect"], row["low"], row["high"]), row["named"])
            for row in target["differences"]["rows"]
        ),
        notes=(target["differences"]["said"],),
        key="shift_acquisition",
        about=_about(target),
        detail=True,
    )


def _estimates(target: Row, classes: Sequence[str], *, detail: bool = True) -> Table:
    found = target["forecast"]
    rows = [("accuracy", name, interval(one)) for name, one in found["accuracy"].items()]
    for name, shares in found["prevalence"].items():
        for label, one in zip(classes, shares, strict=False):
            rows.append((f"share of {label}", name, interval(one)))
    return Table(
        title="Estimates without labels of the target",
        columns=(
            Column("of"),
            Column("method"),
            Column("%", "percent", interval=True),
        ),
        rows=tuple(rows),
        notes=(found["warning"],),
        key="shift_estimates",
        about=_about(target),
        detail=detail,
    )


def _calibration(target: Row) -> Table:
    return Table(
        title="Calibration",
        columns=(
            Column("domain"),
            Column("Brier score", "number"),
            Column(
                "miscalibration",
                "number",
                help="The part of it that recalibration removes.",
            ),
            Column("ECE", "number"),
            Column("slope", "number", help="Below 1: scores are too extreme."),
            Column("intercept", "number"),
        ),
        rows=tuple(
            (
                domain,
                one["brier"]["score"],
                one["brier"]["miscalibration"],
                one["ece"]["debiased"],
                one["line"]["slope"],
                one["line"]["intercept"],
            )
            for domain, one in target["calib"].items()
        ),
        key="shift_calibration",
        about=_about(target),
        detail=True,
    )


def _thresholds(target: Row) -> Table:
    return Table(
        title="Thresholds chosen on the source",
        columns=(
            Column("rule"),
            Column("domain"),
            Column("moved by"),
            Column("threshold", "share"),
            Column("sensitivity, %", kind="percent", interval=True),
            Column("specificity, %", kind="percent", interval=True),
            Column("reliable"),
        ),
        rows=tuple(
            (
                use["rule"],
                use["domain"],
                use["way"],
                use["point"]["threshold"],
                interval(use["point"]["sensitivity"]),
                interval(use["point"]["specificity"]),
                use["reliable"],
            )
            for use in target["operating_points"]
        ),
        key="shift_thresholds",
        about=_about(target),
        detail=True,
    )


_METRICS = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


def _subgroups(target: Row) -> Iterator[Table]:
    for found in target.get("subgroups", ()):
        groups = [group for group in found["groups"] if group["images"]]
        yield Table(
            title=f"Subgroups by {found['attribute']}, {found['domain']}",
            columns=(
                Column("group"),
                Column("images", "count"),
                Column("patients", "count"),
                *(Column(name, "share", interval=True) for name in _METRICS.values()),
            ),
            rows=tuple(
                (
                    group["name"],
                    group["images"],
                    group["patients"],
                    *(interval(group["metrics"].get(metric)) for metric in _METRICS),
                )
                for group in groups
            ),
            notes=tuple(_worst(found, groups)),
            key="shift_subgroups",
            about={**_about(target), "domain": found["domain"], "attribute": found["attribute"]},
            detail=True,
        )


def _worst(found: Row, groups: Sequence[Row]) -> Iterator[str]:
    by_name = {group["name"]: group["metrics"] for group in groups}
    for metric, name in found["worst"].items():
        value = by_name[name][metric]
        low, high = value["simultaneous"]
        sentence = (
            f"{_METRICS[metric]} is lowest in {name}: {value['estimate']:.3f} "
            f"({low:.3f} to {high:.3f}, for all groups at once)."
        )
        if rest := value["rest"]:
            shown = "is shown to be below" if rest["below"] else "is not shown to be below"
            sentence += (
                f" It {shown} the other images ({100 * rest['estimate']:+.1f} points, "
                f"{100 * rest['low']:+.1f} to {100 * rest['high']:+.1f})."
            )
        yield sentence
    if few := [group["name"] for group in groups if group["few"]]:
        yield f"Too few images or patients: {', '.join(few)}."


def _trained(rows: Sequence[Row]) -> Table:
    return Table(
        title="Networks that were trained on the source's images lose",
        columns=(
            Column("method"),
            Column("backbone"),
            Column("target"),
            Column("source", "share"),
            Column("on the target", "share"),
            Column("points lost", "points", interval=True),
        ),
        rows=tuple(
            (
                row["method"],
                row["backbone"],
                row["target"],
                row["source_accuracy"],
                row["target_accuracy"],
                interval(row["total"]),
            )
            for row in rows
        ),
        notes=(f"{counted(len(rows), 'trained network')}; see `headrace finetune`.",),
        key="shift_trained",
        detail=True,
    )
