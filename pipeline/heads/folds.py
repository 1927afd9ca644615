"""Inner folds by patient, for everything that is chosen or calibrated."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

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
    if patients < 2:  # noqa: PLR2004 - in the fold and out of it
        raise ValueError("a class has images of one patient alone: folds of patients need two")
    folds = StratifiedGroupKFold(min(FOLDS, patients), shuffle=True, random_state=seed)
    return list(folds.split(np.zeros((len(y), 1)), y, group))
