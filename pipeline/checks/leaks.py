"""Look for leaks and confounders before any number is believed.

Roles are the uses that images are put to (fit, validation, a target). Whatever two roles
share (a patient, a picture, nearly a picture) makes the numbers of one of them too good.
A two-sample test cannot see this: shared images make the roles *more* alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError

_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Ids that two roles have in common."""

    roles: tuple[str, str]
    """Names of the roles."""
    ids: tuple[Any, ...]
    """What both hold, sorted."""


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two images of different roles that look like copies of one."""

    rows: tuple[int, int]
    """Their rows, smaller first."""
    cosine: float
    """Cosine of their features, in [-1, 1]."""
    bits: int
    """Bits by which their perceptual hashes differ, 0 to 64."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicateRule:
    """When two images count as near copies: alike in features *and* in hash."""

    quantile: float = 0.999
    """Of nearest-neighbour cosines between patients of one role: what chance resembles."""
    bits: int = 4
    """Largest Hamming distance of the 64-bit difference hashes."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """One picture filed under several labels."""

    key: Any
    """The picture's content key."""
    labels: tuple[int, ...]
    """The labels it has, sorted."""
    rows: tuple[int, ...]
    """Where it occurs."""


def shared_ids(ids: Mapping[str, NDArray[Any]]) -> tuple[Shared, ...]:
    """Return what each pair of roles has in common.

    With patient ids this is the patient overlap, with content keys the exact duplicates.

    Args:
        ids: By role, shape (n_role,), text, bytes or integers.

    Returns:
        One entry per pair of roles that share anything.
    """
    found = (
        Shared(roles=(a, b), ids=tuple(np.intersect1d(ids[a], ids[b]).tolist()))
        for a, b in combinations(ids, 2)
    )
    return tuple(shared for shared in found if shared.ids)


def label_conflicts(keys: NDArray[Any], labels: NDArray[np.integer]) -> tuple[Conflict, ...]:
    """Return the pictures that occur with more than one label.

    Args:
        keys: Shape (n,), content key of each image.
        labels: Shape (n,).
    """
    unique, codes = np.unique(keys, return_inverse=True)
    by_key = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return tuple(
        Conflict(key=key, labels=tuple(np.unique(labels[rows]).tolist()), rows=tuple(rows.tolist()))
        for key, rows in zip(unique.tolist(), by_key, strict=True)
        if np.unique(labels[rows]).size > 1
    )


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images among which near copies are sought; row i of each array is one image."""

    features: NDArray[np.floating]
    """Shape (n, d)."""
    hashes: NDArray[np.uint64]
    """Shape (n,): 64-bit difference hash (dHash) of each image."""
    roles: NDArray[Any]
    """Shape (n,): name of the role of each image."""
    groups: NDArray[Any]
    """Shape (n,): patient ids."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same images.

        Raises:
            StudyError: Lengths differ, or the hashes are not uint64.
        """
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) != 1:
            raise StudyError(f"a gallery needs one entry per image in every array, got {lengths}")
        if self.hashes.dtype != np.uint64:
            raise StudyError(f"hashes are {self.hashes.dtype}, needed uint64 (64 bits an image)")


def near_duplicates(
    gallery: Gallery, rule: NearDuplicateRule | None = None
) -> tuple[NearPair, ...]:
    """Return the pairs of images of different roles that look like copies.

    For each image its nearest neighbour in any other role is a candidate. It counts if
    their cosine lies above what the nearest images of *different patients in one role*
    reach by chance, and their hashes agree: features alone confuse similar patients,
    hashes alone confuse similar poses.

    Args:
        gallery: The images.
        rule: Both thresholds.

    Returns:
        Pairs, most similar first, each once.
    """
    rule = rule or NearDuplicateRule()
    directions = _centred_directions(gallery.features)
    roles = np.unique(gallery.roles, return_inverse=True)[1]
    patients = np.unique(gallery.groups, return_inverse=True)[1]
    across = _nearest(directions, lambda rows: roles[rows, None] != roles[None])
    strangers = _nearest(
        directions,
        lambda rows: (roles[rows, None] == roles[None]) & (patients[rows, None] != patients[None]),
    )
    # Pairs that the hash takes for copies are no measure of what chance resembles: with a
    # few of them in one role, the threshold would be theirs and hide those across roles.
    apart = hamming(gallery.hashes, gallery.hashes[strangers.row]) > rule.bits
    usual = strangers.cosine[np.isfinite(strangers.cosine) & apart]
    threshold = np.quantile(usual, rule.quantile) if usual.size else -1.0
    bits = hamming(gallery.hashes, gallery.hashes[across.row])
    alike = np.flatnonzero((across.cosine > threshold) & (bits <= rule.bits))
    pairs = {
        (min(i, j), max(i, j)): NearPair(
            rows=(min(i, j), max(i, j)), cosine=float(across.cosine[i]), bits=int(bits[i])
        )
        for i, j in zip(alike.tolist(), across.row[alike].tolist(), strict=True)
    }
    return tuple(sorted(pairs.values(), key=lambda pair: (-pair.cosine, pair.rows)))


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return by how many bits each pair of 64-bit hashes differs, shape (n,), 0 to 64."""
    differing = np.ascontiguousarray(a ^ b).view(np.uint8).reshape(-1, 8)
    return np.asarray(np.unpackbits(differing, axis=1).sum(axis=1), dtype=np.intp)


@dataclass(frozen=True, kw_only=True)
class _Nearest:
    """Nearest neighbour of each row among those allowed to it."""

    row: NDArray[np.intp]
    cosine: NDArray[np.float64]  # -inf where no row is allowed


def _centred_directions(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1 about the common mean: raw cosines of pooled features are all near 1."""
    centred = np.asarray(features - features.mean(axis=0, dtype=np.float64), dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(length > 0, length, 1))


def _nearest(
    directions: NDArray[np.float64], allowed: Callable[[NDArray[np.intp]], NDArray[np.bool_]]
) -> _Nearest:
    """Find each row's nearest allowed row, a block of rows at a time."""
    best = np.zeros(len(directions), dtype=np.intp)
    cosine = np.full(len(directions), -np.inf)
    for start in range(0, len(directions), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(directions)))
        similar = np.where(allowed(rows), directions[rows] @ directions.T, -np.inf)
        best[rows] = similar.argmax(axis=1)
        cosine[rows] = similar[np.arange(rows.size), best[rows]]
    return _Nearest(row=best, cosine=cosine)
