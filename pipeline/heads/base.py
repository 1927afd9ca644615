"""The common parts of all heads: scikit-learn's contract, checks and preprocessing of features."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.heads import lazy_import

STANDARDISE = "standardise"
#: Elements of one block of rows: 8 MB as float64.
_BLOCK = 1 << 20


class Parameters:
    """scikit-learn's contract without scikit-learn, which takes a second to import.

    The constructor, that of a dataclass, stores its arguments; ``clone`` works.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002 - as there
        """Arguments of the constructor by name; ``deep`` makes no difference."""
        del deep
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **parameters: Any) -> Self:
        """Change some parameters.

        Raises:
            ValueError: The constructor has no such argument.
        """
        if unknown := parameters.keys() - self.get_params().keys():
            raise ValueError(f"{type(self).__name__} has no parameter {', '.join(sorted(unknown))}")
        vars(self).update(parameters)
        return self


class Head(Parameters):
    """A classifier with ``predict_proba`` whose fit sets ``classes_``.

    ``fit`` raises a ValueError for features that are not finite, shapes that do not fit, and
    labels of only one class.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        n_features_in_: Number of features that it was fitted to.
    """

    classes_: NDArray[Any]
    n_features_in_: int

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        raise NotImplementedError

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class of each row, shape ``(n,)``."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Accuracy on features ``(n, d)`` and labels ``(n,)``."""
        return float((self.predict(X) == np.asarray(y)).mean())

    def _rows_to_fit(
        self, X: ArrayLike, y: ArrayLike
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Checked features ``(n, d)`` and the class number of each row, ``(n,)``."""
        rows = _check_features(X)
        if len(rows) != len(np.asarray(y)):
            raise ValueError(f"{len(rows)} rows of features for {len(np.asarray(y))} labels")
        self.n_features_in_ = rows.shape[1]
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"one class only ({self.classes_[0]}); a head needs two or more")
        return rows, labels

    def _patients(self, groups: ArrayLike | None, n: int) -> NDArray[Any]:
        """Patients ``(n,)``; where none are given, each row is of one of its own."""
        return np.arange(n) if groups is None else np.asarray(groups)

    def _rows(self, X: ArrayLike) -> NDArray[np.float32]:
        """Checked features with the same number of columns as in the fit."""
        return _check_features(X, self.n_features_in_)


def _check_features(X: ArrayLike, width: int | None = None) -> NDArray[np.float32]:
    """Features ``(n, d)`` as float32.

    Raises:
        ValueError: The shape or width is wrong, or a value is not finite.
    """
    rows = np.asarray(X, np.float32)
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        raise ValueError(f"features of shape {rows.shape}; allowed: (rows, {width or 'columns'})")
    # One sum is enough, unless finite values add up to more than float32 can hold.
    if not np.isfinite(rows.sum()) and not np.isfinite(rows).all():
        raise ValueError("the features hold values that are not finite")
    return rows


class PriorHead(Head):
    """Predicts the class shares of the fit split for every image."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Count labels ``(n,)``."""
        _, labels = self._rows_to_fit(X, y)
        self.shares_ = np.bincount(labels) / len(labels)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The shares ``(n, K)`` for each row of features ``(n, d)``."""
        return np.tile(self.shares_, (len(self._rows(X)), 1))


@dataclass(eq=False)
class PreprocessedHead(Parameters):
    """A head with its preprocessing, as it is saved and used for predictions.

    Args:
        preprocessing: A transformer.
        head: A classifier with ``predict_proba``.
    """

    preprocessing: Any
    head: Any

    @property
    def classes_(self) -> NDArray[Any]:
        """Class labels, shape ``(K,)``."""
        return np.asarray(self.head.classes_)

    def predict_proba(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        return np.asarray(self.head.predict_proba(self.preprocessing.transform(X)))


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices that cover the rows of an array of this shape ``(n, d)``, in order."""
    step = max(1, _BLOCK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(shape[0], start + step))


@dataclass(eq=False)
class Standardiser(Parameters):
    """Scales columns to mean 0 and variance 1, except columns that hardly vary.

    A filter of the network that responds to no training image leaves a column of almost equal
    numbers. Divided by their tiny deviation, one image to which it responds would decide
    everything. So columns with a deviation below a thousandth of their backbone's median
    deviation are divided by that median.

    Args:
        widths: Columns of each backbone, in order; None: there is one.

    Attributes:
        mean_: Mean of each column, shape ``(d,)``.
        scale_: Divisor of each column, shape ``(d,)``.
    """

    widths: Sequence[int] | None = None

    def fit(self, X: ArrayLike, _y: object = None) -> Self:
        """Learn from features ``(n, d)``."""
        rows = _check_features(X)
        self.mean_, variance = np.zeros((2, rows.shape[1]))
        for block in row_blocks(rows.shape):
            # Means and variances of two sets of rows give those of their union (Chan et al. 1983).
            mean, of_block = _moments(rows[block])
            share = (block.stop - block.start) / block.stop
            step = mean - self.mean_
            variance = (1 - share) * (variance + share * step**2) + share * of_block
            self.mean_ = self.mean_ + share * step
        self.scale_ = np.sqrt(variance)
        for scale in np.split(self.scale_, np.cumsum(self.widths or [rows.shape[1]])[:-1]):
            median = np.median(scale[scale > 0]) if scale.any() else 1.0
            scale[scale < median / 1000] = median  # a view of the attribute
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Features ``(n, d)`` minus the mean, divided by the scale."""
        rows = _check_features(X, len(self.mean_)) - self.mean_.astype(np.float32)
        rows /= self.scale_.astype(np.float32)
        return rows


def _moments(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and variances of the columns; large arrays are freed on return."""
    mean = rows.mean(axis=0, dtype=np.float64)
    deviation = rows - mean
    return mean, np.square(deviation, out=deviation).mean(axis=0)


def transform_in_blocks(
    transformer: Any, X: NDArray[np.float32], rows: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Some rows of ``(N, d)``, transformed to ``(n, d')`` without another array of that size."""
    out: NDArray[np.float32] | None = None
    for block in row_blocks((len(rows), X.shape[1])):
        part = transformer.transform(X[rows[block]])
        if out is None:
            out = np.empty((len(rows), part.shape[1]), np.float32)
        out[block] = part
    return np.empty((0, X.shape[1]), np.float32) if out is None else out


#: To add one: a line here that makes an unfitted transformer, from scikit-learn or a subclass of
#: :class:`Parameters` with ``fit`` and ``transform``.
PREPROCESSING: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        STANDARDISE: Standardiser,
        "none": lazy_import("sklearn.preprocessing.FunctionTransformer"),
        "l2": lazy_import("sklearn.preprocessing.Normalizer"),
        # Directions beyond 99 % of the variance are noise that whitening would amplify.
        "pca_whiten": partial(
            lazy_import("sklearn.decomposition.PCA"),
            n_components=0.99,
            whiten=True,
            svd_solver="covariance_eigh",
        ),
    }
)


def make_preprocessing(name: str, widths: Sequence[int]) -> Any:
    """An unfitted transformer from the table, for features of backbones with these widths.

    With several backbones the columns are standardised first, so that all have the same weight.
    """
    standardiser = Standardiser(tuple(widths))
    if name == STANDARDISE:
        return standardiser
    transformer = PREPROCESSING[name]()
    if len(widths) == 1 or name == "none":
        return transformer
    return lazy_import("sklearn.pipeline.make_pipeline")(standardiser, transformer)
