"""Folders, patterns and splits that look like a mistake: warnings, and what is refused."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.items import Item
from pipeline.data.layouts import splits_below_classes, wrong_layout
from pipeline.data.patients import FIT, VALIDATION
from pipeline.errors import StudyError
from pipeline.study import HEADER, Domain
from pipeline.words import counted, have, printable

_LOG = logging.getLogger(__name__)
#: Images from which on one patient with half of them is suspicious.
_ENOUGH = 10
#: A pattern that finds no patient in more than this share of the images is a wrong one.
_MOST = 0.5
#: Warn where validation holds less than this share of what was asked for, or more than its
#: inverse.
_FAR = 2 / 3
#: Names of folders that hold splits, and classes below them.
_SPLITS = {"fit", "train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def check_layout(domain: Domain, items: Sequence[Item]) -> None:
    """Refuse class folders that would be read as other classes or other images than are meant.

    Splits in the class folders are a warning.

    Raises:
        StudyError: With the line of the study file that corrects it.
    """
    layout = wrong_layout(items)
    if layout is not None and layout.silent:
        raise StudyError(
            f"{domain.name}: in {domain.path} {layout.text}. Write {layout.setting(domain.path)}, "
            "or ignore = [] if it is meant as it is"
        )
    if splits := splits_below_classes(items):
        _LOG.warning(
            "%s: the class folders are divided into %s; all of their images are taken. To leave "
            'one out, write for example ignore = ["*/%s/*"]',
            *(domain.name, ", ".join(splits), splits[-1]),
        )


def layout_hint(domain: Domain, items: Sequence[Item]) -> str:
    """What the layout of a domain's folder says about an error in its classes, or nothing."""
    layout = wrong_layout(items)
    if layout is None:
        return ""
    return f". In {domain.path} {layout.text}: perhaps {layout.setting(domain.path)} is meant"


def check_pattern(domain: Domain, paths: Sequence[str], patients: Sequence[str | None]) -> None:
    """Refuse a way to find patients that finds none in most images.

    Args:
        domain: Whose images they are.
        paths: Of the images.
        patients: What was found for each, None for nothing.

    Raises:
        StudyError: More than half of the images have no patient, where some are asked for.
    """
    unknown = [path for path, patient in zip(paths, patients, strict=True) if patient is None]
    column = domain.table is not None and "patient" in domain.table.columns
    if (domain.group is None and not column) or len(unknown) <= _MOST * len(paths):
        return
    where = (
        "It is the patient id in the header of DICOM files"
        if domain.group == HEADER
        else "It is a column of the table"
        if domain.group is None
        else "It is searched in the file's name, and with a / in it in the path below the domain's "
        "folder"
    )
    raise StudyError(
        f"{domain.name}: group = {domain.group or 'the column'!r} finds no patient in "
        f"{len(unknown)} of {counted(len(paths), 'image')}; first: {printable(unknown[0])}. "
        f"{where}. Correct it, or take it out if nobody knows the patients"
    )


def warn_patients(domain: Domain, paths: Sequence[str], patients: Sequence[str | None]) -> None:
    """Warn where patients are not known, or where one has too many images.

    Args:
        domain: Whose images they are.
        paths: Of the images.
        patients: What was found for each, None for nothing.
    """
    unknown = [path for path, patient in zip(paths, patients, strict=True) if patient is None]
    if domain.group is None and len(unknown) == len(paths):
        _LOG.warning(
            "%s: no `group` pattern, so every image counts as its own patient; two images of one "
            "patient may stand on both sides of the split",
            domain.name,
        )
        return
    if unknown:
        _LOG.warning(
            "%s: %d of %d names do not match the group pattern, each counts as its own patient; "
            "first: %s",
            *(domain.name, len(unknown), len(paths), unknown[0]),
        )
    counts = Counter(patient for patient in patients if patient is not None)
    for patient, images in counts.most_common(1):
        if _ENOUGH <= len(paths) <= 2 * images:
            _LOG.warning(
                "%s: %d of %d images are of one patient, %s: does the group pattern take the whole "
                "of a patient's id?",
                *(domain.name, images, len(paths), printable(patient)),
            )


def check_splits(label: NDArray[np.int64], split: NDArray[np.str_], classes: Sequence[str]) -> None:
    """Refuse a given division that leaves a class out of fit or validation.

    Args:
        label: Shape ``(n,)``, of the source.
        split: Of each.
        classes: Names.

    Raises:
        StudyError: With the class and the part.
    """
    for part in (FIT, VALIDATION):
        if missing := sorted(set(range(len(classes))) - set(label[split == part].tolist())):
            raise StudyError(
                f"source: the {part} part of the given division has no image of class "
                f"{printable(classes[missing[0]])!r}. Give a share instead, such as "
                "validation = 0.2, without split"
            )


def warn_given(group: Sequence[str], split: NDArray[np.str_]) -> None:
    """Warn where a patient, or a copy of an image, is in both parts of a given division.

    Args:
        group: ``n`` patients of the source; images that are equal have one.
        split: Of each.
    """
    fit, held_out = (
        {p for p, s in zip(group, split, strict=True) if s == part} for part in (FIT, VALIDATION)
    )
    if both := fit & held_out:
        _LOG.warning(
            "source: %s %s images in both fit and validation of the given division, so the numbers "
            "of validation are too good; validation = 0.2 without split divides by patient",
            *(counted(len(both), "patient"), have(len(both))),
        )


def warn_classes(classes: Sequence[str]) -> None:
    """Warn where the classes are called like splits."""
    if {name.casefold() for name in classes} <= _SPLITS:
        _LOG.warning(
            "the classes are %s, which are names of splits: let the path of [source] be one of "
            "these folders if the classes lie within them",
            ", ".join(map(printable, classes)),
        )


def warn_folds(
    classes: Sequence[str], label: NDArray[np.int64], group: Sequence[str], split: NDArray[np.str_]
) -> None:
    """Warn of classes that have one patient in the fit split, so that no fold can omit one.

    Args:
        classes: Names.
        label: Shape ``(n,)``.
        group: ``n`` patients.
        split: Of each.
    """
    fit = split == FIT
    pairs = {*zip(label[fit].tolist(), np.asarray(group)[fit].tolist(), strict=True)}
    patients = Counter(k for k, _ in pairs)
    single = [printable(name) for k, name in enumerate(classes) if patients[k] == 1]
    if single:
        _LOG.warning(
            "one patient in the fit split has all images of %s: heads whose parameters are chosen "
            "by folds of patients need two, so most will fail; add images of other patients",
            ", ".join(single),
        )


def warn_share(share: float, split: NDArray[np.str_]) -> None:
    """Warn where validation is far from the share of the source's images asked for."""
    actual = float((split == VALIDATION).mean())
    if not _FAR <= actual / share <= 1 / _FAR:
        _LOG.warning(
            "source: validation holds %.0f %% of the images where %.0f %% were asked for, because "
            "patients stay whole and are few or large",
            *(100 * actual, 100 * share),
        )
