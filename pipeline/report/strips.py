"""Strips of images for the page: typical, uncertain, and the head's most confident errors.

They show patients: files that hold them are readable by their owner alone. Each is the whole
image, resized to a square; no file and no patient is named.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images import SHEET_SIDE, Pixels, SheetEntry, Transform, draw_sheet
from pipeline.data.items import Item
from pipeline.data.samples import ALL_IMAGES, load_samples
from pipeline.data.sources import read_image
from pipeline.errors import ImageError
from pipeline.evaluation.predictions import Predictions, predictions_in
from pipeline.report.figures import ERROR_SHEET, FOLDER
from pipeline.report.summary import PageHead, page_head
from pipeline.study import SOURCE, Study
from pipeline.words import as_file_name, printable

#: Images in a strip.
_COUNT = 6
CONFIDENT_ERRORS = "most confident errors"
_Rows = NDArray[np.intp]


def strips(
    study: Study, head: PageHead, stored: Predictions, *, only_errors: bool = False
) -> Iterator[tuple[str, str, list[tuple[str, Pixels]]]]:
    """The most confident errors of each domain, and the typical and uncertain images of each class.

    An image is typical if the probability of its class is near the median of the class. A strip
    has six images, of different patients if there are enough. The source shows its validation.

    Yields:
        Name of the domain; what the images have in common; for each image that can be read, the
        text below it and its pixels, ``(SHEET_SIDE, width, 3)``.
    """
    (proba,) = [values for (name, _), values in stored.proba.items() if name == head.name]
    samples, _ = load_samples(study, ALL_IMAGES)
    items = dict(zip(samples.key, samples.items, strict=True))
    scored = (stored.split != "fit") & (stored.label >= 0)
    for domain in dict.fromkeys(stored.domain[scored].tolist()):
        rows = np.flatnonzero(scored & (stored.domain == domain))
        name = "validation" if domain == SOURCE else domain
        for title, chosen in _strip_rows(stored, proba, rows, only_errors=only_errors):
            readable = _readable(stored, proba, chosen, items)
            if strip := list(islice(readable, _COUNT)):
                shown, images = len(strip), len(chosen)
                yield name, title if shown == _COUNT else f"{title}, {shown} of {images}", strip


def _strip_rows(
    stored: Predictions, proba: NDArray[np.float64], rows: _Rows, *, only_errors: bool
) -> Iterator[tuple[str, _Rows]]:
    """Title of each strip of one domain, and its rows, the best ones first."""
    p = proba[rows]
    wrong = p.argmax(axis=1) != stored.label[rows]
    yield CONFIDENT_ERRORS, _ordered_rows(stored, rows[wrong], -p[wrong].max(axis=1))
    for k, name in enumerate(() if only_errors else stored.classes):
        of_class = rows[stored.label[rows] == k]
        if len(of_class):
            p_class = proba[of_class, k]
            away = np.abs(p_class - np.median(p_class))
            other = np.delete(proba[of_class], k, axis=1).max(axis=1)
            yield f"typical of {name}", _ordered_rows(stored, of_class, away)
            yield f"{name}, uncertain", _ordered_rows(stored, of_class, np.abs(p_class - other))


def _ordered_rows(stored: Predictions, rows: _Rows, value: NDArray[np.float64]) -> _Rows:
    """Rows by ascending value; the first row of each patient comes before all second ones."""
    ordered = rows[np.argsort(value, kind="stable")]
    _, first = np.unique(stored.patient[ordered], return_index=True)
    is_first = np.isin(np.arange(len(ordered)), first)
    return ordered[np.argsort(~is_first, kind="stable")]


def _readable(
    stored: Predictions, proba: NDArray[np.float64], rows: _Rows, items: Mapping[bytes, Item]
) -> Iterator[tuple[str, Pixels]]:
    transform = Transform(size=SHEET_SIDE, resize="stretch")
    for row in rows:
        key, predicted = bytes(stored.key[row]), int(proba[row].argmax())
        shown = min(99, round(100 * proba[row, predicted]))  # no head is sure
        text = f"{stored.classes[predicted]} {shown} %"
        if predicted != stored.label[row]:
            text = f"{stored.classes[stored.label[row]]}, called {text}"
        try:
            yield printable(text), read_image(items[key], key).pixels(transform)
        except (ImageError, KeyError):
            continue  # moved or changed since then; the other images are shown


def as_jpeg(pixels: Pixels) -> bytes:
    """A file small enough for a page with a hundred of them."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


@contextmanager
def readable_by_owner_alone() -> Iterator[None]:
    """Give files that are created inside the ``with`` statement the mode 0600."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def error_sheet(study: Study, heads: Mapping[str, Any], file: bytes) -> dict[str, bytes]:
    """A PNG file of the best head's most confident errors in each domain, by its name.

    Args:
        study: The study whose images are read.
        heads: The record of ``headrace heads``.
        file: The file of probabilities that belongs to it.
    """
    head = page_head(heads)
    if head is None or head.name == "prior":  # the prior is equally sure of every image
        return {}
    stored = predictions_in(file)[head.backbone]
    entries: list[SheetEntry] = [
        ((pixels,), (printable(domain), *text.split(", ", 1)))
        for domain, _, strip in strips(study, head, stored, only_errors=True)
        for text, pixels in strip
    ]
    name = f"{FOLDER}/{ERROR_SHEET}-{as_file_name(head.backbone)}.png"
    return {name: draw_sheet(entries)} if entries else {}
