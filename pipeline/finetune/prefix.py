"""What the frozen part of a backbone says of each image, taken once into a store.

Two places: after the whole backbone (its pooled features, which stage 1 stores at the
backbone's own image size), and at the cut of partial fine-tuning, where a row keeps the
shape of the activations. Cut, pooling and image size are in the recipe, so each has a
store of its own; all that stage 1 promises of a store holds for these too.
"""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cache import FeatureStore
from pipeline.backbones import build, policy_of, weights_file
from pipeline.errors import NoImagesError
from pipeline.features.engines import EngineChoice
from pipeline.features.filling import Filling, check_weights
from pipeline.features.recipes import store_for
from pipeline.finetune.cuts import cut_of
from pipeline.finetune.examples import Held, numbered
from pipeline.images import PixelPolicy
from pipeline.samples import Samples
from pipeline.study import BackboneChoice, Study
from pipeline.text.names import legible

if TYPE_CHECKING:
    from pipeline.backbones.frozen import Frozen

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
    from pipeline.backbones.frozen import Frozen

    name = place.choice.name
    network = build(name, weights_file(name, place.choice.weights))
    check_weights(network, store)
    return Frozen(cut_of(name).split(network)[0] if place.at_cut else network, place.policy)


def take(study: Study, place: Place, samples: Samples, engine: EngineChoice | None = None) -> Taken:
    """Rows of all samples at a place; what the store lacks is computed now, once.

    Raises:
        NoImagesError: They need more memory than ``HELD_BYTES``, or an image cannot be
            used any more.
        PipelineError: See ``pipeline.features.filling``.
    """
    store = store_at(study, place)
    keys, at = numbered(samples)
    missing = {
        key: item for key, item in zip(samples.key, samples.items, strict=True) if key not in store
    }
    start = time.perf_counter()
    if missing:
        filling = Filling(
            store=store,
            network=lambda: frozen_part(place, store),
            policy=place.policy,
            engine=engine or EngineChoice(),
            title=f"{place.choice.name} {store.recipe.cut}",
        )
        filling.run(missing)
        for key, reason in filling.bad.items():
            raise NoImagesError(
                f"{legible(missing[key].path)} cannot be used ({reason}); run headrace features "
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
