"""Rows of a matrix a block at a time: float64 answers without a float64 copy of it all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
