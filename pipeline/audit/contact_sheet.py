"""Sheets of pictures, to be looked at by eye: each alone, or some side by side.

A sheet shows the pictures, so it is patient data; it names no file.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import Pixels

SIDE = 160
_ABREAST = 6
_GAP, _MARGIN, _LINE = 4, 14, 15
_INK = (32, 32, 32)


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """Pictures side by side, each uint8 of shape ``(SIDE, SIDE, 3)``, and the lines below."""

    pixels: tuple[Pixels, ...]
    lines: tuple[str, ...]


def draw_sheet(entries: Sequence[SheetEntry]) -> bytes:
    """The sheet as a PNG file, six pictures abreast; all entries have as many of them."""
    pictures = len(entries[0].pixels)
    columns = min(_ABREAST // pictures, len(entries))
    room = pictures * (SIDE + _GAP) - _GAP
    width, height = room + _MARGIN, SIDE + _LINE * len(entries[0].lines) + _MARGIN
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (_MARGIN + columns * width, _MARGIN + rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, entry in enumerate(entries):
        left, top = _MARGIN + i % columns * width, _MARGIN + i // columns * height
        for number, pixels in enumerate(entry.pixels):
            sheet.paste(Image.fromarray(pixels), (left + number * (SIDE + _GAP), top))
        for number, line in enumerate(entry.lines):
            text = line
            while pen.textlength(text, font=font) > room:
                text = text[:-2] + "…"
            pen.text((left, top + SIDE + 2 + number * _LINE), text, fill=_INK, font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
