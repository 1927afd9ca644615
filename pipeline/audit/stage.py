"""The audit: all checks of a study that must come before any of its numbers.

Leaks between roles, labels that contradict each other or are doubtful, domains and labels
that can be predicted from what should not show them. Each image is read once, for its facts,
and those of the contact sheet once more; all else comes from the store.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.label_noise import check_labels
from pipeline.audit.near_copies import (
    contact_sheet,
    listed_pairs,
    names_to_leave_out,
    scores_without,
)
from pipeline.audit.shortcuts import MASKED, check_domains, check_facts, check_masked
from pipeline.data.index import FactsIndex
from pipeline.data.leaks import NOTE, SEVERITIES, Finding, check_leaks, check_near_copies
from pipeline.data.samples import SampleOptions, Samples, exclusions_text, load_samples
from pipeline.errors import MissingFeaturesError
from pipeline.features.load import FeatureTable, load_features
from pipeline.progress import Progress
from pipeline.results import prepare, write_set
from pipeline.study import BackboneChoice, Study
from pipeline.words import are, counted

_LOG = logging.getLogger(__name__)
AUDIT_REPORT = "audit.json"
CONTACT_SHEET = "near_copies.png"
#: Names of near copies outside fit, for the study's ``exclude``.
LEAVE_OUT = "leave_out.txt"
SCHEMA = 3
#: An audit lists leaks and conflicts instead of stopping at the first.
SAMPLES = SampleOptions(allow_conflicts=True, allow_leaks=True)


def masked_study(study: Study) -> Study:
    """The same study with its first backbone behind each mask of the shortcut tests.

    The whole picture is always stretched, or a crop would cut the border away again.
    """
    first = replace(study.backbones[0], resize="stretch", decode="cpu")
    return replace(study, backbones=tuple(replace(first, mask=mask) for mask in MASKED))


def audit(study: Study, *, shortcuts: bool = True) -> dict[str, Any]:
    """Run all checks of a study.

    Args:
        study: Its features must be stored.
        shortcuts: Whether border and corners are tested; the features of the masked
            pictures must be stored, see :func:`masked_study`.

    Returns:
        The record, which is also written to ``results/<study>/audit.json``: ``findings``, the
        worst first; ``counts`` of them by severity; ``near_copies``; ``scores`` of the linear
        head with and without these; ``leave_out``, near copies outside fit and what the study
        excludes already; ``measured``, images whose facts were not stored before. Beside it,
        where there are near copies, a contact sheet of the first, and a list for the study's
        ``exclude``.

    Raises:
        MissingFeaturesError: Stage 1 has not been run.
    """
    start = time.perf_counter()
    prepare(study.results)
    samples, _ = load_samples(study, SAMPLES)
    tables = [load_features(study, choice, samples) for choice in study.backbones]
    first, facts, measured = _with_facts(study, tables[0])
    near_copies, near_findings = check_near_copies(first.samples, first.X, facts)
    findings = [
        *check_leaks(study, first.samples, facts),
        *near_findings,
        *(finding for table in tables for finding in check_domains(table)),
        *check_facts(first.samples, facts),
        *check_labels(first.samples, first.X),
    ]
    if shortcuts:
        for choice in masked_study(study).backbones:
            findings += _check_masked(study, choice, samples)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    counts = Counter(finding.severity for finding in findings)
    record = {
        "schema": SCHEMA,
        "study": study.name,
        "counts": {severity: counts[severity] for severity in SEVERITIES},
        "images": len(first.samples),
        "findings": [asdict(finding) for finding in findings],
        "near_copies": listed_pairs(first.samples, near_copies),
        "scores": scores_without(study, first.samples, near_copies),
        "leave_out": names_to_leave_out(study, first.samples, near_copies),
        "measured": measured,
        "seconds": round(time.perf_counter() - start, 2),
    }
    _write(study, record, contact_sheet(first.samples, near_copies))
    return record


def _with_facts(study: Study, table: FeatureTable) -> tuple[FeatureTable, NDArray[Any], int]:
    """The samples whose facts can be had, those facts, and how many were measured now."""
    samples, index = table.samples, FactsIndex(study.store_root)
    missing = sum(key not in index for key in set(samples.key))
    with Progress("facts") as progress:
        reasons = index.measure(samples.key, samples.items, progress)
    if reasons:
        _LOG.warning(
            "%s %s left out, as facts cannot be had; first: %s",
            *(counted(len(reasons), "image"), are(len(reasons)), next(iter(reasons.values()))),
        )
    measured = np.array([key not in reasons for key in samples.key])
    usable = replace(table, samples=samples.where(measured), X=table.X[measured])
    return usable, index.facts(usable.samples.key), missing - len(reasons)


def _check_masked(study: Study, choice: BackboneChoice, samples: Samples) -> list[Finding]:
    try:
        table = load_features(study, choice, samples)
    except MissingFeaturesError:
        return [
            Finding(
                check=MASKED[choice.mask][0],
                severity=NOTE,
                where="all domains",
                text="not tested: the masked pictures have no features yet",
                advice="Run headrace audit with --shortcuts",
            )
        ]
    return check_masked(table.samples, table.X, choice.mask)


def _write(study: Study, record: Mapping[str, Any], sheet: bytes | None) -> None:
    files = {} if sheet is None else {CONTACT_SHEET: sheet}
    if record["leave_out"] or study.exclude:
        files[LEAVE_OUT] = exclusions_text(record["leave_out"]).encode()
    write_set(study.results / AUDIT_REPORT, record, files, owned=(CONTACT_SHEET, LEAVE_OUT))
