"""Near copies: images of two roles that show one picture, scaled, stored again or brightened.

Each image is described by its texture (:mod:`pipeline.data.facts`), and two textures are
compared by their correlation. Copies reach 0.95 and more; pictures of different patients stay
below 0.9 on chest X-rays. What the images of a role have in common (the fan of an ultrasound,
letters on the screen) raises that, so each role has its own limit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.data.facts import TEXTURE

#: Correlation from which images count as copies: the least that is ever asked for, and the most.
_LIMITS = (0.93, 0.98)
#: Robust standard deviations (in Fisher's z) above what strangers of one role usually reach.
_SPREADS = 5.0
_MAD_OF_NORMAL = 0.6745
#: Images of a role whose most similar stranger is looked for.
_SAMPLE = 500
#: Textures from which the directions are taken that are compared first, and how many of these.
_FOR_BASIS, _DIRECTIONS = 2000, 64
_BLOCK = 1024

Textures = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two images of different roles that look like copies of one.

    Attributes:
        rows: Their rows, smaller first.
        likeness: Correlation of their textures, in [-1, 1].
        how: An entry of ``VIEWS``: how one was made from the other.
    """

    rows: tuple[int, int]
    likeness: float
    how: str


def find_near_copies(
    texture: NDArray[np.int8], roles: NDArray[np.str_], group: NDArray[np.str_]
) -> tuple[NearPair, ...]:
    """Each image's most similar one of each other role, where it is similar enough.

    The limit of two roles is the higher one of theirs; a third role never moves it.

    Args:
        texture: Shape ``(n, TEXTURE, TEXTURE)``.
        roles: Shape ``(n,)``.
        group: Patient ids, shape ``(n,)``.

    Returns:
        Pairs, most similar first, each once.
    """
    views = {how: _directions(view(texture)) for how, view in VIEWS.items()}
    rows_of = {role: np.flatnonzero(roles == role) for role in dict.fromkeys(roles.tolist())}
    limit = {
        role: _limit(views["copy"][rows], group[rows], np.random.default_rng(0))
        for role, rows in rows_of.items()
    }
    basis = _basis(views["copy"])
    coarse = {how: directions @ basis for how, directions in views.items()}
    best: dict[tuple[int, int], NearPair] = {}
    for a, b in combinations(rows_of, 2):
        for how in VIEWS:
            for one, other in ((how, "copy"), ("copy", how)) if how != "copy" else ((how, how),):
                sides = (views[one][rows_of[a]], views[other][rows_of[b]])
                first = (coarse[one][rows_of[a]], coarse[other][rows_of[b]])
                for i, j, likeness in _alike(sides, first, max(limit[a], limit[b])):
                    low, high = sorted((int(rows_of[a][i]), int(rows_of[b][j])))
                    known = best.get((low, high))
                    if known is None or known.likeness < likeness:
                        best[low, high] = NearPair(rows=(low, high), likeness=likeness, how=how)
    return tuple(sorted(best.values(), key=lambda pair: (-pair.likeness, pair.rows)))


def _cropped(share: float) -> Callable[[NDArray[np.int8]], NDArray[np.float64]]:
    """The middle of each texture, stretched to the whole; ``share`` of each side is cut off."""

    def view(texture: NDArray[np.int8]) -> NDArray[np.float64]:
        at = (TEXTURE - 1) / 2 + (1 - share) * (np.arange(TEXTURE) - (TEXTURE - 1) / 2)
        low = np.floor(at).astype(np.intp)
        weights = np.zeros((TEXTURE, TEXTURE))
        rows = np.arange(TEXTURE)
        weights[rows, low] = 1 - (at - low)
        weights[rows, np.minimum(low + 1, TEXTURE - 1)] += at - low
        return np.asarray(weights @ texture @ weights.T)

    return view


#: How copies are made that are looked for: as it is, as in a mirror, without a margin.
VIEWS: Mapping[str, Callable[[NDArray[np.int8]], NDArray[np.generic]]] = MappingProxyType(
    {
        "copy": lambda texture: texture,
        "mirrored": lambda texture: texture[:, :, ::-1],
        "cropped by 5 %": _cropped(0.05),
        "cropped by 10 %": _cropped(0.10),
    }
)


def _directions(texture: NDArray[np.generic]) -> Textures:
    """Each texture as a row of mean 0 and length 1; one without any detail is 0."""
    flat = texture.reshape(len(texture), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.where(length > 0, length, 1))


def _limit(directions: Textures, group: NDArray[np.str_], rng: np.random.Generator) -> float:
    """From which correlation images of a role are no strangers that happen to be alike.

    Median and median deviation do not notice that some of the role's images are copies.
    """
    rows = rng.permutation(len(directions))[:_SAMPLE]
    nearest = np.concatenate(
        [
            np.where(group[some, None] == group[None], -1.0, directions[some] @ directions.T).max(1)
            for some in np.split(rows, range(_BLOCK, len(rows), _BLOCK))
        ]
    )
    z = np.arctanh(np.clip(nearest, -0.999, 0.999))
    spread = np.median(np.abs(z - np.median(z))) / _MAD_OF_NORMAL
    return float(np.clip(np.tanh(np.median(z) + _SPREADS * spread), *_LIMITS))


def _basis(directions: Textures) -> Textures:
    """About the directions in which textures vary most, orthonormal columns ``(d, k)``."""
    some = directions[:: -(-len(directions) // _FOR_BASIS)]
    basis = np.random.default_rng(0).standard_normal((some.shape[1], _DIRECTIONS))
    for _ in range(3):  # subspace iteration: none of the results depends on how far it goes
        basis = np.linalg.qr(some.T @ (some @ basis.astype(np.float32)))[0]
    return np.ascontiguousarray(basis, np.float32)


def _alike(
    sides: tuple[Textures, Textures], coarse: tuple[Textures, Textures], limit: float
) -> Iterator[tuple[int, int, float]]:
    """Rows of two sides that are each other's, or one the other's, most similar, above a limit.

    Rows of length 1 with a correlation c are sqrt(2 - 2 c) apart, and projections are never
    farther apart: whatever is farther in few dimensions need not be compared in all of them.

    Args:
        sides: All dimensions, ``(n, d)`` and ``(m, d)``.
        coarse: The same rows in few dimensions.
        limit: Least correlation.
    """
    square = (coarse[1] ** 2).sum(axis=1)
    for start in range(0, len(sides[0]), _BLOCK):
        block = coarse[0][start : start + _BLOCK]
        distance = (block**2).sum(axis=1)[:, None] + square - 2 * block @ coarse[1].T
        near = distance <= 2 - 2 * limit + 1e-5
        rows, mates = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not rows.size:
            continue
        likeness = sides[0][start + rows] @ sides[1][mates].T
        most = (likeness == likeness.max(axis=0)) | (likeness == likeness.max(axis=1)[:, None])
        for i, j in np.argwhere(most & (likeness >= limit)).tolist():
            yield int(start + rows[i]), int(mates[j]), float(likeness[i, j])
