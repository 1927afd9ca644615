"""What stage 3 found: one table for each domain, then what each method cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.heads import not_scored
from pipeline.report.table import Column, Detail, Heading, Part, Table
from pipeline.words import counted

Record = Mapping[str, Any]
Row = Mapping[str, Any]


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``comparison.json``."""
    rows = record["rows"]
    if not rows:
        return ["No method has been trained yet."]
    classes = ", ".join(record["classes"])
    baseline = next((p["baseline"] for p in record["pairs"] if p["reference"] == "baseline"), "lp")
    legend = (
        f"Points are differences of accuracy from {baseline}, the head on frozen features; p is "
        "adjusted for the number of methods (Holm). Intervals are 95 %, by patient."
    )
    domains = dict.fromkeys((d["domain"], d["role"]) for row in rows for d in row["domains"])
    return [
        Heading(f"{record['study']}: frozen and fine-tuned networks, classes {classes}"),
        legend,
        *(_domain(record, domain, role) for domain, role in domains if role != "fit"),
        *_against_heads(record),
        _costs(rows),
        *_caveats(rows),
        *(not_scored(name, images) for name, images in record["unlabelled"].items()),
    ]


def _domain(record: Record, domain: str, role: str) -> Table:
    scored = [
        (row, d)
        for row in record["rows"]
        for d in row["domains"]
        if (d["domain"], d["role"]) == (domain, role)
    ]
    pairs = {
        (p["backbone"], p["seed"], p["head"]): p
        for p in record["pairs"]
        if (p["domain"], p["role"], p["metric"]) == (domain, role, "accuracy")
        and p["baseline"] == "lp"
    }

    def line(row: Row, found: Row) -> tuple[Any, ...]:
        pair = pairs.get((row["backbone"], row["seed"], row["method"]))
        return (
            row["method"],
            row["backbone"],
            row["seed"],
            *(_score(found["metrics"].get(metric)) for metric in ("accuracy", "auroc")),
            None if pair is None else (pair["difference"], pair["low"], pair["high"]),
            None if pair is None else pair["p_holm"],
            row["seconds"],
        )

    first = scored[0][1]
    where = "validation" if role == "validation" else domain
    seeds = len({row["seed"] for row, _ in scored}) > 1
    return Table(
        title=f"{where}: {counted(first['n'], 'image')} of {counted(first['groups'], 'patient')}",
        columns=(
            Column(name="method"),
            Column(name="backbone"),
            Column(name="seed", kind="count", csv_only=not seeds),
            Column(name="accuracy", kind="share", interval=True),
            Column(name="AUROC", kind="share", interval=True),
            Column(name="points", kind="points", interval=True),
            Column(name="p", kind="p"),
            Column(name="train s", kind="seconds"),
        ),
        rows=tuple(line(row, found) for row, found in scored),
        key="finetune",
        about={"domain": domain, "role": role},
    )


def _score(metric: Row | None) -> tuple[Any, ...] | None:
    return None if metric is None else (metric["value"], metric["low"], metric["high"])


def _against_heads(record: Record) -> Iterator[Table]:
    """Methods against the best head of stage 2, on the same images."""
    rows = [
        p
        for p in record["pairs"]
        if p["metric"] == "accuracy" and p["baseline"].startswith("heads/")
    ]
    if rows:
        yield Table(
            title="Accuracy against the best head of `headrace heads`",
            columns=(
                Column(name="method"),
                Column(name="head"),
                Column(name="domain"),
                Column(name="points", kind="points", interval=True),
                Column(name="p", kind="p"),
            ),
            rows=tuple(
                (
                    p["head"],
                    p["baseline"].removeprefix("heads/"),
                    "validation" if p["role"] == "validation" else p["domain"],
                    (p["difference"], p["low"], p["high"]),
                    p["p_holm"],
                )
                for p in rows
            ),
            key="finetune_heads",
        )


def _costs(rows: Sequence[Row]) -> Table:
    return Table(
        title="What was trained, and what it cost",
        columns=(
            Column(name="method"),
            Column(name="backbone"),
            Column(name="trained part"),
            Column(name="parameters", kind="count"),
            Column(name="epochs", kind="count"),
            Column(name="train s", kind="seconds"),
            Column(name="images/s", kind="seconds"),
            Column(
                name="heads",
                kind="count",
                help="Heads that could be fitted on stored features in the same time.",
            ),
            Column(name="loss at the end"),
        ),
        rows=tuple(
            (
                row["method"],
                row["backbone"],
                row["moved"],
                row["trainable_parameters"],
                row["epochs"],
                row["seconds"],
                row["images_per_second"],
                (row["break_even"] or {}).get("heads"),
                row["convergence"]["trend"] or ("too few epochs" if row["epochs"] else ""),
            )
            for row in rows
        ),
        key="finetune_costs",
    )


def _caveats(rows: Sequence[Row]) -> Iterator[Part]:
    if len({row["seed"] for row in rows}) == 1:
        yield Detail("One seed was trained: a difference between methods may be one of seeds.")
    for row in rows:
        if mixed := row["mixed"]:
            yield (
                f"{row['method']}: alpha {mixed['alpha']:.1f} was chosen on validation, between "
                f"{mixed['from']} and {mixed['to']}."
            )
        if more := row["extrapolated"]:
            yield (
                f"{row['method']} was trained for timing alone: {more['epochs']} epochs would take "
                f"about {more['seconds']:.0f} s."
            )
