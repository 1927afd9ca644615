"""A frozen network as the engines run it: uint8 pixels in, float32 features out."""

import torch
from torch import Tensor, nn

from pipeline.images import PixelPolicy


class Normalise(nn.Module):
    """Uint8 pixels ``(n, size, size, 3)`` to the backbone's images ``(n, 3, size, size)``.

    In the precision that the module was moved to.

    Args:
        policy: Mean and standard deviation are taken from it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, policy: PixelPolicy) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(policy.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(policy.std).view(shape), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images, channels last in memory."""
        # The same operations in the same order as ToTensor and Normalize.
        images = pixels.permute(0, 3, 1, 2).to(self.mean.dtype).div(255)
        return (images - self.mean) / self.std


class Frozen(nn.Module):
    """Normalises inside the graph, so that only bytes travel to the device.

    Args:
        network: Float32 images ``(n, 3, size, size)`` to features ``(n, ...)``.
        policy: Size, mean and standard deviation are taken from it.
    """

    size: int

    def __init__(self, network: nn.Module, policy: PixelPolicy) -> None:
        super().__init__()
        self.network = network
        self.size = policy.size
        self.normalise = Normalise(policy)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of uint8 pixels of shape ``(n, size, size, 3)``."""
        features: Tensor = self.network(self.normalise(pixels))
        return features
