"""DICOM files: pixels as a viewer shows them, and the patient as a hash.

Only the tags listed here are read, never private ones, and only the hash leaves this file.
imagecodecs decodes compressed pixels (libjpeg-turbo, CharLS, OpenJPEG), pydicom run lengths.
"""

import hashlib
import io
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.items import (
    BITS_STORED,
    EIGHT_BITS,
    FILE_WINDOW,
    NO_RANGE,
    ReadOptions,
    scaled,
)
from pipeline.errors import ImageError

_PIXELS = "PixelData"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
#: Bits per value, by the kind of pixels; other kinds are not read.
_BITS = dict.fromkeys(_GREY, (8, 16)) | dict.fromkeys(_COLOUR, (8,))
#: All tags that are read, except the patient's.
_TAGS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence",
]  # fmt: skip
#: Codecs of imagecodecs by transfer syntax; all others are pydicom's.
_CODECS = {
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)), "jpeg8"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (80, 81)), "jpegls"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (90, 91)), "jpeg2k"),
}
_JPEG_2000 = b"\xff\x4f\xff\x51"
#: Rows and columns of a JPEG or JPEG-LS frame.
_FRAME_HEADER = re.compile(rb"\xff[\xc0-\xc3\xf7]...(....)", re.DOTALL)


def dicom_image(data: bytes, options: ReadOptions) -> Image.Image:
    """The image that a viewer would show, in mode L or RGB.

    Rescale slope and intercept are applied, then the declared window or the file's; MONOCHROME1
    is inverted. Without a window the whole range of the stored bits is shown. An ImageError if
    the file cannot be read.
    """
    header = _read(data, [*_TAGS, _PIXELS])
    kind = _checked(header)
    options.check_size(int(header.Columns), int(header.Rows))
    frame = options.frame_of(int(header.get("NumberOfFrames") or 1))
    pixels = _decoded(header, frame)
    if kind in _COLOUR:
        return Image.fromarray(pixels.astype(np.uint8))
    levels = _levels(pixels, header, options)
    return Image.fromarray(255 - levels if kind == "MONOCHROME1" else levels)


def dicom_depth(data: bytes) -> int:
    """The depth of the file's values; see :mod:`pipeline.data.items`."""
    header = _read(data, _TAGS)
    if _checked(header) in _COLOUR:
        return EIGHT_BITS
    if header.get("VOILUTSequence") or header.get("WindowWidth") is not None:
        return FILE_WINDOW
    return NO_RANGE if header.PixelRepresentation else BITS_STORED - int(header.BitsStored)


def patient_in(data: bytes, salt: bytes) -> str:
    """The patient as a salted hash (short ids could be guessed otherwise); empty if unknown."""
    patient = str(_read(data, ["PatientID"]).get("PatientID") or "").strip()
    if not patient:
        return ""
    return hashlib.blake2b(patient.encode(), key=salt, digest_size=12).hexdigest()


def _read(data: bytes, tags: list[str]) -> Any:
    try:
        import pydicom
    except ImportError as cause:
        raise ImageError('DICOM needs pydicom: pip install "headrace[dicom]"') from cause
    # Values that no pixel depends on are not checked; pydicom warns of them otherwise.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        # Without pixels asked for, reading ends where they begin.
        return pydicom.dcmread(
            io.BytesIO(data), specific_tags=tags, stop_before_pixels=_PIXELS not in tags
        )
    except Exception as cause:  # hostile bytes make it raise anything
        raise ImageError(f"damaged DICOM ({type(cause).__name__})") from cause


def _checked(header: Any) -> str:
    """The kind of pixels; an ImageError for kinds that are not read."""
    try:
        kind = str(header.PhotometricInterpretation)
        bits = int(header.BitsAllocated)
        _ = int(header.Rows), int(header.Columns), int(header.PixelRepresentation)
    except (AttributeError, TypeError, ValueError) as cause:
        raise ImageError("DICOM without pixels, such as a report") from cause
    if bits not in _BITS.get(kind, ()):
        raise ImageError(
            f"DICOM of {kind[:20]} with {bits} bits: allowed are grey of 8 or 16 bits, and "
            "RGB or YBR of 8"
        )
    return kind


def _decoded(header: Any, frame: int) -> NDArray[Any]:
    """The stored values, ``(rows, columns)``, or red, green and blue with 8 bits."""
    from pydicom.pixels import pixel_array

    syntax = header.file_meta.TransferSyntaxUID
    if syntax in _CODECS:
        return _decompressed(header, frame)
    try:
        return np.asarray(pixel_array(header, index=frame))
    except (RuntimeError, NotImplementedError) as cause:
        raise ImageError(f"damaged, or compressed as {syntax.name}, which is not read") from cause


def _decompressed(header: Any, frame: int) -> NDArray[Any]:
    from pydicom.encaps import get_frame
    from pydicom.pixels import convert_color_space

    try:
        import imagecodecs
    except ImportError as cause:
        raise ImageError('it is compressed: pip install "headrace[dicom]"') from cause
    codec = _CODECS[header.file_meta.TransferSyntaxUID]
    frames = int(header.get("NumberOfFrames") or 1)
    data = get_frame(header.PixelData, frame, number_of_frames=frames)
    _check_stream(data, header)
    kind = header.PhotometricInterpretation
    space = {"colorspace": "RGB" if kind == "RGB" else "YCBCR", "outcolorspace": "RGB"}
    colour = kind in _COLOUR
    decode = getattr(imagecodecs, f"{codec}_decode")
    if codec == "jpeg8":  # it turns YBR into RGB itself
        return np.asarray(decode(data, **(space if colour else {})))
    values = np.asarray(decode(data))
    if colour:
        full = kind.startswith("YBR_FULL")
        return np.asarray(convert_color_space(values, "YBR_FULL", "RGB")) if full else values
    return values


def _check_stream(data: bytes, header: Any) -> None:
    """Refuse compressed pixels whose size differs from the header, before they are decoded."""
    rows, columns = int(header.Rows), int(header.Columns)
    if data.startswith(_JPEG_2000):
        fits = data[8:16] == struct.pack(">II", columns, rows)
    else:
        frame = _FRAME_HEADER.search(data)
        fits = frame is not None and frame[1] == struct.pack(">HH", rows, columns)
    if not fits:
        raise ImageError("damaged (its pixels have another size than its header says)")


def _levels(pixels: NDArray[Any], header: Any, options: ReadOptions) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    if header.PixelRepresentation and pixels.dtype.kind == "u":  # codecs do not know signs
        unused = 8 * pixels.itemsize - int(header.BitsStored)
        pixels = (pixels << unused).view(f"i{pixels.itemsize}") >> unused
    values = apply_modality_lut(pixels, header)
    if options.window is not None:
        return scaled(values, options.window)
    if header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return scaled(apply_voi(values, header), (0, 2**bits - 1))
    if header.get("WindowWidth") is not None:
        # It is of rescaled values, and its range shall be that of grey levels.
        header.BitsStored, header.PixelRepresentation = 8, 0
        header.RescaleSlope = header.RescaleIntercept = header.ModalityLUTSequence = None
        return scaled(apply_windowing(values, header), (0, 255))
    if header.PixelRepresentation:
        raise ImageError("its values are signed; write window = [BLACK, WHITE] in the study")
    ends = np.array([0, 2 ** int(header.BitsStored) - 1], pixels.dtype)
    low, high = sorted(apply_modality_lut(ends, header).astype(float).tolist())
    return scaled(values, (low, high))
