"""Cheap facts of one image that say nothing of illness, and should not tell it.

Size, grey levels, border, file size and JPEG quality show how a picture was made; the
difference hash and the digest of the pixels show which pictures are the same one.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images import Pixels, measured
from pipeline.images.appearance import APPEARANCE, appearance
from pipeline.images.formats import open_image

#: One image a row. Greys are 0 to 255; ``jpeg_quality`` is 1 to 100, NaN where the file is
#: no JPEG; ``dhash`` is the 64-bit difference hash; ``pixels`` the digest of the pixels. The
#: last are those of :data:`pipeline.images.appearance.APPEARANCE`.
FACTS = np.dtype(
    [
        ("key", np.uint8, (32,)),
        ("pixels", np.uint8, (32,)),
        ("dhash", np.uint64),
        ("height", np.int32),
        ("width", np.int32),
        ("mean", np.float32),
        ("std", np.float32),
        ("border", np.float32),
        ("file_bytes", np.int64),
        ("jpeg_quality", np.float32),
        *((name, np.float32) for name in APPEARANCE),
    ]
)
#: Share of each side that counts as border, on each end.
_BORDER = 0.05
_HASH_SIZE = (9, 8)
#: Luminance table of ITU-T T.81, annex K.1, row by row: what libjpeg scales by quality.
_ANNEX_K = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)


def facts_of_file(data: bytes) -> NDArray[Any]:
    """Facts of a JPEG or PNG file, without its key.

    Args:
        data: The whole file.

    Returns:
        One record of dtype ``FACTS``, shape ``()``.

    Raises:
        ImageError: See :func:`pipeline.images.decode`.
    """
    facts = measured(data, facts_of_picture)
    facts["file_bytes"] = len(data)
    facts["jpeg_quality"] = jpeg_quality(data)
    return facts


def facts_of_array(pixels: Pixels) -> NDArray[Any]:
    """Facts of a row of a stack, ``(H, W)`` or ``(H, W, 3)``; its bytes are the file's share."""
    facts = facts_of_picture(Image.fromarray(pixels))
    facts["file_bytes"] = pixels.nbytes
    facts["jpeg_quality"] = np.nan
    return facts


def facts_of_picture(picture: Image.Image) -> NDArray[Any]:
    """Facts of a picture at its own size, mode L or RGB; file size and quality stay 0."""
    facts = np.zeros((), FACTS)
    greys = picture.convert("L")
    values = np.asarray(greys)
    facts["pixels"] = np.frombuffer(_digest(picture), np.uint8)
    facts["dhash"] = difference_hash(greys)
    facts["height"], facts["width"] = values.shape
    facts["mean"], facts["std"] = values.mean(), values.std()
    facts["border"] = _border_mean(values)
    for name, value in appearance(values).items():
        facts[name] = value
    return facts


def difference_hash(greys: Image.Image) -> np.uint64:
    """dHash: for each of 8 x 8 cells, whether it is brighter than its left neighbour.

    Shrunk by averaging whole cells, so that noise and a shift by one pixel hardly count.
    """
    cells = np.asarray(greys.resize(_HASH_SIZE, Image.Resampling.BOX)).astype(np.int16)
    bits = np.diff(cells, axis=1) > 0
    return np.uint64(np.packbits(bits.ravel()).view(">u8")[0])


def jpeg_quality(data: bytes) -> float:
    """The libjpeg quality, 1 to 100, whose luminance table is nearest to the file's.

    Exact for files of libjpeg; NaN for what is no JPEG.

    Raises:
        ImageError: The file cannot be opened.
    """
    if not data.startswith(b"\xff\xd8"):
        return float("nan")
    tables: Mapping[int, Any] = getattr(open_image(data), "quantization", {})
    table = np.array(tables.get(0, ()))
    if table.size != _ANNEX_K.size:
        raise ImageError("damaged (no quantisation table)")
    return float(1 + np.abs(_LIBJPEG - table).sum(axis=1).argmin())


def _libjpeg_tables() -> NDArray[np.int64]:
    """Tables of qualities 1 to 100, as libjpeg scales them, shape ``(100, 64)``."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)  # noqa: PLR2004 - libjpeg's
    return np.asarray(np.clip((_ANNEX_K * scale + 50) // 100, 1, 255), np.int64)


def _digest(picture: Image.Image) -> bytes:
    """SHA-256 of the pixels; grey stored as three equal channels is grey."""
    values = np.asarray(picture)
    if values.ndim > 2 and (values == values[..., :1]).all():  # noqa: PLR2004 - has channels
        values = np.ascontiguousarray(values[..., 0])
    digest = hashlib.sha256(f"{values.shape}|".encode())
    digest.update(values.data)
    return digest.digest()


def _border_mean(values: Pixels) -> float:
    """Mean grey of the outer frame."""
    rows, columns = (max(1, round(_BORDER * side)) for side in values.shape)
    inside = values[rows:-rows, columns:-columns]
    total = values.sum(dtype=np.int64) - inside.sum(dtype=np.int64)
    return float(total / (values.size - inside.size))


_LIBJPEG = _libjpeg_tables()


def columns(facts: NDArray[Any]) -> Mapping[str, NDArray[np.float64]]:
    """The facts that a probe may learn from, each of shape ``(n,)`` and finite.

    Sizes are logarithms, because a doubling means the same at any size. What does not
    vary is left out; a picture that is no JPEG has the mean quality of those that are.
    """
    is_jpeg = np.isfinite(facts["jpeg_quality"])
    quality = facts["jpeg_quality"].astype(np.float64)
    usual = quality[is_jpeg].mean() if is_jpeg.any() else 0.0
    found = {
        "height": np.log(facts["height"]),
        "width": np.log(facts["width"]),
        "aspect": np.log(facts["width"] / facts["height"]),
        "mean grey": facts["mean"].astype(np.float64),
        "deviation of grey": facts["std"].astype(np.float64),
        "border grey": facts["border"].astype(np.float64),
        "file size": np.log(facts["file_bytes"]),
        "JPEG quality": np.where(is_jpeg, quality, usual),
        "is JPEG": is_jpeg.astype(np.float64),
    }
    return MappingProxyType({name: v for name, v in found.items() if np.ptp(v) > 0})
