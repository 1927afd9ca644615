"""What fine-tuning found: one table for each domain, then what each method cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.heads import not_scored
from pipeline.report.table import Column, Detail, Heading, Part, Table, interval
from pipeline.words import counted

Record = Mapping[str, Any]
Row = Mapping[str, Any]
_LEGEND = (
    "Points are differences of accuracy from lp, the head on frozen features; p is adjusted for "
    "the number of methods (Holm). Intervals are 95 %, by patient."
)
#: Before the name of a head that methods are compared with.
_HEADS = "heads/"


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``finetune.json``; see ``pipeline.finetune.stage.evaluate``."""
    models = record["models"]
    if not models:
        return ["No method has been trained yet."]
    classes = ", ".join(record["classes"])
    domains = dict.fromkeys((row["domain"], row["role"]) for row in record["rows"])
    return [
        Heading(f"{record['study']}: frozen and fine-tuned networks, classes {classes}"),
        _LEGEND,
        *(_domain(record, domain, role) for domain, role in domains),
        *_against_heads(record),
        _costs(models),
        *_caveats(record),
        *(not_scored(name, images) for name, images in record["unlabelled"].items()),
    ]


def _domain(record: Record, domain: str, role: str) -> Table:
    here = [row for row in record["rows"] if (row["domain"], row["role"]) == (domain, role)]
    seconds = {_name(model): model["seconds"] for model in record["models"]}
    from_lp: dict[tuple[Any, ...], Row] = {}
    for one in record["differences"]:
        if (one["domain"], one["role"], one["baseline"]) == (domain, role, "lp"):
            # Networks of their own have the name of no backbone, and are compared beside one.
            from_lp[_name(one)] = from_lp["pixels", *_name(one)[1:]] = one

    def line(row: Row) -> tuple[Any, ...]:
        difference = from_lp.get(_name(row))
        return (
            row["method"],
            row["backbone"],
            row["seed"],
            *(interval(row.get(metric)) for metric in ("accuracy", "auroc")),
            interval(difference),
            None if difference is None else difference["p_adjusted"],
            seconds[_name(row)],
        )

    where = "validation" if role == "validation" else domain
    seeds = len({row["seed"] for row in here}) > 1
    images, patients = here[0]["images"], here[0]["patients"]
    return Table(
        title=f"{where}: {counted(images, 'image')} of {counted(patients, 'patient')}",
        columns=(
            Column("method"),
            Column("backbone"),
            Column("seed", "count", csv_only=not seeds),
            Column("accuracy", "share", interval=True),
            Column("AUROC", "share", interval=True),
            Column("points", "points", interval=True),
            Column("p", "p"),
            Column("train s", "seconds"),
        ),
        rows=tuple(line(row) for row in here),
        key="finetune",
        about={"domain": domain, "role": role},
    )


def _name(row: Row) -> tuple[Any, ...]:
    return (row["backbone"], row["method"], row["seed"])


def _against_heads(record: Record) -> Iterator[Part]:
    """Methods against the best head of stage 2, on the same images."""
    rows = [one for one in record["differences"] if one["baseline"].startswith(_HEADS)]
    if rows:
        yield Table(
            title="Accuracy against the best head of `headrace heads`",
            columns=(
                Column("method"),
                Column("head"),
                Column("domain"),
                Column("points", "points", interval=True),
                Column("p", "p"),
            ),
            rows=tuple(
                (
                    one["method"],
                    one["baseline"].removeprefix(_HEADS),
                    "validation" if one["role"] == "validation" else one["domain"],
                    interval(one),
                    one["p_adjusted"],
                )
                for one in rows
            ),
            key="finetune_heads",
        )
    for backbone in record["other_heads"]:
        yield (
            f"The heads of {backbone} were fitted to other images than these methods, so they are "
            "not compared."
        )


def _costs(models: Sequence[Row]) -> Table:
    return Table(
        title="What was trained, and what it cost",
        columns=(
            Column("method"),
            Column("backbone"),
            Column("trained part"),
            Column("parameters", "count"),
            Column("epochs", "count"),
            Column("train s", "seconds"),
            Column("images/s", "seconds"),
            Column(
                "heads",
                "count",
                help="Heads that could be fitted on stored features in the same time.",
            ),
            Column("loss at the end"),
        ),
        rows=tuple(
            (
                model["method"],
                model["backbone"],
                model["moved"],
                model["trainable_parameters"],
                model["epochs"],
                model["seconds"],
                model["images_per_second"],
                model["heads_in_the_same_time"],
                model["trend"] or ("too few epochs" if model["epochs"] else ""),
            )
            for model in models
        ),
        key="finetune_costs",
    )


def _caveats(record: Record) -> Iterator[Part]:
    models = record["models"]
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
