"""Results as text for a terminal: small tables, numbers to the right."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.features.extract import BackboneReport, ExtractReport
from pipeline.samples import Skip
from pipeline.text.counts import counted
from pipeline.text.names import legible
from pipeline.text.table import new_table as _table
from pipeline.text.table import render as _render

_SHOWN = 10


def features_text(report: ExtractReport) -> str:
    """What stage 1 did, a line for each backbone, then the skipped images."""
    lines = [_backbone_line(row) for row in report.backbones]
    return "\n".join(lines + _skipped_lines(report.skipped))


def _backbone_line(row: BackboneReport) -> str:
    if not row.computed:
        done = "nothing to do"
    else:
        done = f"{row.computed} computed in {row.seconds:.1f} s ({row.images_per_second:.1f}/s)"
    return (
        f"{row.backbone}: {done}, {row.reused} reused, {row.skipped} skipped "
        f"of {counted(row.images_in, 'image')} -> {row.store} ({row.dim}-d)"
    )


def _skipped_lines(skipped: Sequence[Skip]) -> list[str]:
    lines = [f"  skipped {legible(s.domain + '/' + s.path)}: {s.reason}" for s in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        lines.append(f"  and {len(skipped) - _SHOWN} more; all are in features.json")
    return lines


def stores_text(stores: Sequence[Mapping[str, Any]]) -> str:
    """One line for each store."""
    table = _table(["store", "holds", "precision", "rows", "parts", "MB", "set aside"], left=3)
    for row in stores:
        table.add_row(
            row["store"],
            row["holds"],
            row["precision"],
            str(row["rows"]),
            str(row["parts"]),
            f"{row['size'] / 1e6:.1f}",
            str(row["quarantined"]),
        )
    broken = [f"{row['store']}: {row['error']}" for row in stores if row["error"]]
    return "\n".join([_render(table), *broken])
