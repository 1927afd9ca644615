"""Divide and draw the patients of a labelled domain so that every head is taught every class.

A class of a few patients can lie whole in one fold, or be missed by a draw; a head that is
fitted to the rest has never seen it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from pipeline.errors import StudyError
from pipeline.heads.folds import Fold, patient_folds


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
