"""From an image in memory (a file's bytes or a row of a stack) to pixels by a declared transform.

Only JPEG, PNG, TIFF, BMP, PGM, PPM and DICOM are opened, whatever the file's name. Every fault of a
file is an ``ImageError``, whose message is the reason to list. Decoding runs in many threads, so no
process-wide state is touched: Pillow's readers are called directly, because ``Image.open`` warns
about large images; the size is checked here before anything is decoded.

simplejpeg decodes the scan of an ordinary JPEG file: the same pixels as Pillow's, since both use
libjpeg-turbo, in 0.4 of the time at 224 x 224, and without Python's lock.
"""

import hashlib
import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from struct import unpack_from
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.data.dicom import dicom_depth, dicom_image, patient_in
from pipeline.data.items import (
    EIGHT_BITS,
    JPEG,
    NO_RANGE,
    PNG,
    TIFF,
    Depth,
    ReadOptions,
    is_dicom,
    scaled,
)
from pipeline.errors import ImageError
from pipeline.randomness import stream

_JPEG_END = b"\xff\xd9"
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262
_DEFAULT = ReadOptions()
_TWELVE_BITS = 1 << 12
_SIXTEEN_BITS = (1 << 16) - 1
_DEEP_MODES = ("I", "F")
#: By first bytes: formats of pixels and little else.
_SIMPLE_FORMATS: Mapping[bytes, Callable[[io.BytesIO], Image.Image]] = MappingProxyType(
    {b"BM": BmpImageFile, b"P5": PpmImageFile, b"P6": PpmImageFile}
)
#: ``fast`` decodes to at least this many times the network's side: 0.2 grey levels away.
_FAST_SCALE = 2
#: Shares of each side: the hidden middle, and a visible corner.
_CENTRE = 0.7
_CORNER = 0.2

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Everything that decides which pixels a network sees.

    Attributes:
        size: Side of the square result, pixels.
        resize: ``stretch``: straight to the square; the aspect is not kept, so that the
            whole field of view is seen, and an image of that size is not resampled at
            all. ``fast``: the same, but a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size
            where both sides keep twice the network's. ``crop``: as for ImageNet, the shorter
            side to ``size / crop_ratio``, then the centre.
        crop_ratio: Share of the shorter side that is kept, in (0, 1]; ``crop`` only.
        interpolation: ``bilinear`` or ``bicubic``: Pillow's, always antialiased.
        mean: Mean of each channel, red first, on the scale 0 to 1.
        std: Standard deviation of each channel, red first, on the scale 0 to 1.
        decode: ``cpu``, or ``gpu``: JPEG files are decoded and resized on a CUDA device, whose
            pixels differ by a grey level here and there.
        mask: What is hidden of the whole image before it is resized, to test what the
            rest alone predicts: ``none``; ``centre``: the middle 70 % of each side is black;
            ``corners``: only the four corners are left, 20 % of each side, put together.
        views: How many views of each image the network sees; see :func:`views_of`.
    """

    size: int = 224
    resize: str = "stretch"
    crop_ratio: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    decode: str = "cpu"
    mask: str = "none"
    views: int = 1

    @property
    def at_least(self) -> int | None:
        """The smallest side to which a JPEG file may be decoded; None: full size."""
        return _FAST_SCALE * self.size if self.resize == "fast" else None

    def to_json(self) -> dict[str, object]:
        """The whole declaration, for the recipe of the features; JSON types only."""
        # Only where they differ from the default: stores without them keep their fingerprint.
        optional = {
            "crop_ratio": float(self.crop_ratio) if self.resize == "crop" else None,
            "mask": self.mask if self.mask != "none" else None,
            "decode": self.decode if self.decode != "cpu" else None,
            "views": views_of(self.views) if self.views > 1 else None,
        }
        return {
            "size": int(self.size),
            "resize": self.resize,
            **{name: value for name, value in optional.items() if value is not None},
            "interpolation": self.interpolation,
            "antialias": True,
            "mean": [float(x) for x in self.mean],
            "std": [float(x) for x in self.std],
            "colour": "grey replicated to RGB / RGB",
            "palette": "looked up",
            "alpha": "composited on black",
            "cmyk": "Adobe-inverted, (255 - c)(255 - k) / 255",
            "bit_depth": "16-bit grey: x/257, rounded; 16-bit colour: the high byte",
            "exif": "transpose",
            "icc": "ignored",
        }


class RememberedFile(NamedTuple):
    """What the index remembers of an image, so that its file need not be read again.

    Attributes:
        digest: Digest of its content, 32 bytes.
        depth: See :mod:`pipeline.data.items`.
        patient: Hash of the patient in its header; empty if not wanted or not there.
    """

    digest: bytes
    depth: Depth = None
    patient: str = ""

    def key(self, options: ReadOptions) -> bytes:
        """Content key, 32 bytes, under the options of its domain."""
        return self.digest if self.depth is None else options.key(self.digest)


@dataclass(frozen=True)
class Content:
    """An image in memory: the bytes that are hashed are the bytes that are decoded.

    All methods raise an ImageError, with the reason, if the image cannot be used. Damage in a PNG
    file is always found; damage inside the scan of a JPEG file looks like image content, because
    the format has no checksum.

    Attributes:
        data: The bytes of a file; or a row of a stack, ``(H, W)`` or ``(H, W, 3)``, any numbers.
        options: How files of its domain are read.
    """

    data: bytes | NDArray[Any]
    options: ReadOptions = _DEFAULT

    @property
    def key(self) -> bytes:
        """SHA-256 of the content; with more than 8 bits, also of the declared window."""
        digest = self._digest()
        return self.options.key(digest) if self._may_be_deep() else digest

    def remembered(self, salt: bytes | None = None) -> RememberedFile:
        """The entry for the index; the patient of its header only if there is a salt."""
        patient = ""
        if salt and isinstance(self.data, bytes) and is_dicom(self.data):
            patient = patient_in(self.data, salt)
        return RememberedFile(self._digest(), self._depth(), patient)

    def image(self, at_least: int | None = None) -> Image.Image:
        """The image before it is resized: upright, in mode L or RGB.

        A JPEG file may be decoded smaller, with sides of ``at_least`` this many pixels.
        """
        if not isinstance(self.data, bytes):
            return Image.fromarray(_levels_of_row(self.data, self.options))
        with _reasons(self.data):
            if is_dicom(self.data):
                return dicom_image(self.data, self.options)
            image, orientation = open_image(self.data, self.options)
            if isinstance(image, JpegImageFile):
                image = _decoded_jpeg(image, at_least)
            if orientation in _TURNS:
                image = image.transpose(_TURNS[orientation])
            image = _in_eight_bits(image, self.options.window)
            image.load()
        return image

    def pixels(self, transform: Transform) -> Pixels:
        """Shape ``(size, size, 3)``, 0 to 255, red first, read-only."""
        return _fitted(self.image(transform.at_least), transform)

    def _digest(self) -> bytes:
        if isinstance(self.data, bytes):
            return hashlib.sha256(self.data).digest()
        # Moving a row to another file keeps it.
        digest = hashlib.sha256(f"{self.data.dtype.str}|{self.data.shape}|".encode())
        digest.update(self.data.data)
        return digest.digest()

    def _may_be_deep(self) -> bool:
        """Whether its format has more than 8 bits, so that a window applies."""
        if not isinstance(self.data, bytes):
            return self.data.dtype != np.uint8
        grey_of_16_bits = self.data.startswith(PNG) and self.data[24:26] == b"\x10\x00"
        return grey_of_16_bits or self.data.startswith(TIFF) or is_dicom(self.data)

    def _depth(self) -> Depth:
        if not self._may_be_deep():
            return None
        if not isinstance(self.data, bytes):
            return int(self.data.max()) if self.data.dtype == np.uint16 else NO_RANGE
        with _reasons(self.data):
            if is_dicom(self.data):
                return dicom_depth(self.data)
            return _depth_of(open_image(self.data, self.options)[0])


def decode(data: bytes, transform: Transform, options: ReadOptions = _DEFAULT) -> Pixels:
    """The pixels of an image file; see :class:`Content`."""
    return Content(data, options).pixels(transform)


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turn every error that a file causes into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as cause:
        raise ImageError("not enough memory to decode it") from cause
    except Exception as cause:  # hostile bytes make Pillow raise anything at all
        text = str(cause).splitlines()[0][:120] if str(cause) else type(cause).__name__
        cut_short = "truncated" in text.lower() or _JPEG_END not in data
        is_cut = data.startswith(b"\xff") and cut_short
        raise ImageError("truncated" if is_cut else f"damaged ({text})") from cause


# From bytes to an image: what is opened, and the reason to give where a file is not.


def open_image(data: bytes, options: ReadOptions = _DEFAULT) -> tuple[Image.Image, int]:
    """Open a file that is not DICOM; its pixels are decoded when they are first used.

    If a JPEG file holds several images, as phones write them, the first is taken. A PNG file is
    checked against all its checksums.

    Returns:
        The image as it is stored, and its orientation, 1 (upright) to 8, as EXIF counts.
    """
    if not data:
        raise ImageError("empty file")
    if data.startswith(JPEG):
        content, orientation = _split_jpeg(data)
        image: Image.Image = JpegImageFile(io.BytesIO(content))
    elif data.startswith(PNG):
        content, orientation = _split_png(data)
        image = PngImageFile(io.BytesIO(content))
    elif data.startswith(TIFF):
        image, orientation = TiffImageFile(io.BytesIO(data)), 1  # Pillow turns it itself
        if (frame := options.frame_of(image.n_frames)) > 0:
            image.seek(frame)
    elif data[:2] in _SIMPLE_FORMATS:
        image, orientation = _SIMPLE_FORMATS[data[:2]](io.BytesIO(data)), 1
        if image.mode.startswith(_DEEP_MODES):
            raise ImageError("PGM of more than 8 bits: convert it to PNG")
    else:
        raise ImageError(_what_instead(data))
    options.check_size(*image.size)
    return image, orientation


def plain_jpeg(data: bytes, options: ReadOptions = _DEFAULT) -> tuple[bytes, int, int] | None:
    """An ordinary, whole JPEG file, fit for another decoder; None for any other file.

    Returns:
        The file without metadata; its orientation, see :func:`open_image`; its number of pixels.
    """
    if not data.startswith(JPEG) or not data.rstrip(b"\0").endswith(_JPEG_END):
        return None
    try:
        image, orientation = open_image(data, options)
    except Exception:  # noqa: BLE001 - `decode` has the reason
        return None
    ordinary = image.mode in ("L", "RGB") and image.info.get("adobe_transform", 1) == 1
    assert isinstance(image, JpegImageFile)  # noqa: S101 - by its first bytes
    assert isinstance(image.fp, io.BytesIO)  # noqa: S101 - open_image made it
    return (image.fp.getvalue(), orientation, image.width * image.height) if ordinary else None


def _decoded_jpeg(image: JpegImageFile, at_least: int | None) -> Image.Image:
    """The image of an opened JPEG file; Pillow decodes files that are not ordinary."""
    assert isinstance(image.fp, io.BytesIO)  # noqa: S101 - open_image made it
    if at_least and min(image.size) >= 2 * at_least:
        image.draft(None, (at_least, at_least))
        return image
    if image.mode not in ("L", "RGB"):
        return image
    colours = "GRAY" if image.mode == "L" else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(image.fp.getbuffer(), colours)
    except ValueError:  # Pillow decides what is damaged
        return image
    return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)


def _what_instead(data: bytes) -> str:
    """Name the kind of file; never quote it, because its text can name a person."""
    head = data[:512].lower()
    is_text = all(byte >= ord(" ") or byte in b"\t\r\n\f" for byte in head)
    fits = (kind for at, magic, kind in _OTHER_FILES if head.lstrip().startswith(magic, at))
    kind = next(fits, "text" if is_text else "unknown bytes")
    return f"neither JPEG, PNG, TIFF, BMP, PGM, PPM nor DICOM (found {kind})"


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_FILES = (
    (0, b"gif8", "GIF"),
    (8, b"webp", "WebP"),
    (4, b"ftyp", "AVIF, HEIF or video"),
    (0, b"%pdf", "PDF"),
    (0, b"<!doctype html", "HTML"),
    (0, b"<html", "HTML"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
)


# Files without the metadata that no pixel depends on: broken or hostile EXIF, colour profiles,
# thumbnails and texts never make an image unusable, and no warning of theirs reaches the user.

_UPRIGHT = 1
_ORIENTATION = 0x0112
#: Sizes of the integer types of TIFF: BYTE, SHORT, LONG.
_INTEGERS = {1: "B", 3: "H", 4: "I"}

_PNG_MAGIC_BYTES = 8
_CHUNK_FRAME = 12  # a PNG chunk is its data and 4 bytes each of length, name and CRC
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_METADATA_CHUNKS = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
_PNG_XMP = b"XML:com.adobe.xmp"
_LONGEST_TEXT = 1 << 20

_SCAN, _APP1 = 0xDA, 0xE1
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def _split_jpeg(data: bytes) -> tuple[bytes, int]:
    """A JPEG file without metadata, and its orientation, 1 to 8.

    Of the application segments only JFIF and Adobe are kept, by which a decoder knows the
    colours. Where the structure is broken, the rest is kept for the decoder to refuse.
    """
    pieces, exif, xmp = [data[:2]], b"", b""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = unpack_from(">BH", data, at + 1)
        end = at + 2 + length
        if marker == _SCAN or not 0xC0 <= marker <= 0xFE or length < 2 or end > len(data):
            break
        body = data[at + 4 : end]
        if marker == _APP1 and body.startswith(_EXIF):
            exif += body.removeprefix(_EXIF)
        elif marker == _APP1 and body.startswith(_XMP):
            xmp += body
        if _is_needed(marker, body):
            pieces.append(data[at:end])
        at = end
    if sum(map(len, pieces)) < at:  # a file from which nothing is cut is not copied either
        data = b"".join([*pieces, memoryview(data)[at:]])
    return data, _orientation(exif, xmp)


def _split_png(data: bytes) -> tuple[bytes, int]:
    """A PNG file without metadata, and its orientation, 1 to 8.

    Every chunk is checked: Pillow alone checks neither the CRC of the pixel data nor that the end
    is there.
    """
    pieces, metadata = [data[:_PNG_MAGIC_BYTES]], dict[bytes, bytes]()
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
            pieces.append(data[at : end + 4])
        elif name == b"acTL" and length >= 4 and (frames := unpack_from(">I", body)[0]) > 1:
            raise ImageError(
                f"{frames} frames: it is unclear which one is meant; save the one as a file"
            )
        elif name in _METADATA_CHUNKS:
            keyword, text = _text(name, bytes(body))
            metadata[keyword] = text
        at = end + 4
    return b"".join(pieces), _orientation(_exif_of_png(metadata), metadata.get(_PNG_XMP, b""))


def _text(chunk: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Keyword and text of a chunk of metadata; empty where it cannot be unpacked."""
    if chunk == b"eXIf":
        return chunk, body
    keyword, _, text = body.partition(b"\0")
    packed = chunk == b"zTXt"
    text = text[1:] if packed else text  # the method
    if chunk == b"iTXt":  # flag, method, language, translated keyword
        packed = text[:1] == b"\1"
        text = text[2:].split(b"\0", 2)[-1]
    with suppress(zlib.error):
        return keyword, zlib.decompressobj().decompress(text, _LONGEST_TEXT) if packed else text
    return b"", b""


def _exif_of_png(metadata: Mapping[bytes, bytes]) -> bytes:
    """EXIF of a chunk, or of ImageMagick's text: a head of three lines, then hexadecimal."""
    exif = metadata.get(b"eXIf", b"")
    with suppress(ValueError):
        lines = metadata.get(b"Raw profile type exif", b"").split(b"\n")[3:]
        exif = exif or bytes.fromhex(b"".join(lines).decode("latin-1"))
    return exif.removeprefix(_EXIF)


def _is_needed(marker: int, body: bytes) -> bool:
    """Whether a decoder needs a segment; segments that are too short are not needed."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 12
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _orientation(exif: bytes, xmp: bytes) -> int:
    """The orientation in the first directory of EXIF, else in XMP; upright if neither has one."""
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
    match = _XMP_ORIENTATION.search(xmp)
    return int(match[1]) if match else _UPRIGHT


# From any mode to eight bits.


def _in_eight_bits(image: Image.Image, window: tuple[float, float] | None) -> Image.Image:
    """An opaque image in mode L or RGB, whatever the file stores."""
    if image.mode.startswith(_DEEP_MODES):
        return _from_deep(image, window)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        black = Image.new("RGB", image.size)
        black.paste(colours, mask=colours)
        return black
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _from_deep(image: Image.Image, window: tuple[float, float] | None) -> Image.Image:
    """Grey levels by the window, else divided by 257 (65535 is white; Pillow clips at 255)."""
    values = np.asarray(image)
    if window is None:
        if (top := _depth_of(image)) == NO_RANGE:
            raise ImageError("its values have no range; write window = [BLACK, WHITE] in the study")
        if 0 < top < _TWELVE_BITS:
            raise ImageError(
                f"12 bits stored in 16 (largest value {top} of 65535): it would be all but black; "
                "write bits = 12 in the study"
            )
        levels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        levels = scaled(values, window)
    if (clear := image.info.get("transparency")) is not None:
        levels[values == clear] = 0
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    return Image.fromarray(levels)


def _depth_of(image: Image.Image) -> int:
    """The depth of an image, such as the largest value if it has more than 8 bits."""
    if not image.mode.startswith(_DEEP_MODES):
        return EIGHT_BITS
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _SIXTEEN_BITS:
        return NO_RANGE
    return int(values.max())


def _levels_of_row(row: NDArray[Any], options: ReadOptions) -> Pixels:
    if row.dtype == np.uint8:
        return row
    window = options.window or ((0.0, 65535.0) if row.dtype == np.uint16 else None)
    if window is None:
        raise ImageError(f"values of {row.dtype} have no range; write window = [BLACK, WHITE]")
    return scaled(row, window)


# From an image to the square that the network sees.


def _fitted(image: Image.Image, transform: Transform) -> Pixels:
    """The square of an image that a network sees; grey is one channel until it is resized."""
    image = _masked(image, transform.mask)
    size, width, height = transform.size, transform.size, transform.size
    if transform.resize == "crop":  # the same integers as torchvision's Resize and CenterCrop
        target, short = round(size / transform.crop_ratio), min(image.size)
        width, height = (target * side // short for side in image.size)
    if image.size != (width, height):  # Pillow would copy it
        image = image.resize((width, height), Image.Resampling[transform.interpolation.upper()])
    if image.size != (size, size):
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _masked(image: Image.Image, mask: str) -> Image.Image:
    if mask == "centre":
        margin = (1 - _CENTRE) / 2
        left, top = (round(margin * side) for side in image.size)
        masked = image.copy()
        masked.paste(0, (left, top, image.width - left, image.height - top))
        return masked
    if mask != "corners":
        return image
    # At their own resolution, so that a marker can still be read.
    width, height = (max(1, round(_CORNER * side)) for side in image.size)
    together = Image.new(image.mode, (2 * width, 2 * height))
    for x, left in enumerate((0, image.width - width)):
        for y, top in enumerate((0, image.height - height)):
            corner = image.crop((left, top, left + width, top + height))
            together.paste(corner, (x * width, y * height))
    return together


# Fixed augmented views of an image: their numbers are in the recipe.


#: Largest rotation either way, degrees; smallest side of the crop, as a share; largest change
#: of brightness.
DEGREES, SIDE, _BRIGHTER = 10.0, 0.85, 0.15


def views_of(count: int) -> list[dict[str, float]]:
    """The parameters of the first ``count`` views, the same for every recipe; JSON types.

    The first view is the unchanged image. Every second view is mirrored left and right, which
    is wrong for a label that means a side. ``side`` is the side of the visible part as a share of
    the image's; ``right`` and ``down`` say where its centre lies.
    """
    whole = {"mirror": 0, "degrees": 0.0, "side": 1.0, "right": 0.0, "down": 0.0, "brightness": 1.0}
    return [whole, *map(_drawn, range(1, count))]


def _drawn(number: int) -> dict[str, float]:
    draw = stream("view", number)
    side = round(draw.uniform(SIDE, 1), 3)
    return {
        "mirror": number % 2,
        "degrees": round(draw.uniform(-DEGREES, DEGREES), 2),
        "side": side,
        "right": round(draw.uniform(side - 1, 1 - side), 3),
        "down": round(draw.uniform(side - 1, 1 - side), 3),
        "brightness": round(draw.uniform(1 - _BRIGHTER, 1 + _BRIGHTER), 3),
    }


def affine_map(
    *, mirror: float, degrees: float, side: float, right: float, down: float
) -> NDArray[np.float32]:
    """Affine map from a view (see :func:`views_of`) to the image, both -1 to 1; ``(2, 3)``."""
    sign, angle = 1 - 2 * mirror, math.radians(degrees)
    cos, sin = side * math.cos(angle), side * math.sin(angle)
    return np.array([[sign * cos, -sin, right], [sign * sin, cos, down]], np.float32)


# Sheets of images, to be looked at by eye. A sheet is patient data; it names no file.


#: Side of each image in a sheet, pixels.
SHEET_SIDE = 160
_ABREAST = 6
_GAP, _MARGIN, _LINE = 4, 14, 15
_INK = (32, 32, 32)
#: Images side by side, each of shape ``(SHEET_SIDE, SHEET_SIDE, 3)``, and the lines below.
SheetEntry = tuple[Sequence[Pixels], Sequence[str]]


def draw_sheet(entries: Sequence[SheetEntry]) -> bytes:
    """A PNG file of images, six in a row; all entries have the same number of images."""
    from PIL import ImageDraw, ImageFont  # late: decoding needs neither

    images, lines = map(len, entries[0])
    columns = min(_ABREAST // images, len(entries))
    room = images * (SHEET_SIDE + _GAP) - _GAP
    width, height = room + _MARGIN, SHEET_SIDE + _LINE * lines + _MARGIN
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (_MARGIN + columns * width, _MARGIN + rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (side_by_side, below) in enumerate(entries):
        left, top = _MARGIN + i % columns * width, _MARGIN + i // columns * height
        for number, pixels in enumerate(side_by_side):
            sheet.paste(Image.fromarray(pixels), (left + number * (SHEET_SIDE + _GAP), top))
        for number, line in enumerate(below):
            text = line
            while pen.textlength(text, font=font) > room:
                text = text[:-2] + "…"
            pen.text((left, top + SHEET_SIDE + 2 + number * _LINE), text, fill=_INK, font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
