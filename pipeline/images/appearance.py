"""How one picture looks: a few numbers, each moved by one habit of a hospital.

They are what a technician would name (exposure, contrast, noise, sharpness, marks in the
corners), so that a difference between hospitals can be told in words. Each is made to
ignore what the others measure: grain is judged where nothing is cut off at black or
white, brightness away from the border.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Grey = NDArray[np.float64]

#: Grey values between which no pixel is near the ends of the scale.
_MIDTONES = (0.15, 0.85)
#: The second difference of the second difference: zero on planes (Immerkaer 1996).
_GRAIN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float)
_NORMAL_MEDIAN = 0.6745  # median of |z| for a standard normal z
#: Pictures are averaged down by whole numbers until the longer side is below twice this.
_LONG_SIDE = 256
#: How much brighter than its surroundings a stroke is.
_STROKE = 0.3
_FLOOR = 1e-3  # logarithms of shares and of noise start here


def exposure(grey: Grey) -> float:
    """Mean grey of the middle two thirds, 0 to 1."""
    return float(_middle(grey).mean())


def contrast(grey: Grey) -> float:
    """Standard deviation of grey in the middle two thirds, 0 to 0.5."""
    return float(_middle(grey).std())


def noise(grey: Grey) -> float:
    """Log of the grain's standard deviation plus 0.001, from mid-grey pixels.

    The median of the response to Immerkaer's mask (Computer Vision and Image
    Understanding 64, 1996), which edges hardly move. NaN where no pixel is mid-grey.
    """
    response = ndimage.convolve(grey, _GRAIN)[1:-1, 1:-1]
    inside = grey[1:-1, 1:-1]
    flat = np.abs(response[(inside > _MIDTONES[0]) & (inside < _MIDTONES[1])])
    if not flat.size:
        return float("nan")
    sigma = np.median(flat) / _NORMAL_MEDIAN / np.linalg.norm(_GRAIN)
    return float(np.log(sigma + _FLOOR))


def sharpness(grey: Grey) -> float:
    """Log of the mean absolute Laplacian at a scale of one pixel."""
    edges = ndimage.gaussian_laplace(grey, 1.0)
    return float(np.log(np.abs(edges).mean() + 1e-6))


def corner_marks(grey: Grey) -> float:
    """Log of the share (plus 0.001) of thin bright strokes in the corner that has most.

    A stroke is thinner than a 25th of the picture and brighter by 0.3 than what
    surrounds it (white top-hat): letters that are burnt in, no anatomy.
    """
    size = max(3, round(min(grey.shape) / 25))
    down, across = (max(1, length // 4) for length in grey.shape)
    rows, columns = (slice(down), slice(-down, None)), (slice(across), slice(-across, None))
    strokes = (ndimage.white_tophat(grey[r, c], size=size) for r in rows for c in columns)
    return float(np.log(max((s > _STROKE).mean() for s in strokes) + _FLOOR))


def appearance(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """All of :data:`APPEARANCE` for one picture.

    Args:
        pixels: Grey, uint8 of shape ``(height, width)``. What is twice as large as a
            network's input, or larger, is averaged down first: finer grain does not count.
    """
    factor = max(1, max(pixels.shape) // _LONG_SIDE)
    grey = np.asarray(Image.fromarray(pixels).reduce(factor)) / 255
    return {name: measure(grey) for name, measure in APPEARANCE.items()}


def _middle(grey: Grey) -> Grey:
    down, across = (length // 6 for length in grey.shape)
    return grey[down : grey.shape[0] - down, across : grey.shape[1] - across]


#: To add a measure: a function of grey values 0 to 1 above and one line here.
APPEARANCE: Mapping[str, Callable[[Grey], float]] = MappingProxyType(
    {
        "exposure": exposure,
        "contrast": contrast,
        "noise": noise,
        "sharpness": sharpness,
        "corner_marks": corner_marks,
    }
)
