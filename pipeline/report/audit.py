"""What the audit found: the worst first, what to do about it below."""

from collections.abc import Iterator

from pipeline.report.table import Column, Part, Record, Table
from pipeline.words import counted

_OK = "ok"
_PAIRS = 5


def tables(record: Record) -> list[Part]:
    """The parts of a report on ``audit.json``."""
    findings = record["findings"]
    severities = [s for s in record["counts"] if record["counts"][s] and s != _OK]
    parts: list[Part] = [_severity(record, severity) for severity in severities]
    parts += _advice(findings)
    if fine := [f"{f['check']} ({f['where']})" for f in findings if f["severity"] == _OK]:
        parts.append(f"These checks found nothing: {'; '.join(fine)}.")
    parts += _near_copies(record)
    parts.append(summary(record))
    return parts


def summary(record: Record) -> str:
    """How many checks of each severity, in a sentence."""
    counts = record["counts"]
    kinds = [
        counted(n, "check passed" if s == _OK else s, "checks passed" if s == _OK else "")
        for s, n in counts.items()
        if n
    ]
    leaks = "" if counts["leak"] else "No leak was found. "
    return f"{leaks}{counted(record['images'], 'image')}: {', '.join(kinds)}."


def _severity(record: Record, severity: str) -> Table:
    findings = [f for f in record["findings"] if f["severity"] == severity]
    named = any(f["examples"] for f in findings)
    return Table(
        counted(len(findings), severity),
        (Column("check"), Column("where"), Column("found", field="text")),
        findings,
        notes=("The images are named in audit.json.",) if named else (),
    )


def _advice(findings: list[Record]) -> Iterator[str]:
    """Each advice once, with the checks that it is about."""
    advice: dict[str, list[str]] = {}
    for f in findings:
        if f["advice"] and f["check"] not in advice.setdefault(f["advice"], []):
            advice[f["advice"]].append(f["check"])
    yield from (f"{', '.join(checks)}: {text}." for text, checks in advice.items())


def _near_copies(record: Record) -> Iterator[Part]:
    pairs = record["near_copies"]
    if not pairs:
        return
    more = len(pairs) - _PAIRS
    files = f"near_copies.png in results/{record['study']} shows them side by side."

    def named(image: Record) -> str:
        return f"{image['path']} ({image['role']}, {image['label']})"

    yield Table(
        "Pairs of nearly equal images in different roles, most alike first",
        (Column("image"), Column("other image"), Column("how"), Column("likeness", "number")),
        [
            {**pair, "image": named(pair["images"][0]), "other image": named(pair["images"][1])}
            for pair in pairs[:_PAIRS]
        ],
        notes=(*([f"{more} more pairs are in audit.json."] if more > 0 else []), files),
    )
