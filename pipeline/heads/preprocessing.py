"""What is done to features before a head is fitted to them: one table."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.errors import UnknownNameError
from pipeline.heads.base import row_blocks

STANDARDISE = "standardise"


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


def fit_in_blocks(transformer: Any, X: NDArray[np.float32], rows: NDArray[np.intp]) -> Any:
    """Fit a transformer to some rows of ``(N, d)``, a block at a time where it can be."""
    if not hasattr(transformer, "partial_fit"):
        return transformer.fit(X[rows])
    for block in row_blocks((len(rows), X.shape[1])):
        transformer.partial_fit(X[rows[block]])
    return transformer


def transform_in_blocks(
    transformer: Any, X: NDArray[np.float32], rows: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Some rows of ``(N, d)`` transformed, ``(n, d')``: nothing else of that size is held."""
    out: NDArray[np.float32] | None = None
    for block in row_blocks((len(rows), X.shape[1])):
        part = transformer.transform(X[rows[block]])
        if out is None:
            out = np.empty((len(rows), part.shape[1]), np.float32)
        out[block] = part
    return np.empty((0, X.shape[1]), np.float32) if out is None else out


def _pca_whiten() -> PCA:
    """Directions beyond 99 % of the variance are noise that whitening would blow up."""
    return PCA(n_components=0.99, whiten=True, svd_solver="covariance_eigh")


#: To add one: a line here; it makes an unfitted scikit-learn transformer.
PREPROCESSING: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        STANDARDISE: StandardScaler,
        "none": FunctionTransformer,
        "l2": Normalizer,
        "pca_whiten": _pca_whiten,
    }
)


def make_preprocessing(name: str, widths: Sequence[int]) -> Any:
    """An unfitted transformer of features whose backbones have these widths.

    Several backbones are brought to one scale first; to standardise is to do so already.

    Raises:
        UnknownNameError: No such preprocessing; the message lists the table.
    """
    if name not in PREPROCESSING:
        raise UnknownNameError("preprocessing", name, PREPROCESSING)
    transformer = PREPROCESSING[name]()
    if len(widths) > 1 and name != STANDARDISE:
        return make_pipeline(BlockScaler(tuple(widths)), transformer)
    return transformer
