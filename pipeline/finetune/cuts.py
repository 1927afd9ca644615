"""Where a backbone is cut for partial fine-tuning: a frozen prefix, and the tail that moves.

Prefix and tail are views: they hold the backbone's own modules, so what is trained in
the tail is trained in the backbone. The prefix runs once over each image; its activations
are kept in a store. To add a backbone: a function and a line in ``CUTS``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from cache.store import FeatureStore
from pipeline.data.images import PixelPolicy
from pipeline.data.samples import Samples
from pipeline.errors import NoCutError, NoImagesError
from pipeline.features.backbones import policy_of, weights_file
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import fill_stores
from pipeline.features.frozen import Frozen, build
from pipeline.features.load import check_weights, store_for
from pipeline.finetune.data import Held, hold, number_keys, refuse_unusable
from pipeline.study import BackboneChoice, Study

#: Pooling of a row that is a map.
_UNPOOLED = "none"
#: Activations up to this size are read into memory: 80,000 images of 512 x 7 x 7.
HELD_BYTES = 8 << 30


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
    split: Callable[[Any], tuple[nn.Module, nn.Module]]
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


def _densenet121(network: Any) -> tuple[nn.Module, nn.Module]:
    """512 x 7 x 7 of 224 x 224 pixels; the final ReLU and pooling as in its ``forward``."""
    features = dict(network.features.named_children())
    at = list(features).index("transition3") + 1
    closing = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    modules = list(features.values())
    return nn.Sequential(*modules[:at]), nn.Sequential(*modules[at:], *closing)


def _googlenet(network: Any) -> tuple[nn.Module, nn.Module]:
    """832 x 7 x 7; its own change of the input's normalisation belongs to the prefix."""
    modules = dict(network.named_children())
    at = list(modules).index("maxpool4") + 1
    prefix = list(modules.values())[:at]
    tail = [network.inception5a, network.inception5b, network.avgpool, nn.Flatten(1)]
    return nn.Sequential(_TransformInput(network), *prefix), nn.Sequential(*tail)


class _TransformInput(nn.Module):
    """GoogLeNet's own step from ImageNet's normalisation to (x - 0.5) / 0.5."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._step = network._transform_input  # noqa: SLF001 - torchvision has no other name for it

    def forward(self, images: Tensor) -> Tensor:
        changed: Tensor = self._step(images)
        return changed


def _resnet50(network: Any) -> tuple[nn.Module, nn.Module]:
    """1024 x 14 x 14."""
    modules = list(network.children())
    at = modules.index(network.layer4)
    tail = nn.Sequential(network.layer4, network.avgpool, nn.Flatten(1))
    return nn.Sequential(*modules[:at]), tail


def _efficientnet_lite0(network: Any) -> tuple[nn.Module, nn.Module]:
    """192 x 7 x 7; the tail is the last stage and the convolution after it."""
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


# The rows of the frozen part, computed once and read back for every epoch.


def pixel_policy(choice: BackboneChoice, size: int | None) -> PixelPolicy:
    """From bytes to the pixels that a backbone sees; without a size, its own side."""
    policy = policy_of(replace(choice, decode="cpu", views=1))
    return policy if size is None else replace(policy, size=size)


def frozen_store(
    study: Study, choice: BackboneChoice, *, size: int | None = None, at_cut: bool
) -> FeatureStore:
    """The store of a frozen part; nothing is built where the weights have been loaded before.

    Args:
        study: Where stores are.
        choice: The backbone as the study asks for it.
        size: Side of the images, pixels; None takes the backbone's own.
        at_cut: The part before the cut; else the whole backbone.

    Raises:
        NoCutError: The backbone has no cut.
        WeightsError: The weights are not here and cannot be fetched, or do not fit.
    """
    recipe = store_for(study, choice).recipe
    recipe = replace(recipe, preprocessing=pixel_policy(choice, size).to_json())
    if at_cut:
        recipe = replace(recipe, cut=cut_of(choice.name).where, pooling=_UNPOOLED)
    return FeatureStore(study.store_root, recipe)


def stored_rows(
    study: Study,
    choice: BackboneChoice,
    samples: Samples,
    *,
    size: int | None = None,
    at_cut: bool,
    engine: EngineChoice,
    device: str = "cpu",
) -> Held:
    """Rows of all samples; what the store lacks is computed now, once.

    Args:
        study: Where stores are.
        choice: The backbone.
        samples: In the order of the rows.
        size: See :func:`frozen_store`; so ``at_cut``.
        at_cut: Activations before the cut; else pooled features.
        engine: Computes what is missing.
        device: Where the rows are trained on.

    Raises:
        NoImagesError: They need more memory than ``HELD_BYTES``.
        ImageError: An image cannot be used any more.
        PipelineError: See ``pipeline.features.extract``.
    """
    store = frozen_store(study, choice, size=size, at_cut=at_cut)
    policy = pixel_policy(choice, size)
    pairs = zip(samples.key, samples.items, strict=True)
    missing = {key: item for key, item in pairs if key not in store}
    if missing:
        unusable = fill_stores(
            [store],
            missing,
            build=lambda: _frozen_part(choice, policy, store, at_cut=at_cut),
            weights=weights_file(choice.name, choice.weights),
            policy=policy,
            engine=engine,
            title=f"{choice.name} {store.recipe.cut}",
        )
        refuse_unusable(unusable, missing)
    keys, at = number_keys(samples)
    needed = len(keys) * math.prod(store.row_shape() or ()) * 4
    if needed > HELD_BYTES:
        raise NoImagesError(
            f"the activations of {len(keys)} images take {needed / 1e9:.0f} GB and at most "
            f"{HELD_BYTES / 1e9:.0f} GB are held in memory: use --limit or a smaller --image-size"
        )
    return hold(store.read(keys), at, samples.label, device)


def _frozen_part(
    choice: BackboneChoice, policy: PixelPolicy, store: FeatureStore, *, at_cut: bool
) -> Frozen:
    """The network that fills a store: uint8 pixels in, rows out."""
    network = build(choice.name, weights_file(choice.name, choice.weights))
    check_weights(network, store.recipe)
    return Frozen(cut_of(choice.name).split(network)[0] if at_cut else network, policy)
