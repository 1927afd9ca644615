"""What stage 2 found: one table for each domain, then what the best head is worth."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluation.intervals import TOO_FEW
from pipeline.report.table import Column, Detail, Heading, Part, Record, Table, format_value
from pipeline.words import counted

_CLINICAL_NOTES = (
    "Net benefit: true positives less false positives times the odds of the threshold, per image.",
    "To treat nobody has a net benefit of 0.",
    "LR is the likelihood ratio. An interval that ends in - has no upper end.",
)
_NAMES = {"accuracy": "accuracy", "auroc": "AUROC"}
_AUROC = "How often an ill patient's image scores above a healthy one's: 1 always, 0.5 by chance."
#: Of :func:`scored` rows.
SCORES = (
    Column("accuracy", "share", interval=True, field="accuracy"),
    Column("AUROC", "share", _AUROC, interval=True, field="auroc"),
    Column("points", "points", interval=True, field="points"),
    Column("p", "p"),
)


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``heads.json``."""
    parts: list[Part] = []
    if leaks := record["leaks"]:
        seen = "; ".join(f"{leak['where']}: {leak['text']}" for leak in leaks)
        advice = ". ".join(dict.fromkeys(leak["advice"] for leak in leaks))
        parts.append(f"Do not trust these numbers. {seen}. {advice}.")
    for results in record["backbones"]:
        parts += _backbone(record, results)
    parts += not_scored(record)
    parts += [f"{f['head']} on {f['backbone']} failed: {f['reason']}" for f in record["failures"]]
    parts += [
        Detail(f"{head['head']} on {head['backbone']} has no model file: {head['reason']}")
        for head in record["not_saved"]
    ]
    return parts


def not_scored(record: Record) -> list[str]:
    """Why tables have no row for targets without labels, and for those that cannot be used."""
    return [
        f"{target}: {counted(images, 'image')} without labels. The probabilities are stored, "
        "but no score can be computed."
        for target, images in record["unlabelled"].items()
    ] + [f"{target} has no scores: {why}" for target, why in record["failed_targets"].items()]


def name_of_domain(domain: Record) -> str:
    """``validation`` for those rows of the source, else the name of the domain."""
    return "validation" if domain["role"] == "validation" else str(domain["domain"])


def scored(row: Record, difference: Record) -> Record:
    """A row of a head or a method for :data:`SCORES`.

    Args:
        row: With ``scores``.
        difference: Of its accuracy from the baseline's; empty for the baseline.
    """
    return {**row, **row["scores"], "points": difference, "p": difference.get("p_adjusted")}


def domain_table(
    backbone: str, domain: Record, columns: Sequence[Column], rows: Sequence[Record], **more: Any
) -> Table:
    """The table of one domain, headed by how many images and patients it has."""
    images, patients = counted(domain["images"], "image"), counted(domain["patients"], "patient")
    about = {"backbone": backbone, "domain": domain["domain"], "role": domain["role"]}
    title = f"{name_of_domain(domain)}: {images} of {patients}"
    return Table(title, columns, rows, about=about, **more)


def _backbone(record: Record, results: Record) -> Iterator[Part]:
    backbone, classes = results["backbone"], ", ".join(record["classes"])
    yield Heading(f"{record['study']} on {backbone}, classes {classes}")
    if results["reused"]:
        reused = counted(results["reused"], "head")
        yield f"{reused} reused from an earlier run, {results['fitted']} fitted."
    legend = "Intervals are 95 %, by patient. * best by validation."
    if any(row["differences"] for domain in results["domains"] for row in domain["rows"]):
        legend = (
            f"Points are differences of accuracy from the baseline {record['baseline']}; p is "
            f"adjusted for the number of heads (Holm). {legend}"
        )
    for domain in results["domains"]:
        yield _scores(backbone, results["best"], domain, legend)
        yield from _clinical(backbone, domain)
        legend = ""
    yield from _selection_corrected(results["selection_corrected"])
    yield from _seeds(backbone, results["seed_spread"])
    yield from _algorithms(backbone, record["baseline"], results["algorithms"])
    yield from _may_be_best(results["confidence_sets"])


def _scores(backbone: str, best: str | None, domain: Record, legend: str) -> Table:
    rows = [
        {**scored(row, row["differences"].get("accuracy", {})), "best": row["head"] == best}
        for row in domain["rows"]
    ]
    others = dict.fromkeys(m for row in domain["rows"] for m in row["scores"] if m not in _NAMES)
    columns = (
        Column("head"),
        Column("best", "mark"),
        *SCORES,
        Column("fit s", "seconds", field="fit_seconds"),
        *(Column(m, "number", interval=True, field=m, csv_only=True) for m in others),
    )
    notes = tuple(
        note for note in (_too_few(domain["rows"]), _open(domain["rows"]), legend) if note
    )
    return domain_table(backbone, domain, columns, rows, key="heads", notes=notes)


def _too_few(rows: Sequence[Record]) -> str:
    """Which shown scores have no interval, and how many patients would give one."""
    without = {
        name: None
        for row in rows
        for m, name in _NAMES.items()
        if row["scores"].get(m, {}).get("method") == TOO_FEW
    }
    needed = "2 of each class are needed for any, about 100 for one of 10 points to either side"
    names = " and ".join(without)
    return f"Too few patients for an interval of {names}: {needed}." if without else ""


def _open(rows: Sequence[Record]) -> str:
    """How many patients would decide the differences in accuracy that these do not."""
    needed = {
        row["head"]: patients
        for row in rows
        if (patients := row["differences"].get("accuracy", {}).get("patients_to_settle"))
    }
    heads = ", ".join(f"{head} {patients:,}" for head, patients in needed.items())
    text = f"Patients that would decide the differences left open: {heads}."
    return text if needed else ""


def _clinical(backbone: str, domain: Record) -> Iterator[Table]:
    """Net benefit, likelihood ratios and calibration in the large, one row for each head."""
    rows = [{"head": row["head"], **row["clinical"]} for row in domain["rows"] if row["clinical"]]
    if not rows:
        return
    treat_all = {f"at {p['threshold']}": p["treat_all"] for p in rows[0]["net_benefit"]}
    rows = [
        {**row, **{f"at {p['threshold']}": p["head"] for p in row["net_benefit"]}} for row in rows
    ]
    yield Table(
        f"{name_of_domain(domain)}: net benefit by the probability from which one treats, and "
        "what a result says",
        (
            Column("head"),
            *(Column(name, "number") for name in treat_all),
            Column("LR positive", "number", interval=True, field="lr_positive"),
            Column("LR negative", "number", interval=True, field="lr_negative"),
            Column(
                "observed - predicted", "number", interval=True, field="observed_minus_predicted"
            ),
        ),
        [*rows, {"head": "treat all", **treat_all}],
        key="heads_clinical",
        about={"backbone": backbone, "domain": domain["domain"], "role": domain["role"]},
        notes=_CLINICAL_NOTES,
        detail=True,
    )


def _selection_corrected(by_metric: Mapping[str, Record]) -> Iterator[str]:
    values = [
        f"{_NAMES[metric]} {format_value((best['estimate'], best['low'], best['high']), 'share')}"
        for metric, best in by_metric.items()
    ]
    if values:
        among = next(iter(by_metric.values()))["among"]
        which, how = "The head", ""
        if among > 1:
            which, how = f"The best of {among} heads", ", corrected for the selection"
        yield f"{which} on new patients of the source{how}: {', '.join(values)}."


# Of ``--thorough``.


def _seeds(backbone: str, spread: Sequence[Record]) -> Iterator[Table]:
    rows = [{**row, "where": name_of_domain(row)} for row in spread if row["metric"] == "accuracy"]
    if rows:
        yield Table(
            f"Does the seed matter? Accuracy over {spread[0]['seeds']} trainings",
            (
                Column("head"),
                Column("where"),
                Column("mean accuracy", "share", interval=True),
                Column("sd", "number"),
            ),
            rows,
            key="heads_seeds",
            about={"backbone": backbone},
        )


def _algorithms(backbone: str, baseline: str, compared: Sequence[Record]) -> Iterator[Table]:
    rows = [row for row in compared if row["metric"] == "accuracy"]
    if rows:
        equal = f"Within {100 * rows[0]['rope']:.0f} point."
        yield Table(
            f"Which kind of head suits such data? Refitted on {rows[0]['splits']} folds, accuracy "
            f"against {baseline}",
            (
                Column("head"),
                Column("points", "points", field="difference"),
                Column("P(worse)", "share", field="worse"),
                Column("P(equal)", "share", equal, field="equal"),
                Column("P(better)", "share", field="better"),
            ),
            sorted(rows, key=lambda row: -row["difference"]),
            key="heads_algorithms",
            about={"backbone": backbone},
        )


def _may_be_best(sets: Sequence[Record]) -> Iterator[str]:
    for candidates in sets:
        sure = f"{100 * (1 - candidates['alpha']):.0f} % confidence"
        yield (
            f"{name_of_domain(candidates)}: the best head is one of these ({sure}): "
            f"{', '.join(candidates['members'])}."
        )
