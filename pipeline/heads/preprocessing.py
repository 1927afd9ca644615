"""Rows of a matrix a block at a time: float64 answers without a float64 copy of it all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

#: Elements of one block: 32 MB as float64.
_BLOCK = 4 << 20


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices that cover the rows of an array of this shape ``(n, d)``, in order."""
    step = max(1, _BLOCK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(shape[0], start + step))


def rows_in_blocks(
    X: Any, rows: NDArray[np.intp] | None = None
) -> Iterator[slice | NDArray[np.intp]]:
    """What ``X`` is to be indexed with to get a block of its rows after the other.

    Args:
        X: Shape ``(N, d)``.
        rows: Row numbers, shape ``(n,)``; None: all.
    """
    if rows is None:
        yield from row_blocks(X.shape)
    else:
        yield from (rows[block] for block in row_blocks((len(rows), X.shape[1])))


def times(X: NDArray[np.floating], w: NDArray[np.floating]) -> NDArray[np.float64]:
    """``X @ w`` in float64; shapes ``(n, d)`` and ``(d, k)``."""
    found = np.empty((len(X), w.shape[1]))
    for rows in row_blocks(X.shape):
        found[rows] = X[rows].astype(np.float64) @ w
    return found


def transposed_times(X: NDArray[np.floating], v: NDArray[Any]) -> NDArray[np.float64]:
    """``X.T @ v`` in float64; shapes ``(n, d)`` and ``(n, k)``."""
    found = np.zeros((X.shape[1], v.shape[1]))
    for rows in row_blocks(X.shape):
        found += X[rows].T.astype(np.float64) @ v[rows]
    return found


def scatter(
    X: NDArray[np.floating], middle: NDArray[np.float64], rows: NDArray[np.intp] | None = None
) -> NDArray[np.float64]:
    """Sum of the outer products of rows less ``middle``, shape ``(d, d)``.

    Args:
        X: Features, shape ``(N, d)``.
        middle: Shape ``(d,)``.
        rows: Row numbers, shape ``(n,)``; None: all.
    """
    found = np.zeros((X.shape[1], X.shape[1]))
    for some in rows_in_blocks(X, rows):
        centred = X[some] - middle
        found += centred.T @ centred
    return found


def predict_in_blocks(
    head: Any, X: Any, rows: NDArray[np.intp] | None = None
) -> NDArray[np.float64]:
    """A classifier's probabilities ``(n, K)``.

    Args:
        head: Fitted.
        X: Features, shape ``(N, d)``; whatever gives rows as an array does.
        rows: Row numbers, shape ``(n,)``; None: all.
    """
    return np.concatenate([head.predict_proba(X[some]) for some in rows_in_blocks(X, rows)])


# What is done to features before a head sees them: one table.


DEFAULT = "standardise"
#: Directions beyond this share of the variance are noise that whitening would blow up.
_VARIANCE = 0.99


class BlockScaler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """One number for each block of columns, so that joined backbones weigh the same.

    Args:
        widths: Columns of each block, in order.

    Attributes:
        scale_: Root mean variance of each block's columns, repeated, shape ``(d,)``.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = widths

    def fit(self, X: ArrayLike, _y: object = None) -> Self:
        """Learn from features ``(n, d)``."""
        rows = validate_data(self, X, dtype=np.float32)
        variances = np.split(rows.var(axis=0, dtype=np.float64), np.cumsum(self.widths)[:-1])
        scales = [np.sqrt(v.mean()) or 1.0 for v in variances]
        self.scale_ = np.repeat(scales, self.widths).astype(np.float32)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Features ``(n, d)`` with every block at the same scale."""
        check_is_fitted(self)
        rows: NDArray[np.float32] = validate_data(self, X, dtype=np.float32, reset=False)
        return rows / self.scale_


class Whitener(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Principal components at unit variance: scikit-learn's ``PCA(whiten=True)``, in blocks.

    That one holds three more matrices of the features' size.

    Args:
        share: Of the variance that the kept components have, in (0, 1].

    Attributes:
        mean_: Shape ``(d,)``.
        components_: Unit vectors, the largest variance first, shape ``(d', d)``.
        scale_: Standard deviation along each, over ``n - 1``, shape ``(d',)``.
    """

    def __init__(self, share: float = _VARIANCE) -> None:
        self.share = share

    def fit(self, X: ArrayLike, _y: object = None) -> Self:
        """Learn from features ``(n, d)``.

        Raises:
            ValueError: Not finite, or all rows are equal.
        """
        rows = validate_data(self, X, dtype=np.float32)
        mean = rows.mean(axis=0, dtype=np.float64)
        values, vectors = eigh(scatter(rows, mean) / max(1, len(rows) - 1), overwrite_a=True)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        if not values[0] > 0:
            raise ValueError(f"{len(rows)} rows without variance: there is nothing to whiten")
        told = np.cumsum(values) / values.sum()
        # Of d directions of fewer rows the last ones are rounding errors.
        count = min(int(np.searchsorted(told, self.share)) + 1, *rows.shape)
        self.mean_ = mean.astype(np.float32)
        self.components_ = np.ascontiguousarray(vectors[:, :count].T, np.float32)
        self.scale_ = np.sqrt(values[:count]).astype(np.float32)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Features ``(n, d)`` as whitened components ``(n, d')``."""
        check_is_fitted(self)
        rows: NDArray[np.float32] = validate_data(self, X, dtype=np.float32, reset=False)
        found = rows @ self.components_.T - self.mean_ @ self.components_.T
        return np.asarray(found / self.scale_)


#: To add a treatment: one line here; it makes an unfitted scikit-learn transformer.
TREATMENTS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "standardise": StandardScaler,
        "none": FunctionTransformer,
        "l2": Normalizer,
        "pca_whiten": Whitener,
    }
)


def make_treatment(name: str, widths: Sequence[int]) -> Any:
    """An unfitted treatment of features whose backbones have these widths.

    Several backbones are brought to one scale first; to standardise is to do so already.
    """
    treatment = TREATMENTS[name]()
    if len(widths) > 1 and name != DEFAULT:
        return make_pipeline(BlockScaler(tuple(widths)), treatment)
    return treatment


def label_of(head: str, treatment: str) -> str:
    """How a head on treated features is called in tables and files: ``linear@l2``."""
    return head if treatment == DEFAULT else f"{head}@{treatment}"


# Features that are treated as they are taken: no treated copy of them all is held.


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
        treatment: Unfitted; see :func:`pipeline.heads.preprocessing.make_treatment`.
        X: Features, shape ``(N, d)``.
        rows: Row numbers, shape ``(n,)``.
    """
    if not hasattr(treatment, "partial_fit"):
        return treatment.fit(X[rows])
    for some in rows_in_blocks(X, rows):
        treatment.partial_fit(X[some])
    return treatment
