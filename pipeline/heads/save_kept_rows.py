"""Kinds of parts that keep rows: support vectors and nearest neighbours.

They answer by how near a row is to each that was kept.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.save_part import Array, Part

#: Rows whose distances to all kept rows are in memory together.
_CHUNK = 256


def support_vectors(part: Part, X: Array) -> Array:
    """Decision of a support vector machine: one column for two classes, else K.

    With K > 2 there is a machine for each pair of classes; votes, and confidences to
    break ties, become one score a class as scikit-learn's ``ovr`` shape has it.
    """
    a, classes = part.arrays, len(part.arrays["count"])
    kernel = _kernel(part, X.astype(np.float64))
    end = np.cumsum(a["count"])
    of = [slice(e - n, e) for e, n in zip(end, a["count"], strict=True)]
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    decision = np.column_stack(
        [
            kernel[:, of[i]] @ a["dual"][j - 1, of[i]]
            + kernel[:, of[j]] @ a["dual"][i, of[j]]
            + a["intercept"][number]
            for number, (i, j) in enumerate(pairs)
        ]
    )
    if classes == 2:
        return decision
    votes, sums = np.zeros((len(X), classes)), np.zeros((len(X), classes))
    for number, (i, j) in enumerate(pairs):
        against = decision[:, number] < 0
        votes[:, i] += ~against
        votes[:, j] += against
        sums[:, i] += decision[:, number]
        sums[:, j] -= decision[:, number]
    return np.asarray(votes + sums / (3 * (np.abs(sums) + 1)))


def _kernel(part: Part, X: NDArray[np.float64]) -> NDArray[np.float64]:
    vectors = part.arrays["vectors"].astype(np.float64)
    if part.settings["kernel"] == "linear":
        return np.asarray(X @ vectors.T)
    distance = _squared_distances(X, vectors)
    return np.asarray(np.exp(-float(part.settings["gamma"]) * distance))


def _squared_distances(X: NDArray[np.float64], Y: NDArray[np.float64]) -> NDArray[np.float64]:
    xx, yy = np.einsum("ij,ij->i", X, X), np.einsum("ij,ij->i", Y, Y)
    return np.asarray(np.maximum(xx[:, None] + yy - 2 * (X @ Y.T), 0))


def check_vectors(part: Part, sizes: Mapping[str, int]) -> str | None:
    """What in its arrays contradicts its classes; None if nothing does."""
    count, classes = part.arrays["count"], sizes["K"]
    if (count < 0).any() or int(count.sum()) != sizes["v"]:
        return f"its counts are not those of {sizes['v']} vectors"
    if sizes["r"] != classes - 1 or sizes["p"] != classes * (classes - 1) // 2:
        return f"its coefficients are not those of {classes} classes"
    return None


def neighbours(part: Part, X: Array) -> Array:
    """Share of each class among the k nearest kept rows, by Euclidean distance."""
    kept, k = part.arrays["rows"].astype(np.float64), int(part.settings["k"])
    one_hot = np.eye(int(part.settings["classes"]))[part.arrays["label"]]
    parts = [np.zeros((0, one_hot.shape[1]))]
    for start in range(0, len(X), _CHUNK):
        rows = X[start : start + _CHUNK].astype(np.float64)
        nearest = np.argsort(_squared_distances(rows, kept), axis=1, kind="stable")[:, :k]
        weight = np.ones(nearest.shape)
        if part.settings["weights"] == "distance":
            weight = _inverse(
                np.stack(
                    [
                        np.linalg.norm(kept[:, None][i][:, 0] - x, axis=1)
                        for i, x in zip(nearest, rows, strict=True)
                    ]
                )
            )
        share = np.einsum("nk,nkc->nc", weight, one_hot[nearest])
        parts.append(share / share.sum(axis=1, keepdims=True))
    return np.concatenate(parts)


def _inverse(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / distance; where a row meets kept rows exactly, only these count."""
    meets = distance == 0
    return np.asarray(
        np.where(meets.any(axis=1, keepdims=True), meets, 1 / np.where(meets, 1, distance))
    )


def check_neighbours(part: Part, sizes: Mapping[str, int]) -> str | None:
    """What in its arrays contradicts its classes or its k; None if nothing does."""
    label = part.arrays["label"]
    if part.settings["classes"] != sizes["K"] or ((label < 0) | (label >= sizes["K"])).any():
        return f"its labels are not those of {sizes['K']} classes"
    if not 1 <= part.settings["k"] <= len(label) or part.settings["k"] % 1:  # type: ignore[operator]
        return f"k = {part.settings['k']} of {len(label)} rows"
    return None
