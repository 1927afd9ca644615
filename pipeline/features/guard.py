"""What is refused before it reaches a store: features that cannot be right, empty pictures."""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import PixelPolicy
from pipeline.data.items import Item
from pipeline.errors import EngineError, StudyError
from pipeline.features.decoding import CONSTANT
from pipeline.words import counted, printable

#: From this many rows on, this share of them is suspicious.
_FEW, _SHARE_OF_FEW = 20, 0.5
_MANY, _SHARE_OF_MANY = 1000, 0.01
#: More than this share of black, white or transparent pictures, and so many, are no accident.
_FEW_CONSTANT, _SHARE_CONSTANT = 3, 0.01


class FeatureGuard:
    """Finds features that cannot be right before they reach the store.

    Args:
        policy: Of the pixels. Masked pictures are often equal: many have four black corners.
    """

    def __init__(self, policy: PixelPolicy) -> None:
        self._may_be_equal = policy.mask != "none"
        self._digests: set[bytes] = set()
        self._rows = self._bad = self._duplicates = 0

    def objection(self, row: NDArray[np.float32]) -> str | None:
        """Why a feature row must not be stored; None when it may.

        Raises:
            EngineError: Most rows so far, or more than 1 % of many, are bad or equal to
                that of another image.
        """
        self._rows += 1
        if not np.isfinite(row).all() or not row.any():
            self._bad += 1
            self._stop_if_many(self._bad, "give features that are not finite or all zero")
            return "non-finite or all-zero feature"
        digest = hashlib.blake2b(row.tobytes(), digest_size=12).digest()
        self._duplicates += digest in self._digests
        self._digests.add(digest)
        if not self._may_be_equal:
            self._stop_if_many(self._duplicates, "give the same features as another image")
        return None

    def _stop_if_many(self, count: int, what: str) -> None:
        """A few copies of one picture in a small set are no sign of a dead network."""
        allowed = _SHARE_OF_MANY if self._rows >= _MANY else _SHARE_OF_FEW
        if self._rows >= _FEW and count > allowed * self._rows:
            raise EngineError(
                f"{count} of {self._rows} images {what}: the backbone looks dead. "
                "Are these its weights?"
            )


def refuse_many_constant(
    title: str, missing: Mapping[bytes, Item], unusable: Mapping[bytes, str], *, images: int
) -> None:
    """More than a few black pictures are a mistake of an export; the others' rows are stored.

    The share is of all images: a later run misses these alone.
    """
    empty = [key for key, reason in unusable.items() if reason == CONSTANT]
    if len(empty) >= _FEW_CONSTANT and len(empty) > _SHARE_CONSTANT * images:
        raise StudyError(
            f"{title}: {len(empty)} of {counted(images, 'image')} show one colour only, more "
            f"than {_SHARE_CONSTANT:.0%}; first: {printable(missing[empty[0]].path)}. Export "
            "them again, or list them in the file of the study's `exclude`"
        )
