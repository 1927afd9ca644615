"""The parts of a JPEG or PNG file that decide its pixels, and the orientation it declares.

Metadata that no pixel depends on is cut away before Pillow sees the file: broken or hostile
EXIF, colour profiles, thumbnails and texts never make a picture unusable, and no warning of
theirs reaches the user.
"""

import re
import struct
import zlib
from struct import unpack_from

from pipeline.errors import ImageError

_UPRIGHT = 1
_ORIENTATION = 0x0112
#: Sizes of the integer types of TIFF: BYTE, SHORT, LONG.
_INTEGERS = {1: "B", 3: "H", 4: "I"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
#: Texts of PNG files are decompressed up to this; an orientation stands at their beginning.
_MAX_TEXT_BYTES = 1 << 20

_PNG_MAGIC_BYTES = 8
_CHUNK_FRAME = 12  # a PNG chunk is its data and 4 bytes each of length, name and CRC
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}

_SCAN, _EXIF_MARKER = 0xDA, 0xE1
_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def split_jpeg(data: bytes) -> tuple[bytes, int]:
    """A JPEG file without metadata, and its orientation, 1 to 8.

    Of the application segments only JFIF and Adobe are kept, by which a decoder knows the
    colours. Where the structure is broken, the rest is kept for the decoder to refuse.
    """
    kept, exif, xmp = [data[:2]], b"", b""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = unpack_from(">BH", data, at + 1)
        end = at + 2 + length
        if marker == _SCAN or not 0xC0 <= marker <= 0xFE or length < 2 or end > len(data):
            break
        body = data[at + 4 : end]
        if marker == _EXIF_MARKER and body.startswith(_EXIF):
            exif += body.removeprefix(_EXIF)
        elif marker == _EXIF_MARKER and body.startswith(_JPEG_XMP):
            xmp = body
        if _is_needed(marker, body):
            kept.append(data[at:end])
        at = end
    if sum(map(len, kept)) < at:  # a file from which nothing is cut is not copied either
        data = b"".join([*kept, memoryview(data)[at:]])
    return data, _orientation(exif, xmp)


def split_png(data: bytes) -> tuple[bytes, int]:
    """A PNG file without metadata, and its orientation, 1 to 8.

    Every chunk is checked: Pillow alone checks neither the CRC of the pixel data nor that the
    end is there.

    Raises:
        ImageError: Truncated, damaged, or of several frames.
    """
    kept, exif, xmp = [data[:_PNG_MAGIC_BYTES]], b"", b""
    at, name = _PNG_MAGIC_BYTES, b""
    while name != b"IEND":
        if at + _CHUNK_FRAME > len(data):
            raise ImageError("truncated")
        length, name = unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise ImageError("truncated")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != unpack_from(">I", data, end)[0]:
            raise ImageError(f"damaged (wrong checksum of PNG chunk at byte {at})")
        body = memoryview(data)[at + 8 : end]
        if name in _PIXEL_CHUNKS:
            kept.append(data[at : end + 4])
        elif name == b"acTL" and length >= 4 and (frames := unpack_from(">I", body)[0]) > 1:
            raise ImageError(
                f"{frames} frames: which one is meant cannot be known; save the one as a file"
            )
        elif name == b"eXIf":
            exif = bytes(body).removeprefix(_EXIF)
        elif name in _TEXT_CHUNKS:
            key, text = _text(name, bytes(body))
            exif = exif or (_from_hex(text) if key == b"Raw profile type exif" else b"")
            xmp = text if key == b"XML:com.adobe.xmp" else xmp
        at = end + 4
    return b"".join(kept), _orientation(exif, xmp)


def _is_needed(marker: int, body: bytes) -> bool:
    """Whether a decoder needs a segment; too short ones count for none."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 12
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _orientation(exif: bytes, xmp: bytes) -> int:
    """What EXIF says, else XMP; upright where neither can be read."""
    try:
        declared = _exif_orientation(exif)
    except struct.error:  # cut short
        declared = None
    if declared is None and (match := _XMP.search(xmp)):
        declared = int(match[1])
    return declared if declared is not None and 1 <= declared <= 8 else _UPRIGHT


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of a TIFF structure, whatever else is in it."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    (start,) = unpack_from(f"{order}I", exif, 4)
    (entries,) = unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count = unpack_from(f"{order}HHI", exif, at)
        if tag == _ORIENTATION:
            if count != 1 or kind not in _INTEGERS:
                return _UPRIGHT
            return int(unpack_from(order + _INTEGERS[kind], exif, at + 8)[0])
    return None


def _text(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Key and text of a PNG chunk; no text where it cannot be decompressed."""
    key, _, text = body.partition(b"\0")
    compressed = name == b"zTXt"
    if name == b"iTXt":
        compressed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif compressed:
        text = text[1:]
    if not compressed:
        return key, text
    try:
        return key, zlib.decompressobj().decompress(text, _MAX_TEXT_BYTES)
    except zlib.error:
        return key, b""


def _from_hex(profile: bytes) -> bytes:
    """The bytes of a ``Raw profile``: a line of its kind, one of its length, then hexadecimals."""
    try:
        content = bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
    return content.removeprefix(_EXIF)
