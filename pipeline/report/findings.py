"""The table over the findings of a study, after a stage has run for each."""

from pipeline.report.heads import name_of_domain
from pipeline.report.table import Column, Part, Record, Table

_P = Column("p", "p", field="p_adjusted")
_TABLES = {
    "heads": (
        "Best head by validation of each finding; p: AUROC against 0.5",
        (
            Column("backbone"),
            Column("domain"),
            Column("images", "count"),
            Column("positive", "count"),
            Column("head"),
            Column("accuracy", "share", interval=True, field="accuracy"),
            Column("AUROC", "share", interval=True, field="auroc"),
        ),
    ),
    "shift": (
        "AUROC of each finding on the source and on a target; p: the loss against 0",
        (
            Column("backbone"),
            Column("target"),
            Column("head"),
            Column("source", "share", field="source_auroc"),
            Column("on target", "share", field="target_auroc"),
            Column("loss", "points", interval=True, field="loss"),
        ),
    ),
    "audit": (
        "Tests for shortcuts of each finding; p: AUC against 0.5",
        (
            Column("where"),
            Column("check"),
            Column("AUC", "share", interval=True, field="auc"),
        ),
    ),
}


def tables(record: Record) -> list[Part]:
    """The part of a report on ``findings_<stage>.json``."""
    title, columns = _TABLES[record["stage"]]
    rows = [
        {**row, "domain": name_of_domain(row)} if "role" in row else row for row in record["rows"]
    ]
    if not rows:
        return []
    return [
        Table(
            f"{title}, adjusted for all rows (Holm)",
            (Column("finding"), *columns, _P),
            rows,
            key=f"findings_{record['stage']}",
        )
    ]
