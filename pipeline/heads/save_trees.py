"""Decision trees as flat arrays: their check, and the descent of many rows at once.

All trees of an ensemble lie one after another. A node has the numbers of its two
children within the whole, always above its own, or -1 twice where it is a leaf.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.save_part import Array, Part

#: A tree that is deeper than this was not grown on images.
MAX_DEPTH = 2000
#: Rows that descend together: (rows, trees) numbers are in memory.
_CHUNK = 256


def check_trees(part: Part, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with the arrays of some trees; None when every descent ends.

    Children come after their parent, each node has one parent, and a tree keeps to its
    own nodes, so there is no cycle, no index out of range, and no endless chain.
    """
    left, right, feature = (part.arrays[name] for name in ("left", "right", "feature"))
    root, n = part.arrays["root"], len(left)
    if not len(root) or root[0] != 0 or (np.diff(root) <= 0).any() or root[-1] >= n:
        return "its roots are no places of trees"
    inner = (left != -1) | (right != -1)
    own = np.arange(n)
    end = np.append(root[1:], n)[np.searchsorted(root, own, side="right") - 1]
    for child in (left, right):
        if ((child <= own) | (child >= end))[inner].any():
            return "a child does not come after its parent within the tree"
    if ((feature < 0) | (feature >= sizes["d"]))[inner].any():
        return f"a feature is not in 0 to {sizes['d'] - 1}"
    parents = np.bincount(np.concatenate([left[inner], right[inner]]), minlength=n)
    parents[root] += 1
    if (parents != 1).any():
        return "a node has not exactly one parent"
    return None if _depth_is_allowed(left, right, root) else f"a tree is over {MAX_DEPTH} deep"


def _depth_is_allowed(left: Array, right: Array, root: Array) -> bool:
    level = root
    for _ in range(MAX_DEPTH):
        level = level[left[level] != -1]
        if not len(level):
            return True
        level = np.concatenate([left[level], right[level]])
    return False


def leaf_values(part: Part, X: Array) -> NDArray[np.float64]:
    """Sum of the leaves' values over the trees of each group.

    Args:
        part: With ``root`` (T,), ``left``, ``right``, ``feature``, ``threshold`` (N,) and
            ``value`` (N, V).
        X: Rows ``(n, d)``; a row goes left where its feature is at most the threshold.

    Returns:
        Value of the leaf that each row ends in, shape ``(n, T, V)`` summed in chunks by
        the caller's ``grouped``; here: ``(n, G, V)`` with G = setting ``groups``, tree t
        counting for group t mod G.
    """
    groups = int(part.settings.get("groups", 1))
    value = part.arrays["value"]
    out = np.empty((len(X), groups, value.shape[1]))
    for start in range(0, len(X), _CHUNK):
        leaves = value[_descend(part, X[start : start + _CHUNK])]
        for g in range(groups):
            out[start : start + _CHUNK, g] = leaves[:, g::groups].sum(axis=1, dtype=np.float64)
    return out


def _descend(part: Part, X: Array) -> NDArray[np.int64]:
    """Number of the leaf of each row in each tree, shape ``(n, T)``."""
    a = part.arrays
    at = np.tile(a["root"].astype(np.int64), (len(X), 1))
    row = np.broadcast_to(np.arange(len(X))[:, None], at.shape).ravel()
    at = at.ravel()
    moving = np.flatnonzero(a["left"][at] != -1)
    while len(moving):
        here = at[moving]
        goes_left = X[row[moving], a["feature"][here]] <= a["threshold"][here]
        at[moving] = np.where(goes_left, a["left"][here], a["right"][here])
        moving = moving[a["left"][at[moving]] != -1]
    return at.reshape(len(X), -1)
