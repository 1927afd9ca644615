"""Where a backbone is cut for partial fine-tuning: a frozen prefix, and the tail that moves.

Prefix and tail are views: they hold the backbone's own modules, so what is trained in
the tail is trained in the backbone. To add a backbone: a function and a line in ``CUTS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.errors import NoCutError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How one backbone is taken apart.

    Attributes:
        where: The cut in words, as the recipe of the stored activations names it.
        split: The pooled network of :func:`pipeline.backbones.build` to prefix and
            tail; ``tail(prefix(images))`` are the network's features.
        first_block: Names of the modules of the stem and the first stage.
    """

    where: str
    split: Callable[[Any], "tuple[nn.Module, nn.Module]"]
    first_block: tuple[str, ...]


def cut_of(backbone: str) -> Cut:
    """The cut of a backbone.

    Raises:
        NoCutError: It has none; the message lists those that have one.
    """
    if backbone not in CUTS:
        raise NoCutError(
            f"{backbone} has no cut, so no part of it can be trained alone; "
            f"backbones with a cut: {', '.join(CUTS)}; the method full needs none"
        )
    return CUTS[backbone]


def _densenet121(network: Any) -> "tuple[nn.Module, nn.Module]":
    """512 x 7 x 7 of 224 x 224 pixels; the final ReLU and pooling as in its ``forward``."""
    from torch import nn

    features = dict(network.features.named_children())
    at = list(features).index("transition3") + 1
    closing = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    modules = list(features.values())
    return nn.Sequential(*modules[:at]), nn.Sequential(*modules[at:], *closing)


def _googlenet(network: Any) -> "tuple[nn.Module, nn.Module]":
    """832 x 7 x 7; its own change of the input's normalisation belongs to the prefix."""
    from torch import nn

    modules = dict(network.named_children())
    at = list(modules).index("maxpool4") + 1
    prefix = list(modules.values())[:at]
    tail = [network.inception5a, network.inception5b, network.avgpool, nn.Flatten(1)]
    return nn.Sequential(_transform_input(network), *prefix), nn.Sequential(*tail)


def _transform_input(network: Any) -> "nn.Module":
    from torch import Tensor, nn

    class TransformInput(nn.Module):
        """GoogLeNet's own step from ImageNet's normalisation to (x - 0.5) / 0.5."""

        def forward(self, images: Tensor) -> Tensor:
            changed: Tensor = network._transform_input(images)  # noqa: SLF001 - torchvision has no other name for it
            return changed

    return TransformInput()


def _resnet50(network: Any) -> "tuple[nn.Module, nn.Module]":
    """1024 x 14 x 14."""
    from torch import nn

    modules = list(network.children())
    at = modules.index(network.layer4)
    tail = nn.Sequential(network.layer4, network.avgpool, nn.Flatten(1))
    return nn.Sequential(*modules[:at]), tail


def _efficientnet_lite0(network: Any) -> "tuple[nn.Module, nn.Module]":
    """192 x 7 x 7; the tail is the last stage and the convolution after it."""
    from torch import nn

    stages = list(network.blocks)
    prefix = nn.Sequential(network.conv_stem, network.bn1, *stages[:-1])
    tail = nn.Sequential(stages[-1], network.conv_head, network.bn2, network.global_pool)
    return prefix, tail


#: The stem and the first stage are the ``first_block`` of surgical fine-tuning.
CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        "densenet121": Cut(
            where="after transition3",
            split=_densenet121,
            first_block=tuple(
                f"features.{name}" for name in ("conv0", "norm0", "denseblock1", "transition1")
            ),
        ),
        "googlenet": Cut(
            where="after maxpool4",
            split=_googlenet,
            first_block=("conv1", "conv2", "conv3", "inception3a", "inception3b"),
        ),
        "resnet50": Cut(
            where="before layer4", split=_resnet50, first_block=("conv1", "bn1", "layer1")
        ),
        "efficientnet_lite0": Cut(
            where="before the last stage",
            split=_efficientnet_lite0,
            first_block=("conv_stem", "bn1", "blocks.0"),
        ),
    }
)
