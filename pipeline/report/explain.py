"""Where the maps of a model lie: one table for each domain."""

from collections.abc import Iterator

from pipeline.report.heads import name_of_domain
from pipeline.report.table import Column, Heading, Part, Record, Table

_LEGEND = (
    "Share of the map's mass in the border of the picture (outside of the middle 70 % of each "
    "side) and in its corners (20 % of each side), by predicted class. Intervals are 95 %, by "
    "patient."
)


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``explain.json``; see :func:`pipeline.explain.explain`."""
    return [
        Heading(f"{record['study']}: what {record['head']} on {record['backbone']} looks at"),
        *better_head(record),
        _LEGEND,
        (
            f"An even map has {record['even']['border']:.2f} and {record['even']['corners']:.2f}. "
            "More than that, and more than a linear head of shuffled labels has, is a reason to "
            "look at the pictures."
        ),
        *_domains(record),
        f"Pictures with their maps, which are patient data: {record['folder']}",
    ]


def better_head(record: Record) -> Iterator[str]:
    """Why the head that is best on validation is not the one."""
    if best := record["instead_of"]:
        yield (
            f"The best head on validation, {best['head']} on {best['backbone']}, has no maps: "
            f"{best['reason']}. {record['head']} on {record['backbone']} is the best of those "
            "that have."
        )


def _domains(record: Record) -> Iterator[Table]:
    for domain in record["domains"]:
        yield Table(
            name_of_domain(domain),
            (
                Column("predicted", field="class"),
                Column("images", "count"),
                Column("border", "share", interval=True, field="border"),
                Column("corners", "share", interval=True, field="corners"),
                Column("border, shuffled", "share", interval=True, field="shuffled_border"),
                Column("corners, shuffled", "share", interval=True, field="shuffled_corners"),
            ),
            domain["rows"],
            key="explain",
            about={"backbone": record["backbone"], "domain": domain["domain"]},
            notes=(_audited(domain["audit"]),),
        )


def _audited(auc: Record) -> str:
    """What the shortcut test of the audit says of the same regions."""
    if not auc:
        return "What the border alone predicts: run headrace audit STUDY."
    regions = [
        f"the {region} alone {value['estimate']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
        for region, value in auc.items()
    ]
    return f"Shortcut test of headrace audit, AUC for the class: {', '.join(regions)}."
