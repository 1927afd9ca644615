"""Small random changes of training images that leave the label as it is.

What happens to an image depends on (seed, epoch, row) alone: neither the batch it comes
in, nor the process that works on it, nor a training that was cut off moves anything.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

#: Largest rotation either way, degrees.
_DEGREES = 10.0
#: Smallest side of the crop, share of the image's.
_SIDE = 0.85

#: Pixels uint8 ``(n, s, s, 3)``, seed, epoch, sample rows ``(n,)`` -> pixels of that kind.
Augmentation = Callable[["Tensor", int, int, NDArray[np.intp]], "Tensor"]


def _none(pixels: "Tensor", seed: int, epoch: int, rows: NDArray[np.intp]) -> "Tensor":  # noqa: ARG001 - the table's signature
    return pixels


def _light(pixels: "Tensor", seed: int, epoch: int, rows: NDArray[np.intp]) -> "Tensor":
    """Mirror left and right, rotate and crop in one bilinear resampling.

    What a rotation brings in from outside repeats the edge. A mirrored chest has its
    heart on the right: harmless for opacities, wrong for a label that means a side.

    Raises:
        ValueError: Stored activations instead of pixels.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"augmentation light works on pixels, uint8 (n, s, s, 3), got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}: stored activations cannot be augmented; use none"
        )
    maps = np.stack([_light_map(seed, epoch, int(row)) for row in rows])
    images = pixels.permute(0, 3, 1, 2).float()
    grid = affine_grid(torch.from_numpy(maps), list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _light_map(seed: int, epoch: int, row: int) -> NDArray[np.float32]:
    """From places in the result to places in the image, both -1 to 1; shape ``(2, 3)``."""
    draw = np.random.default_rng([seed, *b"augmentation", epoch, row])
    mirror = -1.0 if draw.random() < 0.5 else 1.0  # noqa: PLR2004 - a fair coin
    angle = math.radians(draw.uniform(-_DEGREES, _DEGREES))
    side = draw.uniform(_SIDE, 1.0)
    right, down = draw.uniform(side - 1, 1 - side, 2)
    cos, sin = side * math.cos(angle), side * math.sin(angle)
    return np.array([[mirror * cos, -sin, right], [mirror * sin, cos, down]], np.float32)


#: To add an augmentation: a function above and a line here.
AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType({"none": _none, "light": _light})
