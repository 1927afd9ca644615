"""Patients, and the split of the source by patient: pure functions.

The split depends on the seed and on each patient's id alone, not on the order or
number of the others' images, so it stays (nearly) the same when images are added.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from pipeline.errors import StudyError
from pipeline.words import counted, printable

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

    Patients whose mixture of classes is rare, so that its share would be less than one of
    them, are divided class by class instead, see :func:`_by_rarest_class`.

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
    rare: list[str] = []
    for mixture, patients in strata.items():
        patients.sort(key=lambda patient: _draw(seed, patient))
        if len(mixture) > 1 and share * len(patients) < 1:
            rare += patients
        else:
            held_out.update(patients[: _cut([images[p] for p in patients], share)])
    rare.sort(key=lambda patient: _draw(seed, patient))
    held_out |= _by_rarest_class(rare, classes, held_out, share)
    split = np.array([VALIDATION if patient in held_out else FIT for patient in group])
    _check_both_sides(label, group, split, names)
    return split


def _cut(sizes: list[int], share: float) -> int:
    """How many patients from the front come closest to the share; one stays behind."""
    filled = np.cumsum(sizes)
    best = int(np.abs(filled - share * filled[-1]).argmin()) + 1
    return min(best, len(sizes) - 1)


def _by_rarest_class(
    rare: list[str], classes: Mapping[str, set[int]], held_out: set[str], share: float
) -> set[str]:
    """Who is held out of patients with rare mixtures (iterative stratification).

    The class with the fewest patients left is divided first, so that none is used up by
    more frequent ones (Sechidis, Tsoumakas and Vlahavas 2011).

    Args:
        rare: In the order in which they are drawn.
        classes: Of every patient.
        held_out: Patients that are held out already.
        share: Share of the patients of each class that validation should have.
    """
    total = Counter(k for found in classes.values() for k in found)
    held = Counter(k for patient in held_out for k in classes[patient])
    chosen: set[str] = set()

    def hold_out(patients: list[str]) -> None:
        chosen.update(patients)
        held.update(k for patient in patients for k in classes[patient])

    waiting = rare
    while waiting:
        left = Counter(k for patient in waiting for k in classes[patient])
        k = min(left, key=lambda k: (left[k], k))
        those = [patient for patient in waiting if k in classes[patient]]
        stays = left[k] + held[k] == total[k]  # one at least has to learn from
        wanted = min(max(1, round(share * total[k])) - held[k], len(those) - stays)
        hold_out(those[: max(0, wanted)])
        waiting = [patient for patient in waiting if k not in classes[patient]]
    for k in sorted(total):
        if not held[k]:  # rarer classes have used all its patients
            spare = [p for p in rare if k in classes[p] and _spares(classes[p], total - held)]
            hold_out(spare[:1])
    return chosen


def _spares(mixture: set[int], fit: Counter[int]) -> bool:
    """Whether each of these classes keeps a patient to learn from when it loses one."""
    return all(fit[k] > 1 for k in mixture)


def _check_both_sides(
    label: NDArray[np.int64],
    group: Sequence[str],
    split: NDArray[np.str_],
    names: Sequence[str],
) -> None:
    for k in np.unique(label).tolist():
        if len(set(split[label == k])) < 2:
            patients = len({p for p, own in zip(group, label, strict=True) if own == k})
            name = repr(printable(names[k])) if names else f"number {k}"
            why = "too few to" if patients == 1 else "and with this seed they do not"
            seed = "" if patients == 1 else ", or take another seed"
            raise StudyError(
                f"class {name} of [source] has images of {counted(patients, 'patient')}, {why} "
                f"stand on both sides of a split by patient. Add images of others{seed}; "
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


# Inner folds by patient, for everything that is chosen or calibrated.


FOLDS = 5
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


def patient_folds(y: NDArray[np.integer], group: NDArray[Any], seed: int) -> list[Fold]:
    """Row numbers (in, out) of each fold; no patient is in two, and all rows are out once.

    Args:
        y: Labels, shape ``(n,)``.
        group: Patients, shape ``(n,)``.
        seed: Of the deal.

    Raises:
        ValueError: A class has fewer patients than two.
    """
    patients = min(len(np.unique(group[y == k])) for k in np.unique(y))
    if patients < 2:
        raise ValueError("a class has images of one patient alone: folds of patients need two")
    folds = StratifiedGroupKFold(min(FOLDS, patients), shuffle=True, random_state=seed)
    return list(folds.split(np.zeros((len(y), 1)), y, group))


# Divide and draw the patients of a labelled domain so that every head is taught every class.


def teaching_folds(labels: NDArray[np.integer], groups: NDArray[Any], most: int) -> list[Fold]:
    """Row numbers (in, out) of folds by patient, each class in every ``in``.

    Folds of equal size where they serve, else stratified ones.

    Args:
        labels: Shape (n,), classes.
        groups: Shape (n,), patient ids.
        most: How many folds where there are patients enough.

    Raises:
        StudyError: A class lies in one fold however it is dealt.
    """
    n_folds = min(most, np.unique(groups).size)
    if n_folds > 1:
        plain = list(GroupKFold(n_folds).split(labels, groups=groups))
        if _all_taught(labels, plain):
            return plain
    try:
        stratified = patient_folds(labels, groups, seed=0)
    except ValueError as error:
        raise StudyError(str(error)) from error
    if not _all_taught(labels, stratified):
        raise StudyError("a class has too few patients of its own: a fold has them all")
    return stratified


def _all_taught(labels: NDArray[np.integer], folds: list[Fold]) -> bool:
    classes = np.unique(labels).size
    return all(np.unique(labels[rows]).size == classes for rows, _ in folds)


def drawn_patients(
    labels: NDArray[np.integer], groups: NDArray[Any], rng: np.random.Generator, count: int
) -> NDArray[np.int64]:
    """Draw as many patients as there are, with replacement; without a class, draw anew.

    Args:
        labels: Shape (n,), 0 to K - 1, every class present.
        groups: Shape (n,), patient ids.
        rng: Source of the draws.
        count: Number of draws.

    Returns:
        Shape (count, n): how often each row was drawn.
    """
    patients = np.unique(groups, return_inverse=True)[1]
    n = int(patients.max()) + 1
    classes = np.eye(int(labels.max()) + 1, dtype=np.int64)[labels]
    drawn: list[NDArray[np.int64]] = []
    while len(drawn) < count:
        weights = rng.multinomial(n, np.full(n, 1 / n))[patients]
        if (weights @ classes > 0).all():
            drawn.append(weights)
    return np.stack(drawn)
