"""Fixed augmented views of a picture: the numbers of each, the same for every image.

A recipe holds them, so a store of views is never mixed with another. How pixels are moved by
them is in ``pipeline.features.frozen``.
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.randomness import stream

#: Largest rotation either way, degrees; smallest side of the crop, as a share; largest change
#: of brightness.
DEGREES, SIDE, _BRIGHTER = 10.0, 0.85, 0.15
MOST_VIEWS = 32


def views_of(count: int) -> list[dict[str, float]]:
    """The first so many views; JSON types.

    The first is the picture as it is, and every second one is mirrored left and right. A
    mirrored chest has its heart on the right: harmless for opacities, wrong for a label that
    means a side.
    """
    plain = {"mirror": 0, "degrees": 0.0, "side": 1.0, "right": 0.0, "down": 0.0, "brightness": 1.0}
    return [plain, *map(_drawn, range(1, count))]


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
    """From places in a view to places in the picture, both -1 to 1; shape ``(2, 3)``.

    Args:
        mirror: Whether left and right change places.
        degrees: Of the rotation.
        side: Of the part that is seen, as a share of the picture's.
        right: Where its middle lies.
        down: Likewise.
    """
    sign, angle = 1 - 2 * mirror, math.radians(degrees)
    cos, sin = side * math.cos(angle), side * math.sin(angle)
    return np.array([[sign * cos, -sin, right], [sign * sin, cos, down]], np.float32)
