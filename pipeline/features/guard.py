"""Checks before features reach a store: invalid features, and images of one colour."""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import Transform
from pipeline.data.items import Item
from pipeline.errors import EngineError, StudyError
from pipeline.features.decoding import CONSTANT
from pipeline.words import counted, printable

#: From this many rows on, a larger share of invalid or duplicate rows stops the run.
_FEW, _SHARE_OF_FEW = 20, 0.5
_MANY, _SHARE_OF_MANY = 1000, 0.01
#: A larger share, and number, of black, white or transparent images is not an accident.
_FEW_CONSTANT, _SHARE_CONSTANT = 3, 0.01


class FeatureGuard:
    """Finds invalid features before they reach the store.

    Args:
        transform: Pixel transform. Masked images are often equal: many have four black corners.
    """

    def __init__(self, transform: Transform) -> None:
        self._may_be_equal = transform.mask != "none"
        self._digests: set[bytes] = set()
        self._rows = self._bad = self._duplicates = 0

    def defect(self, row: NDArray[np.float32]) -> str | None:
        """The reason why a feature row must not be stored; None if it may be.

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
        """Stop the run if too many rows are bad; a few copies in a small set are not a reason."""
        allowed = _SHARE_OF_MANY if self._rows >= _MANY else _SHARE_OF_FEW
        if self._rows >= _FEW and count > allowed * self._rows:
            raise EngineError(
                f"{count} of {self._rows} images {what}: the backbone does not work. "
                "Check its weights"
            )


def refuse_many_constant(
    title: str, missing: Mapping[bytes, Item], unusable: Mapping[bytes, str], *, images: int
) -> None:
    """Refuse many images of one colour, a mistake of an export; other rows are stored.

    The share is of all images, because a later run lacks only these.
    """
    empty = [key for key, reason in unusable.items() if reason == CONSTANT]
    if len(empty) >= _FEW_CONSTANT and len(empty) > _SHARE_CONSTANT * images:
        raise StudyError(
            f"{title}: {len(empty)} of {counted(images, 'image')} show one colour only, more "
            f"than {_SHARE_CONSTANT:.0%}; first: {printable(missing[empty[0]].path)}. Export "
            "them again, or list them in the file of the study's `exclude`"
        )
