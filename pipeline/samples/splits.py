"""Patients, and the split of the source by patient: pure functions.

The split depends on the seed and on each patient's id alone, not on the order or
number of the others' images, so it stays (nearly) the same when images are added.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.text.counts import counted
from pipeline.text.names import legible

FIT, VALIDATION, TARGET = "fit", "validation", "target"


def patient_of(path: str, pattern: str | None) -> str | None:
    """Patient id in a file's name: first group of the pattern, else the whole match.

    None when there is no pattern or it does not match.
    """
    found = pattern and re.search(pattern, PurePosixPath(path).name)
    if not found:
        return None
    return (found[1] if found.re.groups and found[1] is not None else found[0]) or None


def join_duplicates(group: Sequence[str], key: Sequence[bytes]) -> list[str]:
    """Give patients that share an identical image one common id, transitively.

    Otherwise one picture could stand on both sides of a split under two names.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    first: dict[bytes, str] = {}
    for patient, content in zip(group, key, strict=True):
        a, b = find(first.setdefault(content, patient)), find(patient)
        leader[max(a, b)] = min(a, b)
    return [find(patient) for patient in group]


def split_by_patient(
    label: NDArray[np.int64],
    group: Sequence[str],
    *,
    share: float,
    seed: int,
    names: Sequence[str] = (),
) -> NDArray[np.str_]:
    """Hold out whole patients, stratified by the classes that a patient's images have.

    Args:
        label: Shape ``(n,)``.
        group: ``n`` patient ids.
        share: Share of the images that validation should have in each stratum, in (0, 1).
        seed: Of the study.
        names: Of the classes in label order, for the message; their numbers where left out.

    Returns:
        ``fit`` or ``validation``, shape ``(n,)``.

    Raises:
        StudyError: A class has too few patients to be on both sides.
    """
    images = Counter(group)
    classes: dict[str, set[int]] = defaultdict(set)
    for patient, k in zip(group, label.tolist(), strict=True):
        classes[patient].add(k)
    strata: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for patient, found in classes.items():
        strata[tuple(sorted(found))].append(patient)
    held_out: set[str] = set()
    for patients in strata.values():
        patients.sort(key=lambda patient: _draw(seed, patient))
        held_out.update(patients[: _cut([images[p] for p in patients], share)])
    split = np.array([VALIDATION if patient in held_out else FIT for patient in group])
    _check_both_sides(label, group, split, names)
    return split


def _cut(sizes: list[int], share: float) -> int:
    """How many patients from the front come closest to the share; one stays behind."""
    filled = np.cumsum(sizes)
    best = int(np.abs(filled - share * filled[-1]).argmin()) + 1
    return min(best, len(sizes) - 1)


def _check_both_sides(
    label: NDArray[np.int64],
    group: Sequence[str],
    split: NDArray[np.str_],
    names: Sequence[str],
) -> None:
    for k in np.unique(label).tolist():
        if len(set(split[label == k])) < 2:  # noqa: PLR2004 - fit and validation
            patients = len({p for p, own in zip(group, label, strict=True) if own == k})
            name = repr(legible(names[k])) if names else f"number {k}"
            raise StudyError(
                f"class {name} of [source] has images of {counted(patients, 'patient')}, too few "
                "to stand on both sides of a split by patient. Add images of others; "
                f"{taken_for_one('source')}"
            )


def taken_for_one(table: str) -> str:
    """What else may be amiss where images are of too few patients.

    Args:
        table: Of the study file: ``source`` or ``target.NAME``.
    """
    return f"if these are of several patients, the group pattern of [{table}] takes them for one"


def _draw(seed: int, patient: str) -> bytes:
    """A random rank that depends on nothing but the seed, the purpose and the patient."""
    text = f"{seed}|validation|{patient}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
