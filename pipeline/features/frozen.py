"""A frozen network: built from a file of weights, and run on uint8 pixels. Imports torch."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.data.images import PixelPolicy
from pipeline.errors import WeightsError
from pipeline.features.backbones import spec_of
from pipeline.features.weights import read_state


def build(name: str, file: Path) -> nn.Module:
    """The frozen network: eval mode, no gradients, classifier cut off.

    Raises:
        WeightsError: The file is no state dict, or does not fit the network.
    """
    state = read_state(file)
    try:
        network = spec_of(name).network(state)
    except (WeightsError, RuntimeError, KeyError, ValueError) as cause:
        raise WeightsError(f"{file} does not fit {name}: {str(cause).splitlines()[0]}") from cause
    if bad := [name for name, t in network.state_dict().items() if not t.isfinite().all()]:
        raise WeightsError(f"{file}: {bad[0]} is not finite: these weights are broken")
    return network.eval().requires_grad_(requires_grad=False)


def state_digest(network: nn.Module) -> str:
    """Hex SHA-256 over the sorted state dict: name, dtype, shape, bytes of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
        self.dtype = torch.float32
        self.normalise = Normalise(policy)
        self.eval().requires_grad_(requires_grad=False)

    def cast(self, dtype: torch.dtype) -> None:
        """Hold the network in another precision, but for its batch normalisation.

        The statistics of that are small differences of large numbers, and cost no time.
        """
        for module in self.network.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - no other name
                module._apply(  # type: ignore[no-untyped-call]  # noqa: SLF001 - `to` takes the modules within along
                    lambda t: t.to(dtype) if t.is_floating_point() else t, recurse=False
                )
        self.dtype = dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of uint8 pixels of shape ``(n, size, size, 3)``."""
        features: Tensor = self.network(self.normalise(pixels).to(self.dtype))
        return features
