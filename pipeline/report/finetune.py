"""What fine-tuning found: one table for each domain, then what each method cost."""

from collections.abc import Iterator, Sequence

from pipeline.report.heads import name_of_domain, not_scored
from pipeline.report.table import Column, Detail, Heading, Legend, Part, Record, Table, table_of
from pipeline.words import counted

_LEGEND = Legend(
    "Points are differences of accuracy from lp, the head on frozen features; p is adjusted for "
    "the number of methods (Holm). Intervals are 95 %, by patient."
)
#: Before the name of a head that methods are compared with.
_HEADS = "heads/"


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``finetune.json``; see ``pipeline.finetune.stage.evaluate``."""
    if not record["backbones"]:
        return ["No method has been trained yet."]
    parts: list[Part] = []
    for results in record["backbones"]:
        parts += _backbone(record, results)
    return [*parts, *(not_scored(name, images) for name, images in record["unlabelled"].items())]


def _backbone(record: Record, results: Record) -> Iterator[Part]:
    backbone, classes = results["backbone"], ", ".join(record["classes"])
    yield Heading(f"{record['study']} on {backbone}, fine-tuned, classes {classes}")
    yield _LEGEND
    seconds = {(model["method"], model["seed"]): model["seconds"] for model in results["models"]}
    for domain in results["domains"]:
        yield _domain(domain, backbone, seconds)
    yield from _against_heads(results["domains"], backbone)
    yield _costs(results["models"], backbone)
    yield from _caveats(results["models"])
    if results["heads_fitted_to_others"]:
        yield (
            f"The heads of {backbone} were fitted to other images than these methods, so they are "
            "not compared."
        )


def _domain(domain: Record, backbone: str, seconds: dict[tuple[str, int], float]) -> Table:
    def row_of(row: Record) -> Record:
        difference = row["differences"].get("lp", {})
        compared = {"points": difference, "p": difference.get("p_adjusted")}
        trained = {"train s": seconds[row["method"], row["seed"]]}
        return {**row, **row["scores"], **compared, **trained}

    images, patients = counted(domain["images"], "image"), counted(domain["patients"], "patient")
    several = len({row["seed"] for row in domain["rows"]}) > 1
    return table_of(
        f"{name_of_domain(domain)}: {images} of {patients}",
        (
            Column("method"),
            Column("seed", "count", csv_only=not several),
            Column("accuracy", "share", interval=True, field="accuracy"),
            Column("AUROC", "share", interval=True, field="auroc"),
            Column("points", "points", interval=True, field="points"),
            Column("p", "p"),
            Column("train s", "seconds"),
        ),
        map(row_of, domain["rows"]),
        key="finetune",
        about={"backbone": backbone, "domain": domain["domain"], "role": domain["role"]},
    )


def _against_heads(domains: Sequence[Record], backbone: str) -> Iterator[Table]:
    """Methods against the best head of stage 2, on the same images."""
    rows = [
        {
            **row,
            **difference,
            "method": row["method"],  # of training, not of the interval
            "head": name.removeprefix(_HEADS),
            "where": name_of_domain(domain),
        }
        for domain in domains
        for row in domain["rows"]
        for name, difference in row["differences"].items()
        if name.startswith(_HEADS)
    ]
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
            rows,
            key="finetune_heads",
            about={"backbone": backbone},
        )


def _costs(models: Sequence[Record], backbone: str) -> Table:
    rows = [{**m, "trend": m["trend"] or ("too few epochs" if m["epochs"] else "")} for m in models]
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
            Column("loss at the end", field="trend"),
        ),
        rows,
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
