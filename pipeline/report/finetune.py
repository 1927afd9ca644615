"""What fine-tuning found: one table for each domain, then what each method cost."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.report.heads import not_scored
from pipeline.report.table import Column, Detail, Heading, Part, Record, Table, table_of
from pipeline.words import counted

_LEGEND = (
    "Points are differences of accuracy from lp, the head on frozen features; p is adjusted for "
    "the number of methods (Holm). Intervals are 95 %, by patient."
)
#: Before the name of a head that methods are compared with.
_HEADS = "heads/"
#: Networks that are trained from nothing belong to no backbone, and stand beside each.
_OWN = "pixels"


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``finetune.json``; see ``pipeline.finetune.stage.evaluate``."""
    if not record["models"]:
        return ["No method has been trained yet."]
    names = dict.fromkeys(model["backbone"] for model in record["models"])
    parts: list[Part] = []
    for backbone in [name for name in names if name != _OWN] or list(names):
        parts += _backbone(record, backbone)
    parts += [
        f"The heads of {backbone} were fitted to other images than these methods, so they are "
        "not compared."
        for backbone in record["other_heads"]
    ]
    return [*parts, *(not_scored(name, images) for name, images in record["unlabelled"].items())]


def _backbone(record: Record, backbone: str) -> Iterator[Part]:
    models = [m for m in record["models"] if m["backbone"] in (backbone, _OWN)]
    rows = [row for row in record["rows"] if row["backbone"] in (backbone, _OWN)]
    differences = [one for one in record["differences"] if one["backbone"] == backbone]
    classes = ", ".join(record["classes"])
    yield Heading(f"{record['study']} on {backbone}, fine-tuned, classes {classes}")
    yield _LEGEND
    seconds = {_name(model): model["seconds"] for model in models}
    for domain, role in dict.fromkeys((row["domain"], row["role"]) for row in rows):
        from_lp = {
            _name(one): one
            for one in differences
            if (one["domain"], one["role"], one["baseline"]) == (domain, role, "lp")
        }
        here = [
            {**row, "train s": seconds[_name(row)], **_difference(from_lp.get(_name(row)))}
            for row in rows
            if (row["domain"], row["role"]) == (domain, role)
        ]
        yield _domain(here, backbone)
    yield from _against_heads(differences, backbone)
    yield _costs(models, backbone)
    yield from _caveats(models)


def _name(row: Record) -> tuple[Any, ...]:
    return row["method"], row["seed"]


def _difference(found: Record | None) -> dict[str, Any]:
    return {"difference": found, "p": None if found is None else found["p_adjusted"]}


def _domain(rows: Sequence[Record], backbone: str) -> Table:
    first = rows[0]
    where = "validation" if first["role"] == "validation" else first["domain"]
    images, patients = counted(first["images"], "image"), counted(first["patients"], "patient")
    several = len({row["seed"] for row in rows}) > 1
    return table_of(
        f"{where}: {images} of {patients}",
        (
            Column("method"),
            Column("backbone", csv_only=True),
            Column("seed", "count", csv_only=not several),
            Column("accuracy", "share", interval=True, field="accuracy"),
            Column("AUROC", "share", interval=True, field="auroc"),
            Column("points", "points", interval=True, field="difference"),
            Column("p", "p"),
            Column("train s", "seconds"),
        ),
        rows,
        key="finetune",
        about={"backbone": backbone, "domain": first["domain"], "role": first["role"]},
    )


def _against_heads(differences: Sequence[Record], backbone: str) -> Iterator[Table]:
    """Methods against the best head of stage 2, on the same images."""
    rows = [one for one in differences if one["baseline"].startswith(_HEADS)]
    if rows:
        yield table_of(
            "Accuracy against the best head on stored features",
            (
                Column("method"),
                Column("head"),
                Column("where"),
                Column("points", "points", interval=True),
                Column("p", "p", field="p_adjusted"),
            ),
            [
                {
                    **one,
                    "head": one["baseline"].removeprefix(_HEADS),
                    "where": "validation" if one["role"] == "validation" else one["domain"],
                }
                for one in rows
            ],
            key="finetune_heads",
            about={"backbone": backbone},
        )


def _costs(models: Sequence[Record], backbone: str) -> Table:
    trends = [m["trend"] or ("too few epochs" if m["epochs"] else "") for m in models]
    return table_of(
        "What was trained, and what it cost",
        (
            Column("method"),
            Column("trained part", field="moved"),
            Column("parameters", "count", field="trainable_parameters"),
            Column("epochs", "count"),
            Column("train s", "seconds", field="seconds"),
            Column("images/s", "seconds", field="images_per_second"),
            Column(
                "heads",
                "count",
                "Heads that could be fitted on stored features in the same time.",
                field="heads_in_the_same_time",
            ),
            Column("loss at the end"),
        ),
        [{**m, "loss at the end": trend} for m, trend in zip(models, trends, strict=True)],
        key="finetune_costs",
        about={"backbone": backbone},
    )


def _caveats(models: Sequence[Record]) -> Iterator[Part]:
    if len({model["seed"] for model in models}) == 1:
        yield Detail("One seed was trained: a difference between methods may be one of seeds.")
    for model in models:
        if line := model["interpolated"]:
            yield (
                f"{model['method']}: alpha {line['alpha']:.1f} was chosen on validation, between "
                f"{line['from']} and {line['to']}."
            )
        if more := model["extrapolated"]:
            yield (
                f"{model['method']} was trained for timing alone: {more['epochs']} epochs would "
                f"take about {more['seconds']:.0f} s."
            )
