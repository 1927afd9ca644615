"""Results as text for a terminal: small tables, numbers to the right."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare import CompareReport
from pipeline.extract import BackboneReport, ExtractReport
from pipeline.grids import WIDTH as _WIDTH
from pipeline.grids import number as _number
from pipeline.grids import rendered as _render
from pipeline.grids import table as _table
from pipeline.names import legible
from pipeline.samples import Skip
from pipeline.shift.leaderboard import Row as LeaderboardRow
from pipeline.shift.stage import ShiftReport, TargetReport
from pipeline.splits import VALIDATION
from pipeline.study import SOURCE

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


def heads_text(report: CompareReport) -> str:
    """Accuracy and AUROC of each head on each domain, best validation first.

    A head that was trained with several seeds has their mean in its row.
    """
    columns = list(dict.fromkeys((row.domain, row.role) for row in report.rows))
    titles = [role if domain == SOURCE else domain for domain, role in columns]
    cells: dict[tuple[str, str], dict[Any, list[float]]] = {}
    for row in report.rows:
        values = cells.setdefault((row.backbone, row.head), {"seconds": [row.seconds]})
        values.setdefault((row.domain, row.role, row.metric), []).append(row.value)
    means = {key: {k: sum(v) / len(v) for k, v in found.items()} for key, found in cells.items()}
    order = sorted(means, key=lambda k: -means[k].get((SOURCE, VALIDATION, "accuracy"), 0.0))
    table = _table(["backbone", "head", *titles, "fit s"], left=2)
    for backbone, head in order:
        values_of = means[backbone, head]
        scores = [_score(values_of, domain, role) for domain, role in columns]
        table.add_row(backbone, head, *scores, f"{values_of['seconds']:.2f}")
    positive = f"; positive class: {legible(report.classes[1])}" if len(report.classes) == 2 else ""  # noqa: PLR2004
    title = f"{report.study}: accuracy / AUROC{positive}"
    failures = [f"{f.head} on {f.backbone} failed: {f.reason}" for f in report.failures]
    return "\n".join([title, _render(table), *failures, *_pair_lines(report)])


def _pair_lines(report: CompareReport) -> list[str]:
    """What the intervals allow to be said about accuracy against the baseline."""
    lines = []
    for backbone, pairs in report.pairs.items():
        for place in dict.fromkeys(p.domain for p in pairs):
            where = "validation" if place == SOURCE else place
            table = _table(["head", "points", "95 % interval", "p (Holm)", "so it is"], left=1)
            for p in pairs:
                if p.domain == place and p.metric == "accuracy":
                    interval = f"{100 * p.low:+.1f} to {100 * p.high:+.1f}"
                    difference = f"{100 * p.difference:+.1f}"
                    table.add_row(p.head, difference, interval, f"{p.p_holm:.3f}", p.verdict)
            title = f"accuracy against {pairs[0].baseline} on {where}, {backbone}"
            lines += ["", title, _render(table)]
    return lines


def _score(values: Mapping[Any, float], domain: str, role: str) -> str:
    accuracy = values.get((domain, role, "accuracy"))
    auroc = values.get((domain, role, "auroc"))
    return f"{_number(accuracy)} / {_number(auroc)}"


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
