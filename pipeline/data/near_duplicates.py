"""Near duplicates: images of two splits that show the same, scaled, stored again or brightened.

The index keeps a small version of each image (:mod:`pipeline.data.index`). Two images are
compared in two ways:

- By texture: what is brighter and darker than its surroundings. The textures are correlated
  after subtracting what the images of their splits have in common (the anatomy, the fan of an
  ultrasound).
- By tone, if the textures are similar: is the grey of one image a function of the grey of the
  other? It is after any change of brightness, even one that cut the highlights off.

A pair that reaches the limit of either is a near duplicate. The limits are above what images of
different patients of the same split reach.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cache.errors import WriteFailedError
from pipeline.data.index import SMALL, read_checked, write_checked
from pipeline.progress import Progress

#: In the names of folders, so that another layout has another name.
_VERSION = 1
#: Side of the compared images; scale in their pixels below which detail counts.
_SIDE = 32
_DETAIL = 2.7
#: Correlation of textures from which images count as near duplicates: the lowest and highest limit
#: that is ever used. The same for the agreement of tones.
_LIMITS = np.array([[0.88, 0.95], [0.99, 0.998]])
#: Correlation of textures from which tones are compared.
_LEAST_SIMILARITY = 0.8
#: The same before the mean is subtracted, which leaves only noise of two nearly empty images.
_LEAST_RAW = 0.85
#: Variance of grey below which an image has no tones to compare.
_LEAST_VARIANCE = 4.0
#: Robust standard deviations (of Fisher's z, or of the log of disagreement) above the usual
#: value of images of different patients of one split.
_SPREADS = 5.0
_MAD_OF_NORMAL = 0.6745
#: Images of a split for which the most similar image of another patient is searched.
_SAMPLE = 500
#: Number of textures from which principal directions are computed, and number of directions.
_FOR_BASIS, _DIRECTIONS = 2000, 128
_BLOCK = 1024

_Textures = NDArray[np.int8]
_Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two images of different splits that are near duplicates.

    Attributes:
        rows: Their rows, smaller first.
        similarity: Correlation of their textures, in [-1, 1].
        how: How one was made from the other, such as ``mirrored``.
    """

    rows: tuple[int, int]
    similarity: float
    how: str


def find_duplicates(
    small: NDArray[np.uint8], splits: NDArray[np.str_], group: NDArray[np.str_]
) -> tuple[DuplicatePair, ...]:
    """For each image the most similar image of each other split, if it is similar enough.

    The limit for two splits is the higher of their two limits; a third split never changes it.

    Args:
        small: The images at a small size, shape ``(n, SMALL, SMALL)``.
        splits: Shape ``(n,)``.
        group: Patient ids, shape ``(n,)``.

    Returns:
        Pairs, most similar first, each once.
    """
    textures = {how: _textures(small, how) for how in _VIEWS}
    whole = textures["copy"]
    rows_of = {split: np.flatnonzero(splits == split) for split in dict.fromkeys(splits.tolist())}
    limits = {r: _limits(small[rows], whole[rows], group[rows]) for r, rows in rows_of.items()}
    basis = _basis(whole)
    best: dict[tuple[int, int], DuplicatePair] = {}
    of_two = [
        (splits, view)
        for splits in combinations(rows_of, 2)
        for how in _VIEWS
        for view in sorted({(how, "copy"), ("copy", how)})  # the first or the second image in it
    ]
    with Progress("near duplicates", sum(rows_of[a].size for (a, _), _ in of_two)) as progress:
        for (a, b), (view, other_view) in of_two:
            first, second = rows_of[a], rows_of[b]
            pair = textures[view][first], textures[other_view][second]
            mean = (whole[first].mean(axis=0) + whole[second].mean(axis=0)) / 2
            limit, least_tone = np.maximum(limits[a], limits[b])
            for i, j, similarity in _similar_pairs(pair, mean.astype(np.float32), basis, progress):
                row, partner = int(first[i]), int(second[j])
                raw = _directions(pair[0][[i]]) @ _directions(pair[1][[j]]).T
                if similarity < limit or raw.item() < _LEAST_RAW:
                    greys = _in_view(small[[row]], view), _in_view(small[[partner]], other_view)
                    if _tones(*greys).item() < least_tone:
                        continue
                rows = min(row, partner), max(row, partner)
                if rows not in best or best[rows].similarity < similarity:
                    how = view if other_view == "copy" else other_view
                    best[rows] = DuplicatePair(rows=rows, similarity=similarity, how=how)
    return tuple(sorted(best.values(), key=lambda pair: (-pair.similarity, pair.rows)))


def stored_duplicates(
    store_root: Path, small: NDArray[np.uint8], splits: NDArray[np.str_], group: NDArray[np.str_]
) -> tuple[DuplicatePair, ...]:
    """As :func:`find_duplicates`, with stored results: every stage needs the same pairs."""
    content = hashlib.sha256(small.tobytes())
    for names in (splits, group):
        content.update(json.dumps(names.tolist()).encode())
    file = store_root / "index" / f"near-v{_VERSION}" / f"{content.hexdigest()[:24]}.json"
    with suppress(OSError, ValueError):
        return tuple(
            DuplicatePair(rows=(a, b), similarity=similarity, how=how)
            for (a, b), similarity, how in json.loads(read_checked(file))
        )
    pairs = find_duplicates(small, splits, group)
    with suppress(WriteFailedError):
        write_checked(file, json.dumps([astuple(pair) for pair in pairs]).encode())
    return pairs


def _middle(share: float) -> _Floats:
    """Matrix that averages ``SMALL`` rows to ``_SIDE`` rows, with ``share`` of them cut off."""
    edges = SMALL * (share / 2 + (1 - share) * np.linspace(0, 1, _SIDE + 1))
    pixel = np.arange(SMALL)
    low, high = edges[:-1, None], edges[1:, None]
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return np.asarray(overlap / (high - low), np.float32)


#: How near duplicates may differ: not at all, mirrored, cropped. For each, the matrices that make
#: the rows and the columns of the compared image.
_VIEWS: Mapping[str, tuple[_Floats, _Floats]] = MappingProxyType(
    {
        "copy": (_middle(0), _middle(0)),
        "mirrored": (_middle(0), _middle(0)[::-1]),
        "cropped by 5 %": (_middle(0.05), _middle(0.05)),
        "cropped by 10 %": (_middle(0.10), _middle(0.10)),
    }
)


def _in_view(small: NDArray[np.uint8], how: str) -> _Floats:
    """The images in a view, greys of shape ``(n, _SIDE, _SIDE)``."""
    rows, columns = _VIEWS[how]
    return np.asarray(rows @ small.astype(np.float32) @ columns.T)


def _textures(small: NDArray[np.uint8], how: str) -> _Textures:
    """What is brighter and darker than its surroundings, in units of the local contrast.

    It does not depend on brightness and contrast of an image, nor on the rough anatomy that
    images of different patients share. Shape ``(n, _SIDE * _SIDE)``.
    """
    from scipy.ndimage import gaussian_filter

    textures = np.empty((len(small), _SIDE * _SIDE), np.int8)
    around = (0, _DETAIL, _DETAIL)
    for start in range(0, len(small), _BLOCK):
        values = _in_view(small[start : start + _BLOCK], how)
        detail = values - gaussian_filter(values, around)
        contrast = np.sqrt(gaussian_filter(detail**2, around))
        # Where there is hardly any contrast, such as in black margins, there is noise alone.
        floor = 0.05 * contrast.max(axis=(1, 2), keepdims=True) + 0.25
        local = np.clip(np.round(32 * detail / (contrast + floor)), -127, 127)
        textures[start : start + _BLOCK] = local.reshape(len(values), -1)
    return textures


def _tones(a: _Floats, b: _Floats) -> NDArray[np.float64]:
    """How far the greys of one image are a function of those of the other, at most 1.

    It is 1 minus the ratio of von Neumann: sorted by the greys of one image, neighbours in the
    other are equal if there is such a function, and differ by chance if there is none. The better
    of both directions counts: an image with highlights cut off does not determine the other.
    """
    flat = [values.reshape(len(values), -1).astype(np.float64) for values in (a, b)]
    agreement = []
    for ordering, other in (flat, flat[::-1]):
        order = np.argsort(ordering, axis=1, kind="stable")
        steps = np.diff(np.take_along_axis(other, order, axis=1), axis=1)
        agreement.append(1 - (steps**2).mean(axis=1) / 2 / np.maximum(other.var(axis=1), 1e-9))
    varied = np.minimum(*(values.var(axis=1) for values in flat)) > _LEAST_VARIANCE
    return np.where(varied, np.maximum(*agreement), 0.0)


def _directions(textures: _Textures, mean: _Floats | float = 0.0) -> _Floats:
    """Rows minus ``mean`` and their own mean, scaled to length 1; a row without detail is 0."""
    rows = textures.astype(np.float32) - mean
    rows -= rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(length > 0, length, 1)
    return np.asarray(rows)


def _limits(
    small: NDArray[np.uint8], textures: _Textures, group: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Limits of similarity and agreement of tones that different patients do not reach by chance.

    Median and median deviation are not affected if some of the split's images have near duplicates.
    """
    directions = _directions(textures, textures.mean(axis=0).astype(np.float32))
    sample = np.random.default_rng(0).permutation(len(directions))[:_SAMPLE]
    same = group[sample, None] == group[None]
    similarity = np.where(same, -1.0, directions[sample] @ directions.T)
    nearest = similarity.argmax(axis=1)
    tones = _tones(_in_view(small[sample], "copy"), _in_view(small[nearest], "copy"))
    similarity = similarity.max(axis=1)
    z = np.stack([np.arctanh(np.clip(similarity, -0.999, 0.999)), -np.log(1 - tones + 1e-6)])
    middle = np.median(z, axis=1)
    spread = np.median(np.abs(z - middle[:, None]), axis=1) / _MAD_OF_NORMAL
    likely, agreed = middle + _SPREADS * spread
    return np.asarray(np.clip([np.tanh(likely), 1 - np.exp(-agreed)], *_LIMITS.T))


def _basis(textures: _Textures) -> _Floats:
    """Approximate directions in which textures vary most; orthonormal columns ``(d, k)``."""
    sample = textures[:: -(-len(textures) // _FOR_BASIS)]
    directions = _directions(sample, sample.mean(axis=0).astype(np.float32))
    basis = np.random.default_rng(0).standard_normal((directions.shape[1], _DIRECTIONS))
    for _ in range(3):  # subspace iteration: none of the results depends on how far it goes
        basis = np.linalg.qr(directions.T @ (directions @ basis.astype(np.float32)))[0]
    return np.ascontiguousarray(basis, np.float32)


def _similar_pairs(
    textures: tuple[_Textures, _Textures], mean: _Floats, basis: _Floats, progress: Progress
) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows of two sets in which one row is the most similar to the other.

    Rows of length 1 with a correlation c are sqrt(2 - 2 c) apart. Their projections on the
    orthonormal ``basis`` (d, k) are never farther apart, so rows that are far apart there need
    not be compared in all dimensions. ``mean`` (d,) is subtracted from both.
    """
    a, b = (_directions(flat, mean) for flat in textures)
    coarse, others = a @ basis, b @ basis
    # One matrix product serves very many pairs: -1/2 of their squared distance.
    half, of_others = (-(x**2).sum(axis=1, keepdims=True) / 2 for x in (coarse, others))
    coarse = np.hstack([coarse, half, np.ones_like(half)])
    others = np.hstack([others, np.ones_like(of_others), of_others])
    for start in range(0, len(a), _BLOCK):
        near = coarse[start : start + _BLOCK] @ others.T >= _LEAST_SIMILARITY - 1 - 1e-5
        progress.advance(len(near))
        rows, partners = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not rows.size:
            continue
        r = a[start + rows] @ b[partners].T
        most = (r == r.max(axis=0)) | (r == r.max(axis=1)[:, None])
        for i, j in np.argwhere(most & (r >= _LEAST_SIMILARITY)).tolist():
            yield int(start + rows[i]), int(partners[j]), float(r[i, j])
