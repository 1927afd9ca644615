"""The audit: all checks of a study that must come before any of its numbers.

Leaks between roles, labels that contradict each other or are doubtful, hospitals and
labels that can be told from what should not tell them. Each image is read once, for its
facts, and those of the contact sheet once more; all else comes from the store.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.audit.contact_sheet import SIDE, SheetPair, draw, empty
from pipeline.audit.label_noise import check_labels
from pipeline.audit.near_copy_scores import WithAndWithout, with_and_without
from pipeline.audit.shortcuts import MASKED, check_facts, check_hospital, check_masked
from pipeline.data.images import PixelPolicy
from pipeline.data.index import FactsIndex, measure_missing
from pipeline.data.leaks import (
    NOTE,
    SEVERITIES,
    Finding,
    NearPair,
    check_leaks,
    check_near_copies,
    near_rows,
    roles_of,
)
from pipeline.data.samples import SampleOptions, Samples, as_file, load_samples, read_exclusions
from pipeline.data.sources import read_image
from pipeline.errors import ImageError, MissingFeaturesError
from pipeline.features.load import FeatureTable, load_features
from pipeline.progress import Progress
from pipeline.study import BackboneChoice, Study
from pipeline.words import are, counted

_LOG = logging.getLogger(__name__)
AUDIT_REPORT = "audit.json"
CONTACT_SHEET = "near_copies.png"
#: Names of near copies outside fit, for the study's ``exclude``.
LEAVE_OUT = "leave_out.txt"
SCHEMA = 2
#: Pairs on the contact sheet; the report has all.
_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How the audit runs.

    Attributes:
        probes: Whether border and corners are asked; their features must be stored.
        samples: What of the samples is accepted. An audit lists leaks and conflicts
            instead of stopping at the first.
    """

    probes: bool = True
    samples: SampleOptions = field(
        default_factory=lambda: SampleOptions(allow_conflicts=True, allow_leaks=True)
    )


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What all checks found, the worst first.

    Attributes:
        near_copies: Number, and both images, of each pair; JSON values.
        scores: Of the linear head, where stage 2 has been run and near copies were found.
        leave_out: Near copies outside fit, and what the study excludes already.
        measured: Images whose facts were not known before.
    """

    study: str
    images: int
    findings: tuple[Finding, ...]
    near_copies: tuple[Mapping[str, Any], ...]
    scores: tuple[WithAndWithout, ...]
    leave_out: tuple[str, ...]
    measured: int
    seconds: float


def probed(study: Study) -> Study:
    """The same study with its first backbone behind each mask of the probes.

    The whole picture is always stretched, or a crop would cut the border away again.
    """
    first = replace(study.backbones[0], resize="stretch")
    return replace(study, backbones=tuple(replace(first, mask=mask) for mask in MASKED))


def audit(study: Study, options: AuditOptions | None = None) -> AuditReport:
    """Run all checks of a study.

    Returns:
        The report; also written to ``results/<study>/audit.json``. Beside it, where there are
        near copies, a contact sheet of the first, and a list for the study's ``exclude``.

    Raises:
        MissingFeaturesError: Stage 1 has not been run.
    """
    options = options or AuditOptions()
    start = time.perf_counter()
    disk.check_writable(study.results)
    samples, _ = load_samples(study, options.samples)
    joined = [load_features(study, choice, samples) for choice in study.backbones]
    first, facts, measured = _with_facts(study, joined[0])
    near = check_near_copies(first.samples, first.X, facts)
    findings = [
        *check_leaks(study, first.samples, facts),
        *near.findings,
        *(f for j in joined for f in check_hospital(j.samples, j.X, j.backbone)),
        *check_facts(first.samples, facts),
        *check_labels(first.samples, first.X),
    ]
    if options.probes:
        for choice in probed(study).backbones:
            findings += _masked(study, choice, samples)
    report = AuditReport(
        study=study.name,
        images=len(first.samples),
        findings=tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        near_copies=_listed(first.samples, near.pairs),
        scores=with_and_without(study, first.samples, near.pairs),
        leave_out=_leave_out(study, first.samples, near.pairs),
        measured=measured,
        seconds=round(time.perf_counter() - start, 2),
    )
    _write(study, report, _sheet(first.samples, near.pairs[:_PAIRS]))
    return report


def _with_facts(study: Study, joined: FeatureTable) -> tuple[FeatureTable, NDArray[Any], int]:
    """The samples whose facts can be had, those facts, and how many were measured now."""
    samples, index = joined.samples, FactsIndex(study.store_root)
    missing = sum(key not in index for key in set(samples.key))
    with Progress("facts") as progress:
        reasons = measure_missing(index, samples.key, samples.items, progress)
    if reasons:
        _LOG.warning(
            "%s %s left out, as facts cannot be had; first: %s",
            *(counted(len(reasons), "image"), are(len(reasons)), next(iter(reasons.values()))),
        )
    here = np.array([key not in reasons for key in samples.key])
    usable = replace(joined, samples=samples.where(here), X=joined.X[here])
    return usable, index.facts(usable.samples.key), missing - len(reasons)


def _masked(study: Study, choice: BackboneChoice, samples: Samples) -> list[Finding]:
    try:
        joined = load_features(study, choice, samples)
    except MissingFeaturesError:
        return [
            Finding(
                check=MASKED[choice.mask][0],
                severity=NOTE,
                where="all domains",
                found="not asked: the masked pictures have no features yet",
                advice="Run headrace audit with --probes",
            )
        ]
    return check_masked(joined.samples, joined.X, choice.mask)


def _listed(samples: Samples, pairs: Sequence[NearPair]) -> tuple[Mapping[str, Any], ...]:
    roles = roles_of(samples)

    def image(row: int) -> Mapping[str, Any]:
        return {
            "path": samples.name_of(row),
            "role": str(roles[row]),
            "label": samples.class_of(row),
        }

    return tuple(
        {
            "number": number,
            "images": [image(row) for row in pair.rows],
            "cosine": pair.cosine,
            "bits": pair.bits,
        }
        for number, pair in enumerate(pairs, start=1)
    )


def _leave_out(study: Study, samples: Samples, pairs: Sequence[NearPair]) -> tuple[str, ...]:
    """A study may exclude this very list, so what it excludes already stays in it."""
    near = [samples.name_of(row) for row in np.flatnonzero(near_rows(samples, pairs)).tolist()]
    before = () if study.exclude is None else read_exclusions(study.exclude)
    return tuple(sorted({*before, *near}))


def _sheet(samples: Samples, pairs: Sequence[NearPair]) -> bytes | None:
    """Drawn of what can still be read."""
    if not pairs:
        return None
    roles = roles_of(samples)

    def picture(row: int) -> NDArray[np.uint8]:
        try:
            return read_image(samples.items[row]).pixels(PixelPolicy(size=SIDE))
        except ImageError:
            return empty()

    def caption(row: int) -> str:
        return f"{roles[row]}: {samples.class_of(row)}"

    return draw(
        [
            SheetPair(
                pixels=(picture(pair.rows[0]), picture(pair.rows[1])),
                lines=(
                    f"{number}. cosine {pair.cosine:.3f}, {pair.bits} of 64 bits differ",
                    " | ".join(caption(row) for row in pair.rows),
                ),
            )
            for number, pair in enumerate(pairs, start=1)
        ]
    )


def _write(study: Study, report: AuditReport, sheet: bytes | None) -> None:
    disk.make_dir(study.results)
    names = as_file(report.leave_out) if report.leave_out or study.exclude else None
    for name, content in ((CONTACT_SHEET, sheet), (LEAVE_OUT, names)):
        if content is None:
            disk.unlink(study.results / name)  # an older one would show what is no more
        else:
            disk.publish(study.results / name, content)
    text = json.dumps(to_json(report), indent=1, allow_nan=False)
    disk.publish(study.results / AUDIT_REPORT, text.encode())


def to_json(report: AuditReport) -> dict[str, Any]:
    """The report as JSON values; the schema's version is in it."""
    found = Counter(finding.severity for finding in report.findings)
    values = asdict(report)
    return {
        "schema": SCHEMA,
        "study": report.study,
        "counts": {severity: found[severity] for severity in SEVERITIES},
        **{name: value for name, value in values.items() if name != "study"},
    }
