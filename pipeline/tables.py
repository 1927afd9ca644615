"""Results as text for a terminal: small tables, numbers to the right."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.extract import BackboneReport, ExtractReport
from pipeline.names import legible
from pipeline.samples import Skip
from pipeline.shift.leaderboard import Row as LeaderboardRow
from pipeline.shift.stage import ShiftReport, TargetReport
from pipeline.text_table import WIDTH as _WIDTH
from pipeline.text_table import new_table as _table
from pipeline.text_table import number as _number
from pipeline.text_table import render as _render

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
        f"of {row.images_in} images -> {row.store} ({row.dim}-d)"
    )


def _skipped_lines(skipped: Sequence[Skip]) -> list[str]:
    lines = [f"  skipped {legible(s.domain + '/' + s.path)}: {s.reason}" for s in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        lines.append(f"  and {len(skipped) - _SHOWN} more; all are in features.json")
    return lines


def shift_text(report: ShiftReport) -> str:
    """For each target: how far apart the hospitals are, then what the fixes do."""
    return "\n\n".join(_target_text(target) for target in report.targets)


def _target_text(target: TargetReport) -> str:
    told, verdict = target.source_prediction, target.story.verdict
    lines = [
        f"{target.target}, {target.backbone}",
        *textwrap.wrap(" ".join([verdict.text, *verdict.advice]), _WIDTH - 20),
        "",
        f"the hospital can be told from the features with AUC {told.overall:.2f}",
        f"{target.shared_patients} patient ids are in both (the numbering may restart)",
        "",
        "tests, permuted by patient; controls: two halves of the source, and those with a shift",
        _detection_table(target),
        *target.detection.observed.notes,
        "",
        "fixes that see no label of the target, adapted on one half and scored on the other",
        _fixes_table(target.fixes.rows),
        "",
        "with some labels of the target",
        _fixes_table(target.fixes.k_shot),
    ]
    return "\n".join(lines)


def _detection_table(target: TargetReport) -> str:
    table = _table(["test", "statistic", "p", "p (Holm)", "p halves", "p planted"], left=1)
    for finding, null, positive in target.detection.rows():
        if finding.primary:
            table.add_row(
                finding.name,
                _number(finding.statistic),
                _number(finding.p),
                _number(finding.p_holm),
                _number(null.p if null else None),
                _number(positive.p if positive else None),
            )
    return _render(table)


def _fixes_table(rows: Sequence[LeaderboardRow]) -> str:
    table = _table(["fix", "accuracy", "AUROC", "points", "95 % interval", "p (Holm)"], left=1)
    for row in rows:
        d = row.difference
        table.add_row(
            row.name,
            _number(row.accuracy),
            _number(row.auroc),
            f"{100 * d.estimate:+.1f}",
            f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
            _number(row.p_holm),
        )
    return _render(table)


def stores_text(stores: Sequence[Mapping[str, Any]]) -> str:
    """One line for each store."""
    table = _table(["store", "precision", "rows", "parts", "MB", "set aside"], left=2)
    for row in stores:
        table.add_row(
            row["store"],
            row["precision"],
            str(row["rows"]),
            str(row["parts"]),
            f"{row['size'] / 1e6:.1f}",
            str(row["quarantined"]),
        )
    broken = [f"{row['store']}: {row['error']}" for row in stores if row["error"]]
    return "\n".join([_render(table), *broken])
