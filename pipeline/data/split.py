"""The split of the source into fit and validation, by patient or as the data came.

A split by patient depends on the seed and on each patient's id alone, not on the order or
number of the others' images, so it stays (nearly) the same when images are added.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import FIT, VALIDATION, one_patient_hint
from pipeline.errors import StudyError
from pipeline.study import SourceDomain
from pipeline.words import counted, have, printable

_LOG = logging.getLogger(__name__)


def split_source(
    source: SourceDomain,
    label: NDArray[np.int64],
    group: Sequence[str],
    *,
    given: NDArray[np.str_],
    classes: Sequence[str],
    seed: int,
) -> NDArray[np.str_]:
    """Divide the source, and say what is unusual about its parts.

    Args:
        source: How it is divided.
        label: Shape ``(n,)``.
        group: ``n`` patients; images that are equal have one.
        given: The part of each image that came with the data, shape ``(n,)``.
        classes: Names in label order.
        seed: Of the study.

    Returns:
        ``fit`` or ``validation``, shape ``(n,)``; ``fit`` throughout a source without labels.

    Raises:
        StudyError: A class cannot be on both sides, or is not.
    """
    if not source.labelled:
        return np.full(len(label), FIT)
    if isinstance(source.validation, float) and not source.is_given:
        split = split_by_patient(label, group, share=source.validation, seed=seed, names=classes)
    else:
        split = given
        _check_splits(label, split, classes)
        _warn_given(group, split)
    return split


def _check_splits(
    label: NDArray[np.int64], split: NDArray[np.str_], classes: Sequence[str]
) -> None:
    """Refuse a given division that leaves a class out of fit or validation."""
    for part in (FIT, VALIDATION):
        if missing := sorted(set(range(len(classes))) - set(label[split == part].tolist())):
            raise StudyError(
                f"source: the {part} part of the given division has no image of class "
                f"{printable(classes[missing[0]])!r}. Give a share instead, such as "
                "validation = 0.2, without split"
            )


def _warn_given(group: Sequence[str], split: NDArray[np.str_]) -> None:
    """Warn where a patient, or a copy of an image, is in both parts of a given division."""
    fit, held_out = (
        {p for p, s in zip(group, split, strict=True) if s == part} for part in (FIT, VALIDATION)
    )
    if both := fit & held_out:
        _LOG.warning(
            "source: %s %s images in both fit and validation of the given division, so the numbers "
            "of validation are too good; validation = 0.2 without split divides by patient",
            *(counted(len(both), "patient"), have(len(both))),
        )


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
    for patient in classes:
        strata[tuple(sorted(classes[patient]))].append(patient)
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
    _check_both_splits(label, group, split, names)
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
    total = Counter(k for mixture in classes.values() for k in mixture)
    held = Counter(k for patient in held_out for k in classes[patient])
    chosen: set[str] = set()

    def hold_out(patients: list[str]) -> None:
        chosen.update(patients)
        held.update(k for patient in patients for k in classes[patient])

    waiting = rare
    while waiting:
        left = Counter(k for patient in waiting for k in classes[patient])
        k = min(left, key=lambda k: (left[k], k))
        of_class = [patient for patient in waiting if k in classes[patient]]
        stays = left[k] + held[k] == total[k]  # one at least has to stay in fit
        wanted = min(max(1, round(share * total[k])) - held[k], len(of_class) - stays)
        hold_out(of_class[: max(0, wanted)])
        waiting = [patient for patient in waiting if k not in classes[patient]]
    for k in sorted(total):
        if not held[k]:  # rarer classes have used all its patients
            spare = [p for p in rare if k in classes[p] and _spares(classes[p], total - held)]
            hold_out(spare[:1])
    return chosen


def _spares(mixture: set[int], fit: Counter[int]) -> bool:
    """Whether each of these classes keeps a patient in fit when it loses one."""
    return all(fit[k] > 1 for k in mixture)


def _check_both_splits(
    label: NDArray[np.int64],
    group: Sequence[str],
    split: NDArray[np.str_],
    names: Sequence[str],
) -> None:
    for k in np.unique(label).tolist():
        if len(set(split[label == k])) < 2:
            patients = len({p for p, c in zip(group, label.tolist(), strict=True) if c == k})
            name = repr(printable(names[k])) if names else f"number {k}"
            why = "too few to" if patients == 1 else "and with this seed they do not"
            seed = "" if patients == 1 else ", or take another seed"
            raise StudyError(
                f"class {name} of [source] has images of {counted(patients, 'patient')}, {why} "
                f"stand on both sides of a split by patient. Add images of others{seed}; "
                f"{one_patient_hint('source')}"
            )


def _draw(seed: int, patient: str) -> bytes:
    """A random rank that depends on nothing but the seed, the purpose and the patient."""
    text = f"{seed}|validation|{patient}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
