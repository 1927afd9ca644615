"""What is done to features before a head is fitted to them: one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnknownNameError
from pipeline.heads import late
from pipeline.heads.base import Standardiser

STANDARDISE = "standardise"
#: Elements of one block of rows: 8 MB as float64.
_BLOCK = 1 << 20


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices that cover the rows of an array of this shape ``(n, d)``, in order."""
    step = max(1, _BLOCK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(shape[0], start + step))


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


#: To add one: a line here, which makes an unfitted transformer: one of scikit-learn's, or one
#: with its ``fit`` and ``transform``, whose type is then named in ``objects.TRUSTED``.
PREPROCESSING: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        STANDARDISE: Standardiser,
        "none": late("sklearn.preprocessing.FunctionTransformer"),
        "l2": late("sklearn.preprocessing.Normalizer"),
        # Directions beyond 99 % of the variance are noise that whitening would blow up.
        "pca_whiten": partial(
            late("sklearn.decomposition.PCA"),
            n_components=0.99,
            whiten=True,
            svd_solver="covariance_eigh",
        ),
    }
)


def make_preprocessing(name: str, widths: Sequence[int]) -> Any:
    """An unfitted transformer of features whose backbones have these widths.

    Of several backbones the columns are standardised first, so that all weigh the same.

    Raises:
        UnknownNameError: No such preprocessing; the message lists the table.
    """
    if name not in PREPROCESSING:
        raise UnknownNameError("preprocessing", name, PREPROCESSING)
    standardiser = Standardiser(tuple(widths))
    if name == STANDARDISE:
        return standardiser
    transformer = PREPROCESSING[name]()
    if len(widths) == 1 or name == "none":
        return transformer
    return late("sklearn.pipeline.make_pipeline")(standardiser, transformer)
