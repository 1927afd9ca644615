"""Bytes of good and of bad image files, built in memory.

``good_files`` must all be taken; ``bad_files`` must all be refused, each with the reason
that its regular expression matches. Other tests write them to disk under any name.
"""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.items import Listing
from pipeline.data.sources import scan
from pipeline.study import ABSENT, SEALED, TargetDomain

SIZE = 64
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def picture(height: int = SIZE, width: int = SIZE, seed: int = 0) -> np.ndarray:
    """A smooth colour picture with no symmetry, shape ``(height, width, 3)``, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height, x / width
    waves = [
        np.sin(3 * x * rng.uniform(1, 2) + rng.uniform()) * np.cos(2 * y + c) + x for c in range(3)
    ]
    scaled = np.stack(waves, axis=-1)
    return np.uint8(255 * (scaled - scaled.min()) / np.ptp(scaled))


def encoded(pixels, file_format: str, **options) -> bytes:
    """A picture, as an array or a Pillow image, in any of Pillow's formats."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg(pixels=None, **options) -> bytes:
    return encoded(picture() if pixels is None else pixels, "JPEG", **options)


def png(pixels=None, **options) -> bytes:
    return encoded(picture() if pixels is None else pixels, "PNG", **options)


def turned(orientation: int, file_format: str, pixels=None) -> bytes:
    """A picture with an EXIF orientation, 1 to 8, that a reader must follow."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(48, 80) if pixels is None else pixels, file_format, exif=exif)


def raw_png(width: int, height: int, depth: int, colour: int, **chunks: bytes) -> bytes:
    """A PNG file written by hand: any header, and any chunks, IDAT's data uncompressed."""
    body = {"IHDR": struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), **chunks}
    if "IDAT" in body:
        body["IDAT"] = zlib.compress(body["IDAT"])
    return PNG_MAGIC + b"".join(_chunk(k.encode(), v) for k, v in {**body, "IEND": b""}.items())


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def rows_of(samples: np.ndarray) -> bytes:
    """Samples, shape ``(height, ...)``, as unfiltered PNG rows; 16 bits big-endian."""
    big = samples.astype(samples.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big)


def grey16(samples: np.ndarray, **chunks: bytes) -> bytes:
    """A 16-bit grey PNG of uint16 samples, shape ``(height, width)``."""
    height, width = samples.shape
    return raw_png(width, height, 16, 0, **chunks, IDAT=rows_of(samples.astype(np.uint16)))


def dicom(values: np.ndarray, *, bits: int = 12, syntax: str = "", **tags) -> bytes:
    """A DICOM file of one picture or several, with a name and a private tag in its header."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    header = pydicom.Dataset()
    colour = values.shape[-1] == 3
    header.Rows, header.Columns = values.shape[:2] if colour else values.shape[-2:]
    header.NumberOfFrames = values.shape[0] if values.ndim == 3 and not colour else 1
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    if colour:
        header.SamplesPerPixel, header.PhotometricInterpretation = 3, "RGB"
        header.PlanarConfiguration = 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 * values.itemsize, bits, bits - 1
    header.PixelRepresentation = int(values.dtype.kind == "i")
    header.PatientName, header.PatientID = "Doe^Jane", "P-007"
    header.add_new(0x00091001, "LO", "Doe")
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    for name, value in tags.items():
        setattr(header, name, value)
    header.PixelData = values.tobytes()
    header["PixelData"].VR = "OW"
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax:
        header.compress(syntax)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, header, enforce_file_format=True)
    return buffer.getvalue()


def multi_picture_jpeg() -> bytes:
    return encoded(picture(), "MPO", save_all=True, append_images=[Image.fromarray(picture())])


def huge_png() -> bytes:
    """The header of 10,000 x 10,000 pixels; a decoder would want 300 MB for it."""
    return raw_png(10_000, 10_000, 8, 2, IDAT=b"")


def huge_jpeg() -> bytes:
    """The header of 10,000 x 10,000 pixels over the scan of a small picture."""
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 10_000, 10_000)
    return bytes(data)


def flipped(data: bytes, bit: int) -> bytes:
    """The file with one bit wrong."""
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@cache
def good_files() -> dict[str, bytes]:
    """Name, with an honest ending, to content; each decodes."""
    image = Image.fromarray(picture())
    clear = Image.fromarray(
        np.dstack([picture(), np.tile(np.arange(SIZE, dtype=np.uint8), (64, 1))])
    )
    return {
        "colour.jpg": jpeg(),
        "grey.jpg": jpeg(image.convert("L")),
        "progressive.jpeg": jpeg(progressive=True),
        "cmyk.jpg": jpeg(image.convert("CMYK")),
        "turned.jpg": turned(6, "JPEG"),
        "pair.jpg": multi_picture_jpeg(),
        "after-the-end.jpg": jpeg() + b"trailing bytes",
        "colour.png": png(),
        "grey.png": png(image.convert("L")),
        "one-bit.png": png(image.convert("1")),
        "palette.png": png(image.quantize(32)),
        "clear-palette.png": png(image.quantize(32), transparency=3),
        "alpha.png": png(clear),
        "grey-alpha.png": png(clear.convert("LA")),
        "sixteen.png": grey16(picture()[..., 0].astype(np.uint16) * 257),
        "large.png": png(picture(300, 400)),
        "turned.png": turned(3, "PNG"),
        "colour.tif": encoded(picture(), "TIFF"),
        "packed.tif": encoded(picture(), "TIFF", compression="tiff_lzw"),
        "sixteen.tif": encoded(picture()[..., 0].astype(np.uint16) * 257, "TIFF"),
        "colour.bmp": encoded(picture(), "BMP"),
        "grey.pgm": encoded(picture()[..., 0], "PPM"),
        "colour.ppm": encoded(picture(), "PPM"),
    }


@cache
def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name, with an ending that is taken, to content and the expected reason (a pattern)."""
    return {
        "empty.jpg": (b"", r"^empty file$"),
        "page.jpg": (b"\n<!DOCTYPE html><html>404</html>", r"DICOM \(found HTML\)$"),
        "text.png": (
            b"Patient: A. B.\n" * 9,
            r"^neither JPEG, PNG, TIFF, BMP, PGM, PPM nor DICOM \(found text\)$",
        ),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", r"Git LFS pointer"),
        "noise.jpg": (b"\x01\x02\x03\xfe" * 99, r"\(found unknown bytes\)$"),
        "gif.jpg": (encoded(picture(), "GIF"), r"\(found GIF\)$"),
        "cut.bmp": (encoded(picture(), "BMP")[:5000], r"^damaged \(.*truncated"),
        "text.bmp": (b"BMI of all patients\n" * 9, r"^damaged"),
        "deep.pgm": (b"P5 64 64 4095\n" + bytes(8192), r"^PGM of more than 8 bits: convert"),
        "cut.tif": (encoded(picture(), "TIFF")[:5000], r"^(truncated|damaged)"),
        "webp.jpg": (encoded(picture(), "WEBP"), r"\(found WebP\)$"),
        "pdf.jpg": (encoded(picture(), "PDF"), r"\(found PDF\)$"),
        "dicom.jpg": (bytes(128) + b"DICM" + bytes(40), r"^DICOM without pixels"),
        "flipped.png": (flipped(png(), 8 * (len(png()) // 2)), r"^damaged \("),
        "huge.png": (huge_png(), r"^too large \(10000 x 10000, limit 50 Mpx; max_megapixels"),
        "huge.jpg": (huge_jpeg(), r"^too large \(10000 x 10000, limit 50 Mpx; max_megapixels"),
        "small.png": (png(picture(15, 200)), r"^too small \(200 x 15,"),
        "dot.jpg": (jpeg(picture(1, 1)), r"^too small \(1 x 1,"),
        "long.png": (png(picture(16, 801)), r"^too long \(801 x 16,"),
        "animated.png": (
            png(save_all=True, append_images=[Image.fromarray(picture(seed=1))]),
            r"^2 frames",
        ),
        "twelve.png": (grey16(np.full((32, 32), 4095, np.uint16)), r"^12 bits stored in 16"),
    }


def with_files(root: Path, *paths: str) -> Path:
    """Write the same JPEG or PNG picture under each path below the root."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg() if "jp" in file.suffix.lower() else png())
    return root


def with_stack(root: Path, name: str, array: np.ndarray, **options) -> Path:
    """Write an array as a .npy file below the root."""
    root.mkdir(exist_ok=True)
    np.save(root / name, array, **options)
    return root


def pictures(count: int = 3, seed: int = 0) -> np.ndarray:
    """Different grey pictures, shape ``(count, SIZE, SIZE)``."""
    return np.stack([picture(seed=seed + i)[..., 0] for i in range(count)])


def listed(root: Path, *, labelled: bool = True, **domain) -> Listing:
    """What a domain of this path holds."""
    labels = SEALED if labelled else ABSENT
    return scan(TargetDomain(path=root, name="far", labels=labels, **domain))
