"""Metadata never makes a picture unusable, and only the orientation of it is believed."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.images import PixelPolicy, decode, split_jpeg
from tests.image_files import SIZE, jpeg, picture, png

AS_IS = PixelPolicy(size=SIZE)
TURNED = 6


def tiff(*entries: tuple[int, int, int, bytes], order: str = "<", after: bytes = b"") -> bytes:
    """A TIFF structure with one directory of (tag, type, count, value or offset)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + after


ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", TURNED, 0))
RATIONAL = tiff(
    ORIENTATION, (0x829A, 10, 1, struct.pack("<I", 38)), after=struct.pack("<ii", -1, 0)
)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segment(marker: int, body: bytes) -> bytes:
    """A JPEG file with one segment more, first of all."""
    return jpeg()[:2] + segment(marker, body) + jpeg()[2:]


def with_exif(content: bytes) -> bytes:
    return with_segment(0xE1, b"Exif\0\0" + content)


def with_chunk(name: bytes, body: bytes) -> bytes:
    """A PNG file with one chunk more, after its header."""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png()[:33] + chunk + png()[33:]


BOMB = zlib.compress(bytes(3_000_000))
HARMLESS = {
    "EXIF that is no TIFF": with_exif(b"garbage that is no TIFF"),
    "EXIF that is cut": with_exif(b"II*\0\x08\0\0\0\x05\0"),
    "EXIF with two orientations": with_exif(tiff((0x0112, 3, 2, struct.pack("<HH", 6, 3)))),
    "a directory of pictures that is none": with_segment(0xE2, b"MPF\0garbage"),
    "an Adobe segment that is cut": with_segment(0xEE, b"Adobe"),
    "a comment that looks like markers": with_segment(0xFE, b"\xff\xfe\x00"),
    "a compressed text that is a bomb": with_chunk(b"zTXt", b"k\0\0" + BOMB),
    "a colour profile that is a bomb": with_chunk(b"iCCP", b"k\0\0" + BOMB),
    "a resolution that is cut": with_chunk(b"pHYs", b"\0"),
    "an animation of one frame": with_chunk(b"acTL", struct.pack(">II", 1, 0)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_metadata_that_is_not_needed_changes_nothing(name):
    """The pixels are those of the file without it, and nobody is warned."""
    data = HARMLESS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(data, AS_IS)
    plain = jpeg() if data.startswith(b"\xff") else png()
    np.testing.assert_array_equal(pixels, decode(plain, AS_IS))


READABLE = {
    "beside a rational of -1/0": with_exif(RATIONAL),
    "in big-endian order": with_exif(
        tiff((0x0112, 3, 1, struct.pack(">HH", TURNED, 0)), order=">")
    ),
    "before the directory is cut": with_exif(
        tiff(ORIENTATION)[:-4].replace(b"\1\0\x12", b"\5\0\x12")
    ),
    "over two segments": jpeg()[:2]
    + segment(0xE1, b"Exif\0\0" + RATIONAL[:20])
    + segment(0xE1, b"Exif\0\0" + RATIONAL[20:])
    + jpeg()[2:],
    "in a chunk of its own": with_chunk(b"eXIf", RATIONAL),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_orientation_that_can_be_read_is_followed(name):
    """Whatever else is wrong in the metadata around it."""
    data = READABLE[name]
    plain = jpeg() if data.startswith(b"\xff") else png()
    upright = np.rot90(decode(plain, AS_IS), -1)
    np.testing.assert_array_equal(decode(data, AS_IS), upright)


def test_the_colours_of_an_adobe_file_stay_as_declared():
    """RGB and YCCK are known by a segment that must not be cut away."""
    inks = np.dstack([picture(), picture(seed=1)[..., 0] // 3])
    data = jpeg(Image.fromarray(inks, "CMYK"))
    content, _ = split_jpeg(data)
    assert b"Adobe" in content
    as_pillow = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(decode(data, AS_IS), np.asarray(as_pillow))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_as_exif_leave_the_picture_usable(content):
    """A picture in one of the eight orientations comes out."""
    flat = [decode(with_exif(content), AS_IS), decode(with_chunk(b"eXIf", content), AS_IS)]
    assert [pixels.shape for pixels in flat] == [(SIZE, SIZE, 3)] * 2
