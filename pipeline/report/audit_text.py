"""An audit as text for a terminal: the worst first, what to do below it."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from pipeline.audit.near_copy_scores import Score
from pipeline.audit.stage import AUDIT_REPORT, CONTACT_SHEET, LEAVE_OUT, AuditReport
from pipeline.data.leaks import SEVERITIES, Finding
from pipeline.words import counted

_WIDTH = 110
_NEAR_SHOWN = 5


def audit_text(report: AuditReport) -> str:
    """Findings by severity, then the near copies and what they are worth."""
    lines = []
    for severity, found in groupby(report.findings, key=lambda finding: finding.severity):
        lines += [severity.upper(), *(line for f in found for line in _finding(f)), ""]
    lines += [*_near_copies(report), _summary(report)]
    return "\n".join(lines)


def _finding(finding: Finding) -> Iterator[str]:
    yield from _wrapped(f"{finding.check} ({finding.where}): {finding.told}", "  ", "    ")
    if finding.advice:
        yield from _wrapped(f"-> {finding.advice}", "    ", "       ")


def _near_copies(report: AuditReport) -> list[str]:
    if not report.near_copies:
        return []
    lines = ["NEAR COPIES, the most alike first"]
    for pair in report.near_copies[:_NEAR_SHOWN]:
        one, other = (f"{image['path']} ({image['label']})" for image in pair["images"])
        lines.append(
            f"  {pair['number']}. {one} ~ {other}: cosine {pair['cosine']:.3f}, {pair['bits']} bits"
        )
    if len(report.near_copies) > _NEAR_SHOWN:
        lines.append(f"  and {len(report.near_copies) - _NEAR_SHOWN} more in {AUDIT_REPORT}")
    lines.append(f"  side by side in results/{report.study}/{CONTACT_SHEET}")
    if report.leave_out:
        file = f"results/{report.study}/{LEAVE_OUT}"
        lines.append(
            f"  those outside fit are in {file}; a study leaves them out by exclude = FILE"
        )
    for row in report.scores:
        for said, score in (
            ("with", row.everything),
            ("without near copies of fit", row.without_near_copies),
        ):
            lines.append(f"  linear head, {row.backbone}, {score.role}, {said}: {_score(score)}")
    return [*lines, ""]


def _summary(report: AuditReport) -> str:
    counts = Counter(finding.severity for finding in report.findings)
    found = ", ".join(f"{counts[s]} {s}" for s in SEVERITIES if counts[s])
    return (
        f"{counted(report.images, 'image')}, {report.measured} measured now, "
        f"{report.seconds:.1f} s: {found}; all of it is in results/{report.study}/{AUDIT_REPORT}"
    )


def _score(score: Score) -> str:
    area = "" if score.auroc is None else f", AUROC {score.auroc:.3f}"
    accuracy = f"accuracy {score.accuracy:.3f} ({score.low:.3f} to {score.high:.3f})"
    return f"{accuracy}{area}, {counted(score.n, 'image')}"


def _wrapped(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False
    )
