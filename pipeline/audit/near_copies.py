"""Copies as an audit lists them, and the images that should be left out for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.contact_sheet import SIDE, SheetEntry, draw_sheet
from pipeline.data.images import PixelPolicy
from pipeline.data.leaks import LEAK, Overlap, picture_ids, roles_of
from pipeline.data.near_copies import NearPair
from pipeline.data.samples import Samples
from pipeline.data.sources import read_image
from pipeline.data.tables import read_lines
from pipeline.errors import ImageError
from pipeline.study import Study

#: Pairs on the contact sheet; the record has all.
_ON_SHEET = 20
#: In the place of a picture that can no longer be read.
_GREY = 200

Record = Mapping[str, Any]


def listed_pairs(samples: Samples, pairs: Sequence[NearPair]) -> list[Record]:
    """Number, both images, and likeness of each pair; JSON values."""
    roles = roles_of(samples)

    def image(row: int) -> Record:
        name, label = samples.name_of(row), samples.class_of(row)
        return {"path": name, "role": str(roles[row]), "label": label}

    return [
        {
            "number": number,
            "images": [image(row) for row in pair.rows],
            "likeness": pair.likeness,
            "how": pair.how,
        }
        for number, pair in enumerate(pairs, start=1)
    ]


def rows_to_leave_out(
    samples: Samples, overlap: Sequence[Overlap], facts: NDArray[Any]
) -> NDArray[np.bool_]:
    """Images that a head may know, and pictures with several labels; shape ``(n,)``."""
    marked = np.zeros(len(samples), np.bool_)
    for shared in overlap:
        if shared.learns and (shared.severity == LEAK or shared.near):
            marked[shared.rows] = True
    for rows in samples.conflicts(picture_ids(samples, facts).tolist()):
        marked[rows] = True
    return marked


def names_to_leave_out(
    study: Study, samples: Samples, marked: NDArray[np.bool_]
) -> tuple[str, ...]:
    """Those images, and what the study excludes already: it may exclude this very list."""
    names = [samples.name_of(row) for row in np.flatnonzero(marked).tolist()]
    before = () if study.exclude is None else read_lines(study.exclude)
    return tuple(sorted({*before, *names}))


def contact_sheet(samples: Samples, pairs: Sequence[NearPair]) -> bytes | None:
    """The first pairs side by side as a PNG file, as far as they can be read; None: no pairs."""
    roles = roles_of(samples)

    def picture(row: int) -> NDArray[np.uint8]:
        try:
            return read_image(samples.items[row]).pixels(PixelPolicy(size=SIDE))
        except ImageError:
            return np.full((SIDE, SIDE, 3), _GREY, np.uint8)

    sheet = [
        SheetEntry(
            pixels=tuple(picture(row) for row in pair.rows),
            lines=(
                f"{number}. {pair.how}, likeness {pair.likeness:.3f}",
                " | ".join(f"{roles[row]}: {samples.class_of(row)}" for row in pair.rows),
            ),
        )
        for number, pair in enumerate(pairs[:_ON_SHEET], start=1)
    ]
    return draw_sheet(sheet) if sheet else None
