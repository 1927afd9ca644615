"""Nearest neighbours: scikit-learn's, several numbers of neighbours from one search."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors


def neighbours_path(
    heads: Sequence[Any], X: NDArray[np.float32], y: NDArray[np.integer], other: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Probabilities ``(heads, m, K)`` of other rows ``(m, d)``; NaN where rows are too few.

    The heads weigh by one over the distance, and differ in ``n_neighbors``.
    """
    counts = [head.n_neighbors for head in heads]
    most = min(max(counts), len(X))
    search = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(X)
    distance, place = search.kneighbors(other)
    # At a distance of zero nothing else counts, as scikit-learn has it.
    same = distance == 0
    weight = np.where(same.any(axis=1, keepdims=True), same, 1 / np.where(same, 1, distance))
    votes = np.zeros((len(other), int(y.max()) + 1))
    proba = np.full((len(heads), *votes.shape), np.nan)
    every = np.arange(len(other))
    for k in range(most):
        votes[every, y[place[:, k]]] += weight[:, k]
        for at in np.flatnonzero(np.equal(counts, k + 1)):
            proba[at] = votes / votes.sum(axis=1, keepdims=True)
    return proba
