"""Decoded pixels of a study's images, for the methods that train from them."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.features.stream import decoded
from pipeline.finetune.examples import Decoding, Held, Source, numbered
from pipeline.images import PixelPolicy
from pipeline.progress import Progress
from pipeline.samples import Samples
from pipeline.text.names import legible

#: Pixels up to this size are kept in memory: 28,000 images of 224 x 224. Above it, every
#: epoch decodes them again.
HELD_BYTES = 4 << 30


def pixels_of(samples: Samples, policy: PixelPolicy, held_bytes: int | None = None) -> Source:
    """The pixels of all samples, held in memory where they fit.

    Args:
        samples: Of which each is usable; see :func:`pipeline.features.joined.load_joined`.
        policy: From bytes to pixels.
        held_bytes: How many bytes may be held; default ``HELD_BYTES``.

    Raises:
        ImageError: An image cannot be used any more.
    """
    keys, at = numbered(samples)
    if len(keys) * 3 * policy.size**2 > (HELD_BYTES if held_bytes is None else held_bytes):
        return Decoding(samples.items, samples.label, policy)
    first = dict(zip(reversed(samples.key), reversed(samples.items), strict=True))
    values = np.empty((len(keys), policy.size, policy.size, 3), np.uint8)
    row_of = {key: row for row, key in enumerate(keys)}

    def refuse(key: bytes, reason: str) -> None:
        raise ImageError(
            f"{legible(first[key].path)} cannot be used ({reason}); run headrace features STUDY "
            "again, which lists such images"
        )

    with Progress("decoding", len(keys)) as progress:
        for key, pixels in decoded({key: first[key] for key in keys}, policy, refuse):
            values[row_of[key]] = pixels
            progress.advance()
    return Held(values, at, samples.label)


def limited(samples: Samples, limit: int | None, seed: int) -> Samples:
    """At most ``limit`` images of each split of each domain, by class in their proportion.

    Which they are depends on the seed and on each image's key alone, so a smaller limit
    takes a part of what a larger one takes.

    Args:
        samples: Of a whole study.
        limit: At least one image of each class of a split is kept; None takes all.
        seed: Of the draw.
    """
    if limit is None:
        return samples
    keep = np.zeros(len(samples), bool)
    for domain in dict.fromkeys(samples.domain.tolist()):
        for split in dict.fromkeys(samples.split[samples.domain == domain].tolist()):
            here = (samples.domain == domain) & (samples.split == split)
            keep |= _drawn(samples, np.flatnonzero(here), limit, seed)
    return samples.where(keep)


def _drawn(samples: Samples, rows: NDArray[np.intp], limit: int, seed: int) -> NDArray[np.bool_]:
    chosen = np.zeros(len(samples), bool)
    share = min(1.0, limit / len(rows))
    for k in np.unique(samples.label[rows]):
        own = rows[samples.label[rows] == k]
        ranked = sorted(own.tolist(), key=lambda row: _rank(seed, samples.key[row]))
        chosen[ranked[: max(1, round(share * len(own)))]] = True
    return chosen


def _rank(seed: int, key: bytes) -> bytes:
    return hashlib.sha256(b"%d|limit|%s" % (seed, key)).digest()
