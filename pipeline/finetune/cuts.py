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
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cache.store import FeatureStore
from pipeline.data.images import PixelPolicy
from pipeline.data.samples import Samples
from pipeline.errors import NoImagesError
from pipeline.features.backbones import policy_of, weights_file
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import fill_store
from pipeline.features.load import check_weights, store_for
from pipeline.finetune.data import Held, numbered
from pipeline.study import BackboneChoice, Study
from pipeline.words import printable

if TYPE_CHECKING:
    from pipeline.features.frozen import Frozen


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How one backbone is taken apart.

    Attributes:
        where: The cut in words, as the recipe of the stored activations names it.
        split: The pooled network of :func:`pipeline.features.frozen.build` to prefix and
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


# What the frozen part of a backbone says of each image, taken once into a store.


#: Pooling of a row that is a map.
UNPOOLED = "none"
#: Activations up to this size are read into memory: 80,000 images of 512 x 7 x 7.
HELD_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the frozen part of a backbone ends.

    Attributes:
        choice: The backbone as the study asks for it.
        size: Side of the images, pixels; None takes the backbone's own.
        at_cut: At the cut of partial fine-tuning; else after the whole backbone.
    """

    choice: BackboneChoice
    size: int | None = None
    at_cut: bool = True

    @property
    def policy(self) -> PixelPolicy:
        """From bytes to the pixels that the backbone sees."""
        policy = policy_of(self.choice.name, self.choice.resize)
        return policy if self.size is None else replace(policy, size=self.size)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Activations of all samples, and what it cost to have them.

    Attributes:
        examples: In sample order.
        shape: Of one row.
        computed: Images that the frozen part was run on now; the others were stored.
        seconds: For these.
    """

    examples: Held
    shape: tuple[int, ...]
    computed: int
    seconds: float


def store_at(study: Study, place: Place) -> FeatureStore:
    """The store of a place; nothing is built where the weights have been loaded before.

    Raises:
        NoCutError: The backbone has no cut.
        WeightsError: The weights are not here and cannot be fetched, or do not fit.
    """
    recipe = store_for(study, place.choice).recipe
    recipe = replace(recipe, preprocessing=place.policy.to_json())
    if place.at_cut:
        recipe = replace(recipe, cut=cut_of(place.choice.name).where, pooling=UNPOOLED)
    return FeatureStore(study.store_root, recipe)


def frozen_part(place: Place, store: FeatureStore) -> "Frozen":
    """The network that fills the store of a place: uint8 pixels in, rows out.

    Raises:
        WeightsError: The weights are not those of the store.
    """
    from pipeline.features.frozen import Frozen, build

    name = place.choice.name
    network = build(name, weights_file(name, place.choice.weights))
    check_weights(network, store.recipe)
    return Frozen(cut_of(name).split(network)[0] if place.at_cut else network, place.policy)


def take(study: Study, place: Place, samples: Samples, engine: EngineChoice | None = None) -> Taken:
    """Rows of all samples at a place; what the store lacks is computed now, once.

    Raises:
        NoImagesError: They need more memory than ``HELD_BYTES``, or an image cannot be
            used any more.
        PipelineError: See ``pipeline.features.extract``.
    """
    store = store_at(study, place)
    keys, at = numbered(samples)
    missing = {
        key: item for key, item in zip(samples.key, samples.items, strict=True) if key not in store
    }
    start = time.perf_counter()
    if missing:
        unusable = fill_store(
            store,
            missing,
            build=lambda: frozen_part(place, store),
            weights=weights_file(place.choice.name, place.choice.weights),
            policy=place.policy,
            engine=engine or EngineChoice(),
            title=f"{place.choice.name} {store.recipe.cut}",
        )
        for key, reason in unusable.items():
            raise NoImagesError(
                f"{printable(missing[key].path)} cannot be used ({reason}); run headrace features "
                "STUDY again, which lists such images"
            )
    seconds = time.perf_counter() - start if missing else 0.0
    shape = store.row_shape() or ()
    _check_memory(len(keys), shape)
    return Taken(
        examples=Held(store.read(keys), at, samples.label),
        shape=shape,
        computed=len(missing),
        seconds=seconds,
    )


def _check_memory(rows: int, shape: tuple[int, ...]) -> None:
    needed = rows * int(np.prod(shape)) * 4
    if needed > HELD_BYTES:
        raise NoImagesError(
            f"the activations of {rows} images take {needed / 1e9:.0f} GB and at most "
            f"{HELD_BYTES / 1e9:.0f} GB are held in memory: use --limit or a smaller --image-size"
        )
