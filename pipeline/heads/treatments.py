"""What is done to features before a head sees them: one table.

A treatment is fitted on the fit split alone and travels with the head that was fitted on
what it gave.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.blocks import scatter

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
