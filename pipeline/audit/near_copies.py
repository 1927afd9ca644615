"""Copies as an audit lists them, and what they are worth to the scores of a head."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.contact_sheet import SIDE, SheetEntry, draw_sheet
from pipeline.data.images import PixelPolicy
from pipeline.data.leaks import LEAK, Overlap, picture_ids, roles_of
from pipeline.data.near_copies import NearPair
from pipeline.data.patients import FIT
from pipeline.data.samples import Samples
from pipeline.data.sources import read_image
from pipeline.data.tables import read_lines
from pipeline.errors import ImageError, MissingResultsError
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.metrics import is_right, score
from pipeline.evaluation.predictions import PROBABILITIES, Predictions, read_predictions
from pipeline.study import Study

#: Whose scores are given.
_HEAD = "linear"
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
    """Images that should not be scored, shape ``(n,)``.

    What a role knows of an earlier one, where a head is fitted or chosen in that; and
    pictures with several labels.
    """
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


def scores_without(study: Study, samples: Samples, marked: NDArray[np.bool_]) -> list[Record]:
    """Scores of stage 2's linear head with and without images that should be left out.

    Returns:
        For each backbone and role: ``all_images`` and ``without_copies``, each with
        ``accuracy`` (an interval) and ``auroc``. Empty where there is none or stage 2
        has not run.
    """
    marked = marked & samples.labelled & (samples.split != FIT)
    if not marked.any():
        return []
    try:
        predictions = read_predictions(study.results / PROBABILITIES)
    except MissingResultsError:
        return []
    return [
        record
        for backbone, stored in predictions.items()
        if (_HEAD, study.seed) in stored.proba
        for record in _by_role(backbone, stored, study.seed, samples, marked)
    ]


def _by_role(
    backbone: str, stored: Predictions, seed: int, samples: Samples, marked: NDArray[np.bool_]
) -> Iterator[Record]:
    row_of = {bytes(key): row for row, key in enumerate(stored.key)}
    predicted = np.array([key in row_of for key in samples.key])
    proba = stored.proba[_HEAD, seed][[row_of.get(key, 0) for key in samples.key]]
    roles = roles_of(samples)
    for role in dict.fromkeys(roles[marked].tolist()):
        rows = predicted & (roles == role)
        if (rows & ~marked).any():
            yield {
                "backbone": backbone,
                "role": role,
                "all_images": _scores(samples, proba, rows),
                "without_copies": _scores(samples, proba, rows & ~marked),
            }


def _scores(samples: Samples, proba: NDArray[np.float64], rows: NDArray[np.bool_]) -> Record:
    label, proba = samples.label[rows], proba[rows]
    accuracy = rate_interval(is_right(label, proba), samples.group[rows])
    return {"accuracy": accuracy.record(), "auroc": score("auroc", label, proba)}
