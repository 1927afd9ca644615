"""The audit: all checks of a study that must come before any of its numbers.

Leaks between roles, labels that contradict each other, hospitals and labels that can be
told from what should not tell them. Each image is read once, for its facts, and those of
the contact sheet once more; all else comes from the store.
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
from pipeline.confounders import MASKED, check_facts, check_hospital, check_masked
from pipeline.contact_sheet import SIDE, SheetPair, draw, empty
from pipeline.errors import ImageError, MissingFeaturesError, MissingPredictionsError
from pipeline.facts_index import FactsIndex, measure_missing
from pipeline.finding import NOTE, SEVERITIES, Finding
from pipeline.images import PixelPolicy
from pipeline.joined import JoinedFeatures, load_joined
from pipeline.leak_checks import check_leaks, check_near_copies, near_rows, roles_of, shown
from pipeline.metrics import is_right
from pipeline.predictions import PROBABILITIES, read_predictions
from pipeline.progress import Progress
from pipeline.samples import SampleOptions, Samples
from pipeline.shift.leaks import NearPair
from pipeline.sources import read
from pipeline.stats import wilson
from pipeline.study import BackboneChoice, Study

_LOG = logging.getLogger(__name__)
AUDIT_REPORT = "audit.json"
CONTACT_SHEET = "near_copies.png"
SCHEMA = 1
#: Pairs on the contact sheet; the report has all.
_PAIRS = 20
#: Whose accuracy is given with and without near copies.
_HEAD = ("linear", 0)


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
class Score:
    """Accuracy of a head on one role, of ``n`` images, with its Wilson interval."""

    role: str
    n: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class WithAndWithout:
    """What near copies are worth on one role."""

    backbone: str
    everything: Score
    without_near_copies: Score


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What all checks found, the worst first.

    Attributes:
        near_copies: Number, and both images, of each pair; JSON values.
        accuracy: Of the linear head, where stage 2 has been run and near copies were found.
        measured: Images whose facts were not known before.
    """

    study: str
    images: int
    findings: tuple[Finding, ...]
    near_copies: tuple[Mapping[str, Any], ...]
    accuracy: tuple[WithAndWithout, ...]
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
        The report; also written to ``results/<study>/audit.json``, with a contact sheet
        of the first near copies beside it.

    Raises:
        MissingFeaturesError: Stage 1 has not been run.
    """
    options = options or AuditOptions()
    start = time.perf_counter()
    disk.probe(study.results)
    joined = [load_joined(study, choice, options.samples) for choice in study.backbones]
    first, facts, measured = _with_facts(study, joined[0])
    near = check_near_copies(first.samples, first.X, facts)
    findings = [
        *check_leaks(study, first.samples, facts),
        *near.findings,
        *(f for j in joined for f in check_hospital(j.samples, j.X, j.backbone)),
        *check_facts(first.samples, facts),
    ]
    if options.probes:
        for choice in probed(study).backbones:
            findings += _masked(study, choice, options)
    report = AuditReport(
        study=study.name,
        images=len(first.samples),
        findings=tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        near_copies=_listed(first.samples, near.pairs),
        accuracy=_with_and_without(study, first.samples, near.pairs),
        measured=measured,
        seconds=round(time.perf_counter() - start, 2),
    )
    _write(study, report, _sheet(first.samples, near.pairs[:_PAIRS]))
    return report


def _with_facts(study: Study, joined: JoinedFeatures) -> tuple[JoinedFeatures, NDArray[Any], int]:
    """The samples whose facts can be had, those facts, and how many were measured now."""
    samples, index = joined.samples, FactsIndex(study.store_root)
    missing = sum(key not in index for key in set(samples.key))
    with Progress("facts") as progress:
        reasons = measure_missing(index, samples.key, samples.items, progress)
    if reasons:
        _LOG.warning(
            "%d images are left out, their facts cannot be had; first: %s",
            len(reasons),
            next(iter(reasons.values())),
        )
    here = np.array([key not in reasons for key in samples.key])
    usable = replace(joined, samples=samples.where(here), X=joined.X[here])
    return usable, index.facts(usable.samples.key), missing - len(reasons)


def _masked(study: Study, choice: BackboneChoice, options: AuditOptions) -> list[Finding]:
    try:
        joined = load_joined(study, choice, options.samples)
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
            "path": shown(samples, row),
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


def _with_and_without(
    study: Study, samples: Samples, pairs: Sequence[NearPair]
) -> tuple[WithAndWithout, ...]:
    """Accuracy with and without the images that have a near copy in fit."""
    marked = near_rows(samples, pairs) & samples.labelled
    if not marked.any():
        return ()
    try:
        predictions = read_predictions(study.results / PROBABILITIES)
    except MissingPredictionsError:
        return ()
    roles = roles_of(samples)
    found = []
    for backbone, kept in predictions.items():
        proba = kept.proba.get(_HEAD)
        if proba is None:
            continue
        row_of = {bytes(key): row for row, key in enumerate(kept.key)}
        known = np.array([key in row_of for key in samples.key])
        rows = [row_of.get(key, 0) for key in samples.key]
        right = np.zeros(len(samples), np.bool_)
        labelled = samples.labelled
        asked = np.asarray(proba[rows], np.float64)[labelled]
        right[labelled] = is_right(samples.label[labelled], asked)
        for role in dict.fromkeys(roles[marked].tolist()):
            here = known & (roles == role)
            if (here & ~marked).any():
                found.append(
                    WithAndWithout(
                        backbone=backbone,
                        everything=_score(role, right[here]),
                        without_near_copies=_score(role, right[here & ~marked]),
                    )
                )
    return tuple(found)


def _score(role: str, right: NDArray[np.bool_]) -> Score:
    low, high = wilson(int(right.sum()), len(right))
    return Score(role=role, n=len(right), accuracy=float(right.mean()), low=low, high=high)


def _sheet(samples: Samples, pairs: Sequence[NearPair]) -> bytes | None:
    """Drawn of what can still be read."""
    if not pairs:
        return None
    roles = roles_of(samples)

    def picture(row: int) -> NDArray[np.uint8]:
        try:
            return read(samples.items[row]).pixels(PixelPolicy(size=SIDE))
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
    if sheet is None:
        disk.unlink(study.results / CONTACT_SHEET)  # an older one would show what is no more
    else:
        disk.publish(study.results / CONTACT_SHEET, sheet)
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
