"""Features that are treated as they are taken: no treated copy of them all is held.

A comparison of many heads on many rows would otherwise hold the features twice before any
head has begun. To treat rows again for each fit costs milliseconds a thousand rows.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from sklearn.preprocessing import FunctionTransformer

from pipeline.heads.blocks import row_blocks, rows_in_blocks

Which = slice | NDArray[np.intp]


class TreatedRows:
    """Some rows of a feature matrix under a fitted treatment.

    ``rows[at]`` is a new float32 array, as of an array of shape ``shape``.

    Args:
        X: Features as the backbone gave them, shape ``(N, d)``.
        rows: Which of them, row numbers of shape ``(n,)``.
        treatment: Fitted; see :func:`fit_treatment`.
    """

    def __init__(self, X: NDArray[np.float32], rows: NDArray[np.intp], treatment: Any) -> None:
        self.X, self.rows, self.treatment = X, rows, treatment
        self.shape: tuple[int, int] = (len(rows), treatment.transform(X[rows[:1]]).shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """Numbers in all rows."""
        return len(self.rows) * self.shape[1]

    def __getitem__(self, at: Which) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.take(at, np.float32)
        return found

    def of(self, at: Which) -> "TreatedRows":
        """The rows ``at``, not yet taken."""
        return TreatedRows(self.X, self.rows[at], self.treatment)

    def take(self, at: Which, dtype: DTypeLike) -> NDArray[Any]:
        """The rows ``at`` in a dtype, shape ``(len(at), d')``."""
        rows = self.rows[at]
        found = np.empty((len(rows), self.shape[1]), dtype)
        for block in row_blocks((len(rows), self.X.shape[1])):
            found[block] = self.treatment.transform(self.X[rows[block]])
        return found


def untreated(X: NDArray[np.float32]) -> TreatedRows:
    """All rows of ``(n, d)`` as they are."""
    return TreatedRows(X, np.arange(len(X)), FunctionTransformer())


def fit_treatment(treatment: Any, X: NDArray[np.float32], rows: NDArray[np.intp]) -> Any:
    """Fit a treatment to some rows, a block at a time where it can be.

    Args:
        treatment: Unfitted; see :func:`pipeline.heads.treatments.make_treatment`.
        X: Features, shape ``(N, d)``.
        rows: Row numbers, shape ``(n,)``.
    """
    if not hasattr(treatment, "partial_fit"):
        return treatment.fit(X[rows])
    for some in rows_in_blocks(X, rows):
        treatment.partial_fit(X[some])
    return treatment
