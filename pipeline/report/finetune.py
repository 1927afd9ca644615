"""What fine-tuning found: one table for each domain, then what each method cost."""

from collections.abc import Iterator, Sequence

from pipeline.report.heads import SCORES, domain_table, name_of_domain, not_scored, scored
from pipeline.report.table import Column, Detail, Heading, Part, Record, Table

_LEGEND = (
    "Points are differences of accuracy from lp, the head on frozen features; p is adjusted for "
    "the number of methods (Holm). Intervals are 95 %, by patient."
)


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``finetune.json``; see ``pipeline.finetune.stage.evaluate``."""
    if not record["backbones"]:
        return ["No method has been trained yet."]
    parts: list[Part] = []
    for results in record["backbones"]:
        parts += _backbone(record, results)
    parts += not_scored(record)
    return parts + [f"{part} failed: {reason}" for part, reason in record["failures"].items()]


def _backbone(record: Record, results: Record) -> Iterator[Part]:
    backbone, classes = results["backbone"], ", ".join(record["classes"])
    yield Heading(f"{record['study']} on {backbone}, fine-tuned, classes {classes}")
    seconds = {(model["method"], model["seed"]): model["seconds"] for model in results["models"]}
    several = len({seed for _, seed in seconds}) > 1
    columns = (
        Column("method"),
        Column("seed", "count", csv_only=not several),
        *SCORES,
        Column("train s", "seconds"),
    )
    for k, domain in enumerate(results["domains"]):
        rows = [
            {
                **scored(row, row["differences"].get("lp", {})),
                "train s": seconds[row["method"], row["seed"]],
            }
            for row in domain["rows"]
        ]
        notes = () if k else (_LEGEND,)
        yield domain_table(backbone, domain, columns, rows, key="finetune", notes=notes)
    yield from _against_heads(results["domains"], backbone)
    yield _costs(results["models"], backbone)
    if not several:
        yield Detail("One seed was trained: a difference between methods may be one of seeds.")
    yield from _caveats(results["models"])
    if results["heads_fitted_to_others"]:
        yield (
            f"The heads of {backbone} were fitted to other images than these methods, so they are "
            "not compared."
        )


def _against_heads(domains: Sequence[Record], backbone: str) -> Iterator[Table]:
    """Methods against the best head of stage 2, on the same images."""
    rows = [
        {
            **difference,
            "method": row["method"],  # of training, not of the interval
            "head": name.removeprefix("heads/"),
            "where": name_of_domain(domain),
        }
        for domain in domains
        for row in domain["rows"]
        for name, difference in row["differences"].items()
        if name.startswith("heads/")
    ]
    if rows:
        yield Table(
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
    in_the_same_time = "Heads that could be fitted on stored features in the same time."
    return Table(
        "What was trained, and what it cost",
        (
            Column("method"),
            Column("trained part", field="moved"),
            Column("parameters", "count", field="trainable_parameters"),
            Column("epochs", "count"),
            Column("train s", "seconds", field="seconds"),
            Column("images/s", "seconds", field="images_per_second"),
            Column("heads", "count", in_the_same_time, field="heads_in_the_same_time"),
            Column("loss at the end", field="trend"),
        ),
        rows,
        key="finetune_costs",
        about={"backbone": backbone},
    )


def _caveats(models: Sequence[Record]) -> Iterator[str]:
    for model in models:
        if line := model["interpolated"]:
            yield (
                f"{model['method']}: alpha {line['alpha']:.1f} was chosen on validation, between "
                f"{line['from']} and {line['to']}."
            )
