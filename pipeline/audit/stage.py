"""The audit: all checks of a study that should be done before any of its numbers is believed.

Each image is read once, for its measures; those on the contact sheet are read once more. All else
comes from the store.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.audit.label_noise import LABELS, label_checks
from pipeline.audit.shortcuts import (
    MASKED,
    MEASURES,
    Job,
    domain_tests,
    mask_tests,
    measure_tests,
    results_of,
    untested,
    with_permutations,
)
from pipeline.data.images import SHEET_SIDE, Pixels, SheetEntry, Transform, draw_sheet
from pipeline.data.index import MeasureIndex
from pipeline.data.items import read_lines
from pipeline.data.leaks import (
    LEAK,
    NOTE,
    SEVERITIES,
    WARNING,
    CheckResult,
    Overlap,
    check_leaks,
    image_ids,
    split_names,
)
from pipeline.data.near_duplicates import DuplicatePair
from pipeline.data.samples import ALL_IMAGES, Samples, load_samples
from pipeline.data.sources import read_image
from pipeline.errors import ImageError, MissingFeaturesError, record_failure
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.features.load import FeatureTable, feature_tables, load_features
from pipeline.parallel import run_parallel
from pipeline.progress import Progress
from pipeline.results import write_set
from pipeline.study import Study
from pipeline.words import are, counted

_LOG = logging.getLogger(__name__)
AUDIT_REPORT = "audit.json"
CONTACT_SHEET = "near_duplicates.png"
SCHEMA = 5
#: Pairs on the contact sheet; the record holds all pairs.
_ON_SHEET = 20
#: Shown instead of an image that can no longer be read.
_GREY = 200


def masked_study(study: Study) -> Study:
    """The same study, with the first backbone once for each mask of the shortcut tests.

    The whole image is always stretched, because a crop would cut the border away again.
    """
    first = replace(study.backbones[0], resize="stretch", decode="cpu", views=1)
    return replace(study, backbones=tuple(replace(first, mask=mask) for mask in MASKED))


def audit(
    study: Study, *, shortcuts: bool = True, engine: EngineChoice | None = None
) -> dict[str, Any]:
    """Run all checks of a study.

    Args:
        study: A study whose features are stored.
        shortcuts: Whether border and corners are tested, see :func:`masked_study`.
        engine: Computes the features of masked images that are not stored; None: the tests
            that need them are left out.

    Returns:
        The record, which is also written to ``results/<study>/audit.json``: ``results``, the
        worst first; their ``counts`` by severity; ``near_duplicates``; ``leave_out``, the images
        that should not be scored, with those that the study excludes already; ``measured``, the
        number of images whose measures were not stored before. A contact sheet of the first near
        duplicates is written beside it.

    Raises:
        MissingFeaturesError: Stage 1 has not been run.
    """
    start = time.perf_counter()
    disk.prepare(study.results)
    samples, _ = load_samples(study, ALL_IMAGES)
    loaded = dict(feature_tables(replace(study, concatenations=()), samples))
    tables = [table for table in loaded.values() if isinstance(table, FeatureTable)]
    failures = [(n, reason) for n, reason in loaded.items() if isinstance(reason, Exception)]
    failures += tables[0].samples.failures.items()  # a target may have the name of a backbone
    if shortcuts and engine is not None:
        with record_failure("masked images", {}):
            extract(masked_study(study), engine, report="features_masked.json")
    first, measures, measured = _measure_images(study, tables[0])
    used = first.samples
    leaks, shared = check_leaks(study, used, measures)
    masked, missing = _mask_tests(study, tables[0].samples) if shortcuts else ([], [])
    jobs = [job for table in tables for job in domain_tests(table)]
    jobs = with_permutations([*jobs, *measure_tests(used, measures), *masked])
    checks = label_checks(used, first.X)
    with Progress("tests", len(jobs) + len(checks), unit="tests") as progress:
        done: list[Any] = run_parallel([*jobs, *checks], done=progress.advance)
    tests, labels = done[: len(jobs)], done[len(jobs) :]
    of_masks = [test.check for test in tests[len(jobs) - len(masked) :]]
    unchecked = [
        CheckResult(check="all checks", severity=WARNING, where=part, text=f"not checked: {reason}")
        for part, reason in failures
    ]
    results = [
        *leaks,
        *results_of(tests),
        *labels,
        *untested(used, list(dict.fromkeys([MEASURES, LABELS, *of_masks]))),
        *missing,
        *unchecked,
    ]
    results.sort(key=lambda result: (SEVERITIES.index(result.severity), -result.share))
    counts = Counter(result.severity for result in results)
    pairs = [pair for overlap in shared for pair in overlap.near]
    record = {
        "schema": SCHEMA,
        "study": study.name,
        "counts": {severity: counts[severity] for severity in SEVERITIES},
        "images": len(used),
        "results": [asdict(result) for result in results],
        "near_duplicates": _listed_pairs(used, pairs),
        "leave_out": _leave_out(study, used, shared, measures),
        "measured": measured,
        "seconds": round(time.perf_counter() - start, 2),
    }
    sheet = _contact_sheet(used, pairs)
    files = {} if sheet is None else {CONTACT_SHEET: sheet}
    write_set(study.results / AUDIT_REPORT, record, files, owned=("near_*.png",))
    return record


def _measure_images(study: Study, table: FeatureTable) -> tuple[FeatureTable, NDArray[Any], int]:
    """The samples that can be measured, their measures, and how many were measured now."""
    samples, index = table.samples, MeasureIndex(study.store_root)
    missing = sum(key not in index for key in set(samples.key))
    with Progress("measures") as progress:
        reasons = index.measure(samples.key, samples.items, progress)
    if reasons:
        _LOG.warning(
            "%s %s left out, because their pixels cannot be measured; first: %s",
            *(counted(len(reasons), "image"), are(len(reasons)), next(iter(reasons.values()))),
        )
    measured = np.array([key not in reasons for key in samples.key])
    usable = replace(table, samples=samples.where(measured), X=table.X[measured])
    return usable, index.records(usable.samples.key), missing - len(reasons)


def _mask_tests(study: Study, samples: Samples) -> tuple[list[Job], list[CheckResult]]:
    """The tests of masked images, and a note for each mask without features."""
    tests: list[Job] = []
    missing = []
    for choice in masked_study(study).backbones:
        try:
            table = load_features(study, choice, samples)
            tests += mask_tests(table.samples, table.X, choice.mask)
        except MissingFeaturesError:
            missing.append(
                CheckResult(
                    check=MASKED[choice.mask][0],
                    severity=NOTE,
                    where="all domains",
                    text="not tested: the masked images have no features yet",
                    advice="Run `headrace audit STUDY` with --shortcuts",
                )
            )
    return tests, missing


# Near duplicates, and what should be left out.


def _listed_pairs(samples: Samples, pairs: Sequence[DuplicatePair]) -> list[dict[str, Any]]:
    """Number, both images, and similarity of each pair; JSON values."""
    splits = split_names(samples)

    def image(row: int) -> dict[str, str]:
        name, label = samples.name_of(row), samples.class_of(row)
        return {"path": name, "role": str(splits[row]), "label": label}

    return [
        {
            "number": number,
            "images": [image(row) for row in pair.rows],
            "similarity": pair.similarity,
            "how": pair.how,
        }
        for number, pair in enumerate(pairs, start=1)
    ]


def _leave_out(
    study: Study, samples: Samples, overlap: Sequence[Overlap], measures: NDArray[Any]
) -> list[str]:
    """Images that a head may know already, images with several labels, and excluded images.

    The study's ``exclude`` may name the resulting file.
    """
    rows: set[int] = set()
    for shared in overlap:
        if shared.includes_source and (shared.result.severity == LEAK or shared.near):
            rows.update(shared.rows.tolist())
    for conflicting in samples.conflicts(image_ids(samples, measures).tolist()):
        rows.update(conflicting)
    before = () if study.exclude is None else read_lines(study.exclude)
    return sorted({*before, *map(samples.name_of, rows)})


def _contact_sheet(samples: Samples, pairs: Sequence[DuplicatePair]) -> bytes | None:
    """A PNG file of the first pairs side by side, as far as they can be read; None: no pairs."""
    splits, transform = split_names(samples), Transform(size=SHEET_SIDE)

    def small(row: int) -> Pixels:
        try:
            return read_image(samples.items[row]).pixels(transform)
        except ImageError:
            return np.full((SHEET_SIDE, SHEET_SIDE, 3), _GREY, np.uint8)

    sheet: list[SheetEntry] = [
        (
            [small(row) for row in pair.rows],
            (
                f"{number}. {pair.how}, similarity {pair.similarity:.3f}",
                " | ".join(f"{splits[row]}: {samples.class_of(row)}" for row in pair.rows),
            ),
        )
        for number, pair in enumerate(pairs[:_ON_SHEET], start=1)
    ]
    return draw_sheet(sheet) if sheet else None
