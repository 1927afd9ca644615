"""The parts of a JPEG or PNG file that decide its pixels, and the orientation it declares.

Metadata that no pixel depends on is cut away before Pillow sees the file: broken or hostile
EXIF, colour profiles, thumbnails and texts never make a picture unusable, and no warning of
theirs reaches the user.
"""

import struct
import zlib
from struct import unpack_from

from pipeline.errors import ImageError

_UPRIGHT = 1
_ORIENTATION = 0x0112
#: Sizes of the integer types of TIFF: BYTE, SHORT, LONG.
_INTEGERS = {1: "B", 3: "H", 4: "I"}

_PNG_MAGIC_BYTES = 8
_CHUNK_FRAME = 12  # a PNG chunk is its data and 4 bytes each of length, name and CRC
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}

_SCAN, _APP1 = 0xDA, 0xE1
_EXIF = b"Exif\0\0"


def split_jpeg(data: bytes) -> tuple[bytes, int]:
    """A JPEG file without metadata, and its orientation, 1 to 8.

    Of the application segments only JFIF and Adobe are kept, by which a decoder knows the
    colours. Where the structure is broken, the rest is kept for the decoder to refuse.
    """
    kept, exif = [data[:2]], b""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = unpack_from(">BH", data, at + 1)
        end = at + 2 + length
        if marker == _SCAN or not 0xC0 <= marker <= 0xFE or length < 2 or end > len(data):
            break
        body = data[at + 4 : end]
        if marker == _APP1 and body.startswith(_EXIF):
            exif += body.removeprefix(_EXIF)
        if _is_needed(marker, body):
            kept.append(data[at:end])
        at = end
    if sum(map(len, kept)) < at:  # a file from which nothing is cut is not copied either
        data = b"".join([*kept, memoryview(data)[at:]])
    return data, _orientation(exif)


def split_png(data: bytes) -> tuple[bytes, int]:
    """A PNG file without metadata, and its orientation, 1 to 8.

    Every chunk is checked: Pillow alone checks neither the CRC of the pixel data nor that the
    end is there.

    Raises:
        ImageError: Truncated, damaged, or of several frames.
    """
    kept, exif = [data[:_PNG_MAGIC_BYTES]], b""
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
        at = end + 4
    return b"".join(kept), _orientation(exif)


def _is_needed(marker: int, body: bytes) -> bool:
    """Whether a decoder needs a segment; too short ones count for none."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 12
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _orientation(exif: bytes) -> int:
    """The orientation in the first directory of a TIFF structure; upright where none is there."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (start,) = unpack_from(f"{order}I", exif, 4)
        (entries,) = unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = unpack_from(f"{order}HHI", exif, at)
            if tag == _ORIENTATION and count == 1 and kind in _INTEGERS:
                value = int(unpack_from(f"{order}{_INTEGERS[kind]}", exif, at + 8)[0])
                return value if 1 <= value <= 8 else _UPRIGHT
    except struct.error:  # cut short, or of another order
        pass
    return _UPRIGHT
