"""Near copies: images of two roles that show one picture, scaled, stored again or brightened.

Each image is described by its texture (:mod:`pipeline.data.facts`), and two textures are
compared by their correlation, after what the images of their roles have in common (the
anatomy, the fan of an ultrasound) is taken away. Copies reach 0.9 and more; pictures of
different patients stay below 0.85 on chest X-rays. Where they do not, the limit of the role
is higher.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.data.facts import TEXTURE

#: Correlation from which images count as copies: the least that is ever asked for, and the most.
_LIMITS = (0.88, 0.95)
#: The same before the mean is taken away: of two nearly empty pictures nothing else is left.
_LEAST_RAW = 0.85
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
    views = {how: _flat(view(texture)) for how, view in VIEWS.items()}
    whole = views["copy"]
    rows_of = {role: np.flatnonzero(roles == role) for role in dict.fromkeys(roles.tolist())}
    limit = {role: _limit(whole[rows], group[rows]) for role, rows in rows_of.items()}
    basis = _basis(_directions(whole, whole.mean(axis=0)))
    best: dict[tuple[int, int], NearPair] = {}
    for a, b in combinations(rows_of, 2):
        first, second = rows_of[a], rows_of[b]
        mean = (whole[first].mean(axis=0) + whole[second].mean(axis=0)) / 2
        for how in VIEWS:
            for one, other in {(how, "copy"), ("copy", how)}:
                pair = views[one][first], views[other][second]
                for i, j, likeness in _alike(pair, mean, basis, max(limit[a], limit[b])):
                    low, high = sorted((int(first[i]), int(second[j])))
                    before = best.get((low, high))
                    if before is None or before.likeness < likeness:
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


def _flat(texture: NDArray[np.generic]) -> Textures:
    """Each texture as a row of mean 0."""
    flat = texture.reshape(len(texture), -1).astype(np.float32)
    return np.asarray(flat - flat.mean(axis=1, keepdims=True))


def _directions(flat: Textures, mean: Textures | float = 0.0) -> Textures:
    """Rows less a mean, of length 1; one without any detail is 0."""
    rows = flat - mean
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))


def _limit(flat: Textures, group: NDArray[np.str_]) -> float:
    """From which correlation images of a role are no strangers that happen to be alike.

    Median and median deviation do not notice that some of the role's images are copies.
    """
    directions = _directions(flat, flat.mean(axis=0))
    some = np.random.default_rng(0).permutation(len(directions))[:_SAMPLE]
    same = group[some, None] == group[None]
    nearest = np.where(same, -1.0, directions[some] @ directions.T).max(axis=1)
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
    textures: tuple[Textures, Textures], mean: Textures, basis: Textures, limit: float
) -> Iterator[tuple[int, int, float]]:
    """Rows of two sets of which one is the other's most similar, above a limit.

    Rows of length 1 with a correlation c are sqrt(2 - 2 c) apart, and projections are never
    farther apart: whatever is farther in few dimensions need not be compared in all of them.

    Args:
        textures: Flat, ``(n, d)`` and ``(m, d)``.
        mean: What is taken away from both, ``(d,)``.
        basis: Orthonormal columns, ``(d, k)``.
        limit: Least correlation.
    """
    a, b = (_directions(flat, mean) for flat in textures)
    coarse, others = a @ basis, b @ basis
    square = (others**2).sum(axis=1)
    for start in range(0, len(a), _BLOCK):
        block = coarse[start : start + _BLOCK]
        distance = (block**2).sum(axis=1)[:, None] + square - 2 * block @ others.T
        near = distance <= 2 - 2 * limit + 1e-5
        rows, mates = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not rows.size:
            continue
        likeness = a[start + rows] @ b[mates].T
        most = (likeness == likeness.max(axis=0)) | (likeness == likeness.max(axis=1)[:, None])
        for i, j in np.argwhere(most & (likeness >= limit)).tolist():
            row, mate = int(start + rows[i]), int(mates[j])
            raw = _directions(textures[0][[row]]) @ _directions(textures[1][[mate]]).T
            if raw.item() >= _LEAST_RAW:
                yield row, mate, float(likeness[i, j])
