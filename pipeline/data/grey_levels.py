"""From values of more than 8 bits to grey levels, by one rule for all images of a domain.

Each picture by its own darkest and brightest value would take away what the study may be
about: how bright a picture is. So the rule is declared in the study, comes with DICOM files,
or is guessed from all images of a domain together and said.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError

#: Of an image, unless a study allows more.
MAX_PIXELS = 50_000_000
_MIN_SIDE = 16
_MAX_ASPECT = 50

#: What a file holds, so far as the rule depends on it: None for a file of 8 bits, else the
#: largest value, or one of these.
Depth = int | None
EIGHT_BITS = 0  # of a format that may have more
FILE_WINDOW = -1  # DICOM with a window
NO_RANGE = -2  # signed, real, or without a limit: a window must be declared
#: DICOM without a window: this minus its number of bits.
BITS_STORED = -100


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the files of a domain are read.

    Attributes:
        window: Values that become black and white; None: as the format declares.
        frame: ``first`` or ``middle`` of several; None: a file with several is refused.
        max_pixels: A larger image is refused before it is decoded.
    """

    window: tuple[float, float] | None = None
    frame: str | None = None
    max_pixels: int = MAX_PIXELS

    def key(self, content: bytes) -> bytes:
        """Key of a file with this SHA-256: features made by another rule are never taken for it."""
        if self.window is None and self.frame is None:
            return content
        return hashlib.sha256(content + f"{self.window}|{self.frame}".encode()).digest()

    def frame_of(self, frames: int) -> int:
        """Which of several frames is read; an ImageError where none is chosen."""
        if frames > 1 and self.frame is None:
            raise ImageError(f'{frames} frames; choose with frame = "first" or "middle"')
        return frames // 2 if self.frame == "middle" else 0

    def check_size(self, width: int, height: int) -> None:
        """Refuse an image by its size, in pixels, with an ImageError, before it is decoded."""
        short, long = sorted((width, height))
        if width * height > self.max_pixels:
            limit = f"limit {self.max_pixels / 1e6:g} Mpx; max_megapixels in the study sets it"
            raise ImageError(f"too large ({width} x {height}, {limit})")
        if short < _MIN_SIDE:
            why = f"smallest side allowed is {_MIN_SIDE}"
            raise ImageError(f"too small ({width} x {height}, {why})")
        if long > _MAX_ASPECT * short:
            raise ImageError(f"too long ({width} x {height}, limit {_MAX_ASPECT} to 1)")


def scaled(values: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Bring values to 0 to 255; an ImageError where some are no numbers."""
    low, high = window
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    if not np.isfinite(levels).all():
        raise ImageError("some pixels are NaN or infinite")
    return np.asarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
