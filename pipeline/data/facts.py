"""Facts of one image that say nothing of its class: size, greys, file, and how it looks.

The audit tests whether they predict the label all the same, and shift how hospitals differ in
them. The measures of appearance are what a technician would name (exposure, contrast, noise,
sharpness, marks in the corners); each is made to ignore what the others measure.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.grey_levels import Reading
from pipeline.data.images import Pixels, open_image
from pipeline.errors import ImageError

_Grey = NDArray[np.float64]
_DEFAULT = Reading()

#: _Grey values between which no pixel is near the ends of the scale.
_MIDTONES = (0.15, 0.85)
#: The second difference of the second difference: zero on planes (Immerkaer 1996).
_GRAIN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float)
_NORMAL_MEDIAN = 0.6745  # median of |z| for a standard normal z
#: Pictures are averaged down by whole numbers until the longer side is below twice this.
_LONG_SIDE = 256
#: How much brighter than its surroundings a stroke is.
_STROKE = 0.3
_FLOOR = 1e-3  # logarithms of shares and of noise start here
#: Share of each side that counts as border, on each end.
_BORDER = 0.05
#: Side of the small picture by which near copies are found.
SMALL = 48
#: Luminance table of ITU-T T.81, annex K.1, row by row: what libjpeg scales by quality.
_ANNEX_K = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)


# Measures of appearance; the grey values of a picture are 0 to 1.


def _exposure(grey: _Grey) -> float:
    """Mean grey of the middle two thirds, 0 to 1."""
    return float(_middle(grey).mean())


def _contrast(grey: _Grey) -> float:
    """Standard deviation of grey in the middle two thirds, 0 to 0.5."""
    return float(_middle(grey).std())


def _noise(grey: _Grey) -> float:
    """Log of the grain's standard deviation plus 0.001, from mid-grey pixels.

    The median of the response to Immerkaer's mask (Computer Vision and Image
    Understanding 64, 1996), which edges hardly move. NaN where no pixel is mid-grey.
    """
    from scipy import ndimage

    response = ndimage.convolve(grey, _GRAIN)[1:-1, 1:-1]
    inside = grey[1:-1, 1:-1]
    flat = np.abs(response[(inside > _MIDTONES[0]) & (inside < _MIDTONES[1])])
    if not flat.size:
        return float("nan")
    sigma = np.median(flat) / _NORMAL_MEDIAN / np.linalg.norm(_GRAIN)
    return float(np.log(sigma + _FLOOR))


def _sharpness(grey: _Grey) -> float:
    """Log of the mean absolute Laplacian at a scale of one pixel."""
    from scipy import ndimage

    edges = ndimage.gaussian_laplace(grey, 1.0)
    return float(np.log(np.abs(edges).mean() + 1e-6))


def _corner_marks(grey: _Grey) -> float:
    """Log of the share (plus 0.001) of thin bright strokes in the corner that has most.

    A stroke is thinner than a 25th of the picture and brighter by 0.3 than what
    surrounds it (white top-hat): letters that are burnt in, no anatomy.
    """
    from scipy import ndimage

    size = max(3, round(min(grey.shape) / 25))
    down, across = (max(1, length // 4) for length in grey.shape)
    rows, columns = (slice(down), slice(-down, None)), (slice(across), slice(-across, None))
    strokes = (ndimage.white_tophat(grey[r, c], size=size) for r in rows for c in columns)
    return float(np.log(max((s > _STROKE).mean() for s in strokes) + _FLOOR))


def _middle(grey: _Grey) -> _Grey:
    down, across = (length // 6 for length in grey.shape)
    return grey[down : grey.shape[0] - down, across : grey.shape[1] - across]


#: To add a measure: a function above and one line here.
APPEARANCE: Mapping[str, Callable[[_Grey], float]] = MappingProxyType(
    {
        "exposure": _exposure,
        "contrast": _contrast,
        "noise": _noise,
        "sharpness": _sharpness,
        "corner_marks": _corner_marks,
    }
)

#: The facts of one image. Greys are 0 to 255; ``jpeg_quality`` is 1 to 100, NaN where the
#: file is no JPEG; ``small`` is the picture at a small size, by which near copies are found;
#: ``pixels`` the digest of the pixels. The last are those of :data:`APPEARANCE`.
FACTS = np.dtype(
    [
        ("key", np.uint8, (32,)),
        ("pixels", np.uint8, (32,)),
        ("small", np.uint8, (SMALL, SMALL)),
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


def facts_of_picture(picture: Image.Image) -> NDArray[Any]:
    """One record of ``FACTS`` of a picture of mode L or RGB; its key and those of the file stay 0.

    For the measures of appearance, what is twice as large as a network's input, or larger, is
    averaged down first: finer grain does not count.
    """
    facts = np.zeros((), FACTS)
    greys = picture.convert("L")
    values = np.asarray(greys)
    facts["pixels"] = np.frombuffer(_digest(picture), np.uint8)
    facts["small"] = greys.resize((SMALL, SMALL), Image.Resampling.BOX)
    facts["height"], facts["width"] = values.shape
    facts["mean"], facts["std"] = values.mean(), values.std()
    facts["border"] = _border_mean(values)
    reduced = np.asarray(greys.reduce(max(1, max(values.shape) // _LONG_SIDE))) / 255
    for name, measure in APPEARANCE.items():
        facts[name] = measure(reduced)
    return facts


def _digest(picture: Image.Image) -> bytes:
    """SHA-256 of the pixels; grey stored as three equal channels is grey."""
    values = np.asarray(picture)
    if values.ndim > 2 and (values == values[..., :1]).all():
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


def jpeg_quality(data: bytes, reading: Reading = _DEFAULT) -> float:
    """The libjpeg quality, 1 to 100, whose luminance table is nearest to the file's.

    Exact for files of libjpeg; NaN for what is no JPEG.
    """
    if not data.startswith(b"\xff\xd8"):
        return float("nan")
    tables: Mapping[int, Any] = getattr(open_image(data, reading)[0], "quantization", {})
    table = np.array(tables.get(0, ()))
    if table.size != _ANNEX_K.size:
        raise ImageError("damaged (no quantisation table)")
    return float(1 + np.abs(_LIBJPEG - table).sum(axis=1).argmin())


def _libjpeg_tables() -> NDArray[np.int64]:
    """Tables of qualities 1 to 100, as libjpeg scales them, shape ``(100, 64)``."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.asarray(np.clip((_ANNEX_K * scale + 50) // 100, 1, 255), np.int64)


_LIBJPEG = _libjpeg_tables()
