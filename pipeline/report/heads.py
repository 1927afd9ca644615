"""What stage 2 found: one table for each domain, then what the best head is worth."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.table import Column, Detail, Heading, Part, Table
from pipeline.words import counted

Record = Mapping[str, Any]
Row = Mapping[str, Any]
_NAMES = {"accuracy": "accuracy", "auroc": "AUROC"}
_ENSEMBLE = "_ensemble"


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``heads.json``."""
    parts: list[Part] = []
    for backbone in record["best_by_validation"]:
        parts += _backbone(record, backbone)
    parts += [not_scored(name, images) for name, images in record["unlabelled"].items()]
    parts += [f"{f['head']} on {f['backbone']} failed: {f['reason']}" for f in record["failures"]]
    parts += [
        Detail(f"{one['head']} on {one['backbone']} has no model file: {one['reason']}")
        for one in record["unsaved"]
    ]
    return parts


def not_scored(target: str, images: int) -> str:
    """Why no table has a row for a target without labels."""
    return (
        f"{target}: {counted(images, 'image')} without labels. The probabilities are stored, "
        "but no score can be computed."
    )


def _backbone(record: Record, backbone: str) -> Iterator[Part]:
    rows = [row for row in record["rows"] if row["backbone"] == backbone]
    best = record["best_by_validation"][backbone]
    classes = ", ".join(record["classes"])
    yield Heading(f"{record['study']} on {backbone}, classes {classes}")
    yield (
        f"Points are differences of accuracy from the baseline {record['baseline']}; p is adjusted "
        "for the number of heads (Holm). Intervals are 95 %, by patient. * best by validation."
    )
    heads = _ranked(rows)
    for domain, role in dict.fromkeys((row["domain"], row["role"]) for row in rows):
        if role != "fit":
            there = [row for row in rows if (row["domain"], row["role"]) == (domain, role)]
            pairs = [
                pair
                for pair in record["pairs"]
                if pair["backbone"] == backbone
                and (pair["domain"], pair["role"]) == (domain, role)
                and pair["reference"] == "baseline"
            ]
            yield _domain(heads, best, there, pairs)
    yield from _selection_corrected([h for h in record["honest"] if h["backbone"] == backbone])
    yield from _seeds([s for s in record["seed_spread"] if s["backbone"] == backbone])
    yield from _algorithms([p for p in record["procedures"] if p["backbone"] == backbone])


def _ranked(rows: Sequence[Row]) -> list[str]:
    """Final heads (ensembles in place of their seeds), best validation accuracy first."""
    names = dict.fromkeys(row["head"] for row in rows)
    final = {name.removesuffix(_ENSEMBLE): name for name in names}.values()
    by_head = {
        row["head"]: row["estimate"]
        for row in rows
        if row["metric"] == "accuracy" and row["role"] == "validation"
    }
    return sorted(final, key=lambda name: -by_head.get(name, 0.0))


def _domain(heads: Sequence[str], best: str, rows: Sequence[Row], pairs: Sequence[Row]) -> Table:
    values = {(row["head"], row["metric"]): row for row in rows}
    against = {(pair["head"], pair["metric"]): pair for pair in pairs}
    others = [m for m in dict.fromkeys(row["metric"] for row in rows) if m not in _NAMES]

    def score(head: str, metric: str) -> tuple[Any, Any, Any] | None:
        row = values.get((head, metric))
        return None if row is None else (row["estimate"], row["low"], row["high"])

    def line(head: str) -> tuple[Any, ...]:
        pair = against.get((head, "accuracy"))
        difference = None if pair is None else (pair["estimate"], pair["low"], pair["high"])
        return (
            head.removesuffix(_ENSEMBLE),
            head == best,
            *(score(head, metric) for metric in _NAMES),
            difference,
            None if pair is None else pair["p_adjusted"],
            values[head, "accuracy"]["seconds"],
            *(score(head, metric) for metric in others),
        )

    first = rows[0]
    where = "validation" if first["role"] == "validation" else first["domain"]
    images, patients = counted(first["images"], "image"), counted(first["patients"], "patient")
    return Table(
        title=f"{where}: {images} of {patients}",
        columns=(
            Column("head"),
            Column("best", "mark"),
            *(Column(n, "share", interval=True) for n in _NAMES.values()),
            Column("points", "points", interval=True),
            Column("p", "p"),
            Column("fit s", "seconds"),
            *(Column(m, "number", interval=True, csv_only=True) for m in others),
        ),
        rows=tuple(line(head) for head in heads if (head, "accuracy") in values),
        key="heads",
        about={name: first[name] for name in ("backbone", "domain", "role")},
    )


def _selection_corrected(found: Sequence[Row]) -> Iterator[str]:
    values = [
        f"{_NAMES[one['metric']]} {one['honest']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        for one in found
    ]
    if values:
        yield (
            f"The best of {found[0]['among']} heads on new patients of the source, corrected for "
            f"the selection: {', '.join(values)}."
        )


def _seeds(found: Sequence[Row]) -> Iterator[Table]:
    rows = [s for s in found if s["metric"] == "accuracy"]
    if not rows:
        return
    yield Table(
        title=f"Does the seed matter? Accuracy over {rows[0]['seeds']} trainings",
        columns=(
            Column("head"),
            Column("domain"),
            Column("mean accuracy", "share", interval=True),
            Column("sd", "number"),
        ),
        rows=tuple(
            (
                s["head"],
                s["role"] if s["role"] == "validation" else s["domain"],
                (s["mean"], s["low"], s["high"]),
                s["sd"],
            )
            for s in rows
        ),
        key="heads_seeds",
        about={"backbone": rows[0]["backbone"]},
    )


def _algorithms(found: Sequence[Row]) -> Iterator[Table]:
    rows = sorted((p for p in found if p["metric"] == "accuracy"), key=lambda p: -p["difference"])
    if not rows:
        return
    first = rows[0]
    yield Table(
        title=(
            f"Which kind of head suits such data? Refitted on {first['splits']} folds, "
            f"accuracy against {first['baseline']}"
        ),
        columns=(
            Column("head"),
            Column("points", "points"),
            Column("P(worse)", kind="share"),
            Column("P(equal)", kind="share", help=f"Within {100 * first['rope']:.0f} point."),
            Column("P(better)", kind="share"),
        ),
        rows=tuple((p["head"], p["difference"], p["worse"], p["equal"], p["better"]) for p in rows),
        key="heads_algorithms",
        about={"backbone": first["backbone"]},
    )
