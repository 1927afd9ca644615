"""Leaks: patients, images or near duplicates that are in two splits at once.

The splits are fit and validation of the source, and each target. For each two all evidence is
joined: equal patient ids, identical images, near duplicates, equal file names.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index import stored_measures
from pipeline.data.near_duplicates import DuplicatePair, stored_duplicates
from pipeline.data.patients import TARGET, unknown_patients
from pipeline.data.samples import HOW_TO_EXCLUDE, Samples
from pipeline.errors import CheckFailedError
from pipeline.study import SOURCE, Study
from pipeline.words import are, counted, first_of

#: The worst first. A leak makes numbers wrong; a warning may explain good numbers; a note is
#: worth knowing; ok is a check that found nothing.
LEAK, WARNING, NOTE, OK = SEVERITIES = ("leak", "warning", "note", "ok")
#: Names of the checks in this file.
_OVERLAP, _PATIENTS, _COPIES, _CONFLICTS = ("overlap", "patients", "copies", "label conflicts")

_ALL_IMAGES = "all images"
_OF_SOURCE = f"{SOURCE} "
#: This many near duplicates may be chance if neither patient nor file name agrees.
_BY_CHANCE = 2


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check; one line of an audit.

    Attributes:
        check: Name of the check.
        severity: One of ``SEVERITIES``.
        where: The splits or the domain that it is about.
        text: The result, a sentence with numbers and without names of images.
        examples: The first few images that it is about; a name can be a patient's.
        advice: What to do next; empty if there is nothing to do.
        share: How large the effect may be, 0 to 1: the share of images concerned, or how far an
            AUC is from chance towards certainty. Results are sorted by it.
        values: The numbers and lists behind the sentence, JSON values.
    """

    check: str
    severity: str
    where: str
    text: str
    examples: str = ""
    advice: str = ""
    share: float = 0.0
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two splits have in common.

    Attributes:
        result: The result about these splits.
        includes_source: Whether a head is fitted or chosen in one of the splits.
        near: Near duplicates.
        rows: Images of the second split that the first split has already; fit and validation come
            first.
    """

    result: CheckResult
    includes_source: bool
    near: tuple[DuplicatePair, ...]
    rows: NDArray[np.intp]


def impossible(check: str, where: str, reason: Exception) -> CheckResult:
    """A note that a check was not possible, and why."""
    return CheckResult(check=check, severity=NOTE, where=where, text=f"cannot be tested: {reason}")


def labelled_domains(samples: Samples) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and rows, shape ``(m,)``, of each domain whose images have labels."""
    for name in dict.fromkeys(samples.domain.tolist()):
        rows = samples.domain == name
        if samples.labelled[rows].all():
            yield name, rows


def find_leaks(study: Study, samples: Samples) -> list[CheckResult]:
    """The leaks that can be found without reading images; after an audit these are all leaks."""
    measures = stored_measures(study.store_root, samples.key)
    results, _ = check_leaks(study, samples, measures)
    return [result for result in results if result.severity == LEAK]


def refuse_leaks(results: Iterable[CheckResult]) -> None:
    """Raise a CheckFailedError that names every leak, if there is one."""
    leaks = [result for result in results if result.severity == LEAK]
    if not leaks:
        return
    texts = "; ".join(
        f"{leak.where}: {leak.text}{leak.examples and ': '}{leak.examples}" for leak in leaks
    )
    go_on = "--allow-leaks lets heads, finetune and shift go on all the same"
    raise CheckFailedError(f"{texts}. {leaks[0].advice}; {go_on}")


def check_leaks(
    study: Study, samples: Samples, measures: NDArray[Any] | None = None
) -> tuple[list[CheckResult], list[Overlap]]:
    """Check for patients and images in two splits.

    Without ``measures``, records of dtype ``MEASURES`` (n,), only files with equal bytes count as
    one image.

    Returns:
        The results; and the overlap of each two splits that have anything in common.
    """
    splits, ids = split_names(samples), image_ids(samples, measures)
    near: tuple[DuplicatePair, ...] = ()
    if measures is not None:
        pairs = stored_duplicates(study.store_root, measures["small"], splits, patients_of(samples))
        near = tuple(pair for pair in pairs if ids[pair.rows[0]] != ids[pair.rows[1]])
    rows_of = _rows_by_split(splits)
    tests = {target.name for target in study.targets if target.is_source_test}
    of_source = {split for split in rows_of if split in tests or split.startswith(_OF_SOURCE)}
    compared = (
        _overlap(samples, splits, ids, near, (a, b), same_people={a, b} <= of_source)
        for a, b in combinations(rows_of, 2)
    )
    overlaps = [overlap for overlap in compared if overlap is not None]
    seen = counted(np.unique(patients_of(samples)).size, "patient")
    none = _passed(_OVERLAP, f"no patient and no image is in two splits ({seen})")
    results = [overlap.result for overlap in overlaps] or [none]
    for domain in study.domains:
        results += _check_patient_ids(domain.name, samples)
    results += _check_copies(samples, rows_of, ids)
    results.append(_check_conflicts(samples, ids))
    return results, overlaps


# Roles and identities.


def split_names(samples: Samples) -> NDArray[np.str_]:
    """Split of each image, shape ``(n,)``; no target can have the name of a source split."""
    of_source = np.array([f"{SOURCE} {split}" for split in samples.split])
    return np.where(samples.split == TARGET, samples.domain, of_source)


def patients_of(samples: Samples) -> NDArray[np.str_]:
    """Patients of all domains, shape ``(n,)``: an id is one person within a domain only."""
    return np.char.add(np.char.add(samples.domain, "|"), samples.group)


def image_ids(samples: Samples, measures: NDArray[Any] | None) -> NDArray[np.str_]:
    """An id that is equal for identical images, shape ``(n,)``: the digest of the pixels.

    Without measures it is the content key, which is equal only for files with equal bytes.
    """
    keys = samples.key if measures is None else measures["pixels"]
    return np.array([bytes(key).hex() for key in keys])


def _rows_by_split(splits: NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
    """Rows of each split: fit, validation, then the targets, whichever image comes first."""
    present = dict.fromkeys(splits.tolist())
    of_source = sorted(split for split in present if split.startswith(_OF_SOURCE))
    names = [*of_source, *(split for split in present if split not in of_source)]
    return {name: np.flatnonzero(splits == name) for name in names}


# What two splits have in common.


def _overlap(
    samples: Samples,
    splits: NDArray[np.str_],
    ids: NDArray[np.str_],
    near: Sequence[DuplicatePair],
    two_splits: tuple[str, str],
    *,
    same_people: bool,
) -> Overlap | None:
    first, second = (np.flatnonzero(splits == split) for split in two_splits)
    row_of = {ids[row]: row for row in first.tolist()}
    copies = [(row_of[ids[row]], row) for row in second.tolist() if ids[row] in row_of]
    near = tuple(pair for pair in near if {*splits[[*pair.rows]].tolist()} == {*two_splits})
    patients = np.intersect1d(_named_patients(samples, first), _named_patients(samples, second))
    counts = len(copies), len(near), patients.size
    if not any(counts):
        return None
    pairs = [*copies, *(pair.rows for pair in near)]
    names = [PurePosixPath(item.path).name for item in samples.items]
    same_id = [samples.group[a] == samples.group[b] for a, b in pairs]
    is_joined = any(same_id) or any(names[a] == names[b] for a, b in pairs)
    leaked = np.isin(second, [row for pair in pairs for row in pair])
    if same_people or any(same_id):  # an id is one person: all their images leak
        leaked |= np.isin(samples.group[second], patients)
    includes_source = two_splits[0].startswith(_OF_SOURCE)
    if not pairs:  # ids of two data sets say nothing where no image is in both
        severity = LEAK if same_people and includes_source else NOTE
    elif not includes_source:  # two targets are each scored rightly; they are not independent
        severity = WARNING
    else:
        sure = copies or is_joined or len(near) > _BY_CHANCE or (same_people and patients.size)
        severity = LEAK if sure else WARNING
    person = "patient" if same_people else "patient id"
    nouns = "identical image", "near duplicate", person
    listed = [counted(n, noun) for n, noun in zip(counts, nouns, strict=True) if n]
    result = CheckResult(
        check=_OVERLAP,
        severity=severity,
        where=" and ".join(two_splits),
        text=f"{' and '.join(listed)} {are(sum(counts))} in both",
        examples=first_of(samples.names_of(pairs)),
        advice=_ADVICE[severity],
        share=float(leaked.mean()) if pairs or same_people else 0.0,
    )
    return Overlap(result=result, includes_source=includes_source, near=near, rows=second[leaked])


def _named_patients(samples: Samples, rows: NDArray[np.intp]) -> NDArray[np.str_]:
    """The patients of some images; an image that counts as its own patient has none."""
    named = [row for row in rows.tolist() if samples.group[row] != samples.items[row].path]
    return np.unique(samples.group[named])


_ADVICE = {
    LEAK: f"Heads learn from these images before they are scored on them. {HOW_TO_EXCLUDE}",
    WARNING: f"Look at near_duplicates.png. If it shows the same patients, {HOW_TO_EXCLUDE}",
    NOTE: "Two data sets may use the same numbers, and no image is in both. If these are the "
    "same patients, remove them from one of the two",
}


def _check_patient_ids(domain: str, samples: Samples) -> Iterator[CheckResult]:
    rows = np.flatnonzero(samples.domain == domain)
    count = sum(samples.group[row] == samples.items[row].path for row in rows.tolist())
    if not count:
        return
    yield CheckResult(
        check=_PATIENTS,
        severity=WARNING,
        where=domain,
        text=unknown_patients(count, rows.size),
        advice="Write `group` in the study so that it finds the patient of every image. Until "
        "then, images of one patient may be in two splits, and intervals may be too short",
        share=count / rows.size,
    )


def _check_copies(
    samples: Samples, rows_of: Mapping[str, NDArray[np.intp]], ids: NDArray[np.str_]
) -> Iterator[CheckResult]:
    """Check for the same image twice in one split, which then counts twice."""
    for split, rows in rows_of.items():
        by_id = defaultdict[str, list[int]](list)
        for row in rows.tolist():
            by_id[str(ids[row])].append(row)
        copied = [same for same in by_id.values() if len(same) > 1]
        if not copied:
            continue
        extra = sum(len(same) - 1 for same in copied)
        yield CheckResult(
            check=_COPIES,
            severity=NOTE,
            where=split,
            text=f"{counted(extra, 'image')} {are(extra)} a copy of another, with equal pixels",
            examples=first_of(samples.names_of(copied)),
            advice="Each copy counts as an image of its own. Remove copies if you do not want that",
            share=extra / rows.size,
        )


def _check_conflicts(samples: Samples, ids: NDArray[np.str_]) -> CheckResult:
    """Check for the same image under two labels, one of which is wrong."""
    conflicts = samples.conflicts(ids.tolist())
    if not conflicts:
        return _passed(_CONFLICTS, "copies of one image have one label")
    return CheckResult(
        check=_CONFLICTS,
        severity=WARNING,
        where=_ALL_IMAGES,
        text=f"{counted(len(conflicts), 'image')} with several labels",
        examples=first_of(samples.names_of(conflicts)),
        advice=f"Remove the images with the wrong label, or all of them: {HOW_TO_EXCLUDE}",
        share=sum(map(len, conflicts)) / len(samples),
    )


def _passed(check: str, text: str) -> CheckResult:
    return CheckResult(check=check, severity=OK, where=_ALL_IMAGES, text=text)
