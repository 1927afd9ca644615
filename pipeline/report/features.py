"""What stage 1 did: a sentence for each backbone, then the images that it skipped."""

from collections.abc import Mapping, Sequence

from pipeline.report.table import Column, Detail, Part, Record, Table
from pipeline.words import counted

_SHOWN = 10


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``features.json``."""
    return [
        *(_backbone(row) for row in record["backbones"]),
        *skipped(record["skipped"], "features.json"),
        *(Detail(f"{part} failed: {reason}") for part, reason in record["failures"].items()),
    ]


def _backbone(row: Record) -> str:
    if row["computed"]:
        rate = f"{row['seconds']:.1f} s ({row['images_per_second']:.1f}/s)"
        done = f"{row['computed']} computed in {rate}"
    else:
        done = "nothing to do"
    return (
        f"{row['backbone']}: {done}, {row['reused']} reused, {row['skipped']} skipped of "
        f"{counted(row['images_in'], 'image')}; {row['dim']} features each in {row['store']}"
    )


def skipped(images: Sequence[Record], file: str) -> list[Part]:
    """The first images that could not be used, with their reasons; all are in a file."""
    if not images:
        return []
    more = len(images) - _SHOWN
    rows = [
        {**image, "image": "/".join(image[k] for k in ("domain", "path") if k in image)}
        for image in images[:_SHOWN]
    ]
    notes = (f"{more} more are in {file}.",) if more > 0 else ()
    return [Table("Skipped images", (Column("image"), Column("reason")), rows, notes=notes)]


def compacted(stores: Mapping[str, Record]) -> list[str]:
    """A line for each store that ``headrace cache compact`` went through."""
    return [
        f"{name}: {store['error']}"
        if "error" in store
        else f"{name}: {counted(store['parts_fewer'], 'part')} fewer, "
        f"{counted(len(store['removed']), 'temporary file')} removed"
        for name, store in stores.items()
    ]


def stores(rows: Sequence[Record]) -> list[Part]:
    """What ``headrace cache ls`` lists, and the stores that cannot be read."""
    table = Table(
        "",
        (
            *(Column(name) for name in ("store", "holds", "precision")),
            *(Column(name, "count") for name in ("rows", "parts")),
            Column("MB", "seconds"),
            Column("set aside", "count", field="quarantined"),
        ),
        [{**row, "MB": row["size"] / 1e6} for row in rows],
    )
    return [table, *(f"{row['store']}: {row['error']}" for row in rows if row["error"])]
