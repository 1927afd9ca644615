"""Which files are opened as images, and the reason to give where one is not.

The name of a file says nothing: its first bytes decide. Pillow's readers are called
directly and not through ``Image.open``, which warns about large images, and a warning
can be made an error only for all threads at once; so the size is read from the header
and checked here, before anything is decoded.
"""

import io
from collections.abc import Callable, Mapping
from struct import unpack_from
from types import MappingProxyType
from zlib import crc32

from PIL import Image
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile

from pipeline.errors import ImageError

MAX_PIXELS = 50_000_000
MIN_SIDE = 16
MAX_ASPECT = 50
_CHUNK_FRAME = 12  # a PNG chunk is its data and 4 bytes each of length, name and CRC


def open_image(data: bytes) -> Image.Image:
    """Open a JPEG or PNG file; its pixels are decoded when they are first asked for.

    Args:
        data: The whole file. All of a PNG file is checked against its checksums here.

    Raises:
        ImageError: Empty, no image, a format that is not allowed, several frames, too
            large, too small, too long; a PNG file that is truncated or damaged.
    """
    if not data:
        raise ImageError("empty file")
    opener = next((_OPENERS[magic] for magic in _OPENERS if data.startswith(magic)), None)
    if opener is None:
        raise ImageError(_what_instead(data))
    image = opener(data)
    check_size(*image.size)
    return image


def check_size(width: int, height: int) -> None:
    """Refuse an image by its size, in pixels, before any of it is decoded.

    Raises:
        ImageError: It is too large, too small or too long.
    """
    short, long = sorted((width, height))
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise ImageError(f"too large ({width} x {height}, limit {limit} Mpx)")
    if short < MIN_SIDE:
        raise ImageError(f"too small ({width} x {height}, smallest side allowed is {MIN_SIDE})")
    if long > MAX_ASPECT * short:
        raise ImageError(f"too long ({width} x {height}, limit {MAX_ASPECT} to 1)")


def what_is_wrong(data: bytes, cause: Exception) -> str:
    """The reason to list where Pillow gives up on a file of an allowed format.

    Damage inside the scan of a JPEG file goes unseen: the format has no checksum.
    """
    text = str(cause).splitlines()[0][:120] if str(cause) else type(cause).__name__
    cut_short = "truncated" in text.lower() or b"\xff\xd9" not in data  # JPEG's end mark
    if data.startswith(b"\xff") and cut_short:
        return "truncated"
    return f"damaged ({text})"


def _open_jpeg(data: bytes) -> Image.Image:
    image = jpeg_factory(io.BytesIO(data))
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageError(_several(frames))
    return image


def _open_png(data: bytes) -> Image.Image:
    """Pillow alone checks neither the CRC of the pixel data nor that the end is there."""
    at, name = 8, b""
    while name != b"IEND":
        if at + _CHUNK_FRAME > len(data):
            raise ImageError("truncated")
        length, name = unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise ImageError("truncated")
        if crc32(memoryview(data)[at + 4 : end]) != unpack_from(">I", data, end)[0]:
            raise ImageError(f"damaged (wrong checksum of PNG chunk at byte {at})")
        if name == b"acTL":
            raise ImageError(_several(*unpack_from(">I", data, at + 8)))
        at = end + 4
    return PngImageFile(io.BytesIO(data))


def _several(frames: int) -> str:
    return f"{frames} frames: which one is meant cannot be known; save the one as a file"


def _what_instead(data: bytes) -> str:
    """Name the kind of file, and never quote it: the text of a record can name a person."""
    for offset, magic, name in _OTHER_IMAGES:
        if data.startswith(magic, offset):
            return f"format not allowed ({name}; allowed are JPEG and PNG)"
    for magic, name in _OTHER_FILES:
        if data[:64].lstrip().lower().startswith(magic):
            return f"not an image (found {name})"
    head = data[:512]
    if not any(head):
        return "not an image (found only zero bytes)"
    is_text = all(byte >= ord(" ") or byte in b"\t\r\n\f" for byte in head)
    return f"not an image (found {'text' if is_text else 'unknown bytes'})"


_OPENERS: Mapping[bytes, Callable[[bytes], Image.Image]] = MappingProxyType(
    {b"\xff\xd8": _open_jpeg, b"\x89PNG\r\n\x1a\n": _open_png}
)
_OTHER_IMAGES = (
    (0, b"GIF8", "GIF"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WebP"),
    (4, b"ftyp", "AVIF, HEIF or video"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (128, b"DICM", "DICOM"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
)
_OTHER_FILES = (
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML"),
    (b"<svg", "SVG"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (b"\x93numpy", "a .npy array"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
)
