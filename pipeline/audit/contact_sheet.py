"""Sheets of pictures, to be looked at by eye: each alone, or some side by side.

A sheet shows the pictures, so it is patient data; it names no file.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import Pixels

SIDE = 160
_ABREAST = 6
_GAP, _MARGIN, _LINE = 4, 14, 15
_INK, _WHITE, _GREY = 32, 255, 200


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """Pictures side by side, each uint8 of shape ``(SIDE, SIDE, 3)``, and the lines below."""

    pixels: tuple[Pixels, ...]
    lines: tuple[str, ...]


def draw_sheet(entries: Sequence[SheetEntry]) -> bytes:
    """The sheet as a PNG file, six pictures abreast.

    Args:
        entries: One or more, read row by row; all with as many pictures and lines.
    """
    pictures = len(entries[0].pixels)
    columns = min(_ABREAST // pictures, len(entries))
    width = pictures * (SIDE + _GAP) - _GAP + _MARGIN
    height = SIDE + _LINE * len(entries[0].lines) + _MARGIN
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (_MARGIN + columns * width, _MARGIN + rows * height), (_WHITE,) * 3)
    for i, entry in enumerate(entries):
        _paste(sheet, (_MARGIN + i % columns * width, _MARGIN + i // columns * height), entry)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def missing_picture() -> NDArray[np.uint8]:
    """What stands in for a picture that can no longer be read: grey."""
    return np.full((SIDE, SIDE, 3), _GREY, np.uint8)


def _paste(sheet: Image.Image, at: tuple[int, int], entry: SheetEntry) -> None:
    left, top = at
    for number, pixels in enumerate(entry.pixels):
        sheet.paste(Image.fromarray(pixels), (left + number * (SIDE + _GAP), top))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    room = len(entry.pixels) * (SIDE + _GAP) - _GAP
    for line, whole in enumerate(entry.lines):
        text = whole
        while pen.textlength(text, font=font) > room:
            text = text[:-2] + "…"
        y = top + SIDE + 2 + line * _LINE
        pen.text((left, y), text, fill=(_INK,) * 3, font=font)
