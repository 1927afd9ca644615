"""What looks like a mistake in a study's folders or patterns: said, and not refused."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import FIT, VALIDATION
from pipeline.study import Domain
from pipeline.words import printable

_LOG = logging.getLogger(__name__)
#: Images from which on one patient with half of them is suspicious.
_ENOUGH = 10
#: A validation split of less than this share of what was asked for, or of more than its
#: inverse, is said.
_FAR = 2 / 3
#: Names of folders that hold splits, and classes below them.
_SPLITS = {"fit", "train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def warn_patients(domain: Domain, paths: Sequence[str], found: Sequence[str | None]) -> None:
    """Say where patients are not known, or where one has too many images.

    Args:
        domain: Whose images they are.
        paths: Of the images.
        found: What the group pattern found in each, None for nothing.
    """
    if domain.group is None:
        _LOG.warning(
            "%s: no `group` pattern, so every image counts as its own patient; two images of one "
            "patient may stand on both sides of the split",
            domain.name,
        )
        return
    alone = [path for path, patient in zip(paths, found, strict=True) if patient is None]
    if alone:
        _LOG.warning(
            "%s: %d of %d names do not match the group pattern, each counts as its own patient; "
            "first: %s",
            domain.name,
            len(alone),
            len(found),
            alone[0],
        )
    counts = Counter(patient for patient in found if patient is not None)
    for patient, images in counts.most_common(1):
        if _ENOUGH <= len(found) <= 2 * images:
            _LOG.warning(
                "%s: %d of %d images are of one patient, %s: does the group pattern take the whole "
                "of a patient's id?",
                domain.name,
                images,
                len(found),
                printable(patient),
            )


def warn_classes(classes: Sequence[str]) -> None:
    """Say where the classes are called like splits."""
    if {name.casefold() for name in classes} <= _SPLITS:
        _LOG.warning(
            "the classes are %s, which are names of splits: let the path of [source] be one of "
            "these folders if the classes lie within them",
            ", ".join(map(printable, classes)),
        )


def warn_folds(
    classes: Sequence[str], label: NDArray[np.int64], group: Sequence[str], split: NDArray[np.str_]
) -> None:
    """Say which classes have one patient in the fit split, so that no fold can leave one out.

    Args:
        classes: Names.
        label: Shape ``(n,)``.
        group: ``n`` patients.
        split: Of each.
    """
    fit = split == FIT
    pairs = {*zip(label[fit].tolist(), np.asarray(group)[fit].tolist(), strict=True)}
    patients = Counter(k for k, _ in pairs)
    lone = [printable(name) for k, name in enumerate(classes) if patients[k] == 1]
    if lone:
        _LOG.warning(
            "one patient in the fit split has all images of %s: heads whose parameters are chosen "
            "by folds of patients need two, so most will fail; add images of other patients",
            ", ".join(lone),
        )


def warn_share(asked: float, split: NDArray[np.str_]) -> None:
    """Say where validation is far from the share of the source's images asked for."""
    got = float((split == VALIDATION).mean())
    if not _FAR <= got / asked <= 1 / _FAR:
        _LOG.warning(
            "source: validation holds %.0f %% of the images where %.0f %% were asked for, because "
            "patients stay whole and are few or large",
            100 * got,
            100 * asked,
        )
