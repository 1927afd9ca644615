"""What stage 2 found: one table for each domain, then what the best head is worth."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.table import Column, Detail, Heading, Part, Table
from pipeline.words import counted

Record = Mapping[str, Any]
Row = Mapping[str, Any]
_NAMES = {"accuracy": "accuracy", "auroc": "AUROC"}


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``heads.json``."""
    parts: list[Part] = []
    for one in record["backbones"]:
        parts += _backbone(record, one)
    parts += [not_scored(name, images) for name, images in record["unlabelled"].items()]
    parts += [f"{f['head']} on {f['backbone']} failed: {f['reason']}" for f in record["failures"]]
    parts += [
        Detail(f"{one['head']} on {one['backbone']} has no model file: {one['reason']}")
        for one in record["not_saved"]
    ]
    return parts


def not_scored(target: str, images: int) -> str:
    """Why no table has a row for a target without labels."""
    return (
        f"{target}: {counted(images, 'image')} without labels. The probabilities are stored, "
        "but no score can be computed."
    )


def _backbone(record: Record, one: Record) -> Iterator[Part]:
    backbone, classes = one["backbone"], ", ".join(record["classes"])
    yield Heading(f"{record['study']} on {backbone}, classes {classes}")
    yield (
        f"Points are differences of accuracy from the baseline {record['baseline']}; p is adjusted "
        "for the number of heads (Holm). Intervals are 95 %, by patient. * best by validation."
    )
    if one["reused"]:
        reused = counted(one["reused"], "head")
        yield f"{reused} reused from an earlier run, {one['fitted']} fitted."
    for domain in one["domains"]:
        yield _domain(backbone, one["best"], domain)
    yield from _selection_corrected(one["selection_corrected"])
    yield from _seeds(backbone, one["seed_spread"])
    yield from _algorithms(backbone, record["baseline"], one["algorithms"])
    yield from _may_be_best(one["confidence_sets"])


def _domain(backbone: str, best: str | None, domain: Record) -> Table:
    rows = domain["rows"]
    others = [m for m in dict.fromkeys(m for r in rows for m in r["scores"]) if m not in _NAMES]

    def line(row: Row) -> tuple[Any, ...]:
        difference = row["differences"].get("accuracy")
        return (
            row["head"],
            row["head"] == best,
            *(_bounds(row["scores"].get(metric)) for metric in _NAMES),
            _bounds(difference),
            None if difference is None else difference["p_adjusted"],
            row["fit_seconds"],
            *(_bounds(row["scores"].get(metric)) for metric in others),
        )

    images, patients = counted(domain["images"], "image"), counted(domain["patients"], "patient")
    return Table(
        title=f"{_name(domain)}: {images} of {patients}",
        columns=(
            Column(name="head"),
            Column(name="best", kind="mark"),
            *(Column(name=n, kind="share", interval=True) for n in _NAMES.values()),
            Column(name="points", kind="points", interval=True),
            Column(name="p", kind="p"),
            Column(name="fit s", kind="seconds"),
            *(Column(name=m, kind="number", interval=True, csv_only=True) for m in others),
        ),
        rows=tuple(map(line, rows)),
        key="heads",
        about={"backbone": backbone, "domain": domain["domain"], "role": domain["role"]},
    )


def _bounds(value: Row | None) -> tuple[Any, Any, Any] | None:
    return None if value is None else (value["estimate"], value["low"], value["high"])


def _name(domain: Row) -> str:
    return "validation" if domain["role"] == "validation" else str(domain["domain"])


def _selection_corrected(found: Mapping[str, Row]) -> Iterator[str]:
    values = [
        f"{_NAMES[metric]} {one['estimate']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        for metric, one in found.items()
    ]
    if values:
        among = next(iter(found.values()))["among"]
        yield (
            f"The best of {among} heads on new patients of the source, corrected for "
            f"the selection: {', '.join(values)}."
        )


def _seeds(backbone: str, found: Sequence[Row]) -> Iterator[Table]:
    rows = [s for s in found if s["metric"] == "accuracy"]
    if not rows:
        return
    yield Table(
        title=f"Does the seed matter? Accuracy over {rows[0]['seeds']} trainings",
        columns=(
            Column(name="head"),
            Column(name="domain"),
            Column(name="mean accuracy", kind="share", interval=True),
            Column(name="sd", kind="number"),
        ),
        rows=tuple((s["head"], _name(s), _bounds(s), s["sd"]) for s in rows),
        key="heads_seeds",
        about={"backbone": backbone},
    )


def _algorithms(backbone: str, baseline: str, found: Sequence[Row]) -> Iterator[Table]:
    rows = sorted((p for p in found if p["metric"] == "accuracy"), key=lambda p: -p["difference"])
    if not rows:
        return
    first = rows[0]
    yield Table(
        title=(
            f"Which kind of head suits such data? Refitted on {first['splits']} folds, "
            f"accuracy against {baseline}"
        ),
        columns=(
            Column(name="head"),
            Column(name="points", kind="points"),
            Column(name="P(worse)", kind="share"),
            Column(name="P(equal)", kind="share", help=f"Within {100 * first['rope']:.0f} point."),
            Column(name="P(better)", kind="share"),
        ),
        rows=tuple((p["head"], p["difference"], p["worse"], p["equal"], p["better"]) for p in rows),
        key="heads_algorithms",
        about={"backbone": backbone},
    )


def _may_be_best(found: Sequence[Row]) -> Iterator[str]:
    for one in found:
        if one["metric"] == "accuracy":
            sure = round(100 * (1 - one["alpha"]))
            yield (
                f"{_name(one)}: the best head is one of these ({sure} % confidence): "
                f"{', '.join(one['members'])}."
            )
