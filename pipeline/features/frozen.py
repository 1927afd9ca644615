"""A frozen network: built from a file of weights, and run on uint8 pixels. Imports torch."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from pipeline.data.images import PixelPolicy, affine_map, views_of
from pipeline.errors import WeightsError
from pipeline.features.backbones import spec_of
from pipeline.features.weights import read_state
from pipeline.words import first_line


def build(name: str, file: Path) -> nn.Module:
    """The frozen network: eval mode, no gradients, classifier cut off.

    Raises:
        WeightsError: The file is no state dict, or does not fit the network.
    """
    state = read_state(file)
    try:
        network = spec_of(name).network(state)
    except (WeightsError, RuntimeError, KeyError, ValueError) as cause:
        raise WeightsError(f"{file} does not fit {name}: {first_line(cause)}") from cause
    # In numpy: torch would wake all its threads for each of hundreds of small tensors.
    values = {name: t.float().numpy() for name, t in network.state_dict().items()}
    if bad := [name for name, value in values.items() if not np.isfinite(value).all()]:
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
    """Uint8 pixels ``(n, size, size, 3)`` to the backbone's images ``(n, 3, size, size)``."""

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


class Views(nn.Module):
    """Pixels ``(n, size, size, 3)`` to their views ``(n * k, size, size, 3)``, in floats.

    What a rotation brings in from outside repeats the edge.
    """

    grids: Tensor
    brightness: Tensor

    def __init__(self, policy: PixelPolicy) -> None:
        super().__init__()
        views = views_of(policy.views)
        brightness = torch.tensor([view.pop("brightness") for view in views])
        maps = torch.from_numpy(np.stack([affine_map(**view) for view in views]))
        shape = [len(views), 3, policy.size, policy.size]
        grids = affine_grid(maps, shape, align_corners=False)
        self.register_buffer("grids", grids, persistent=False)
        self.register_buffer("brightness", brightness, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The views of the first picture, of the second, and so on."""
        images = pixels.permute(0, 3, 1, 2).to(self.brightness.dtype)
        views = [
            factor
            * grid_sample(
                images,
                grid.expand(images.shape[0], -1, -1, -1),
                padding_mode="border",
                align_corners=False,
            )
            for grid, factor in zip(self.grids, self.brightness, strict=True)
        ]
        return torch.stack(views, 1).flatten(0, 1).clamp(0, 255).permute(0, 2, 3, 1)


class Frozen(nn.Module):
    """Makes views and normalises inside the graph, so that only bytes travel to the device.

    Args:
        network: Float32 images ``(n, 3, size, size)`` to features ``(n, ...)``.
        policy: Size, views, mean and standard deviation are taken from it.
        layers: Names of modules within the network whose outputs ``(n, d, h, w)``, averaged
            over places, are the features, side by side; an empty name stands for what the
            network itself gives.
    """

    size: int

    def __init__(
        self, network: nn.Module, policy: PixelPolicy, layers: Sequence[str] = ("",)
    ) -> None:
        super().__init__()
        self.network, self.layers = network, layers
        self._pooled: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for layer in filter(None, layers):
            name = layer if layer in modules else f"features.{layer}"
            modules[name].register_forward_hook(partial(self._pool, layer))
        self.size = policy.size
        self.dtype = torch.float32
        self.layout = torch.channels_last
        self.views = Views(policy) if policy.views > 1 else None
        self.normalise = Normalise(policy)
        self.eval().requires_grad_(requires_grad=False)

    def place(self, device: torch.device, layout: torch.memory_format) -> None:
        """Move the network to a device, and run it on images that lie so in memory."""
        self.layout = layout
        self.to(device, memory_format=layout)  # type: ignore[call-overload]

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
        """Features of uint8 pixels ``(n, size, size, 3)``; of ``k`` views ``(n, k, ...)``."""
        seen = pixels if self.views is None else self.views(pixels)
        images = self.normalise(seen).to(self.dtype).contiguous(memory_format=self.layout)
        last: Tensor = self.network(images)
        by_layer = [self._pooled[layer] if layer else last for layer in self.layers]
        features = torch.cat(by_layer, 1) if len(by_layer) > 1 else by_layer[0]
        if self.views is None:
            return features
        return features.reshape(-1, len(self.views.grids), *features.shape[1:])

    def _pool(self, layer: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._pooled[layer] = output.mean((2, 3))
