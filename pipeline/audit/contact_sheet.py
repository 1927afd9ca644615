"""Pairs of images side by side, to be compared by eye.

A sheet shows the pictures, so it is patient data; it names no file. The numbers on it
are those of the list in ``audit.json``.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import Pixels
from pipeline.errors import StudyError

SIDE = 160
_COLUMNS = 3
_GAP, _MARGIN, _LINE = 4, 14, 15
_INK, _WHITE, _GREY = 32, 255, 200


@dataclass(frozen=True, kw_only=True)
class SheetPair:
    """Two pictures, each uint8 of shape ``(SIDE, SIDE, 3)``, and the lines below them."""

    pixels: tuple[Pixels, Pixels]
    lines: tuple[str, ...]


def draw_sheet(pairs: Sequence[SheetPair]) -> bytes:
    """The sheet as a PNG file.

    Args:
        pairs: One or more, read row by row; all with the same number of lines.

    Raises:
        StudyError: There is no pair.
    """
    if not pairs:
        raise StudyError("a contact sheet needs at least one pair")
    columns = min(_COLUMNS, len(pairs))
    width = 2 * SIDE + _GAP + _MARGIN
    height = SIDE + _LINE * len(pairs[0].lines) + _MARGIN
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (_MARGIN + columns * width, _MARGIN + rows * height), (_WHITE,) * 3)
    for i, pair in enumerate(pairs):
        _paste(sheet, (_MARGIN + i % columns * width, _MARGIN + i // columns * height), pair)
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def missing_picture() -> NDArray[np.uint8]:
    """What stands in for a picture that can no longer be read: grey."""
    return np.full((SIDE, SIDE, 3), _GREY, np.uint8)


def _paste(sheet: Image.Image, at: tuple[int, int], pair: SheetPair) -> None:
    left, top = at
    for x, pixels in zip((left, left + SIDE + _GAP), pair.pixels, strict=True):
        sheet.paste(Image.fromarray(pixels), (x, top))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for line, text in enumerate(pair.lines):
        y = top + SIDE + 2 + line * _LINE
        pen.text((left, y), _fitting(pen, text, font), fill=(_INK,) * 3, font=font)


def _fitting(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """The text, shortened where it would run into the next pair."""
    room = 2 * SIDE + _GAP
    while pen.textlength(text, font=font) > room:
        text = text[:-2] + "…"
    return text
