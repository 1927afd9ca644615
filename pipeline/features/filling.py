"""Fill a store with what a frozen network says of images that the store lacks.

The one way from images to stored rows, pooled features and activations alike: weights
checked against the recipe, canaries compared, rows that cannot be right kept out, what
was computed committed, also when the run is interrupted.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from cache import FeatureStore, Writer, check_canaries, disk
from cache.part import provenance_text
from cache.upkeep import compact, gc
from pipeline.backbones import state_digest
from pipeline.errors import WeightsError
from pipeline.features.engines import Engine, EngineChoice, Features, fallback_note, start_engine
from pipeline.features.stream import FeatureGuard, Image, decoded, features_of
from pipeline.images import PixelPolicy, decode
from pipeline.progress import Progress
from pipeline.sources import Item
from pipeline.text.counts import counted, have

if TYPE_CHECKING:
    import torch

    from pipeline.backbones.frozen import Frozen

_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Filling:
    """One network over one set of images.

    Attributes:
        store: Where the rows go.
        network: Builds what an engine runs; called only when there is work.
        policy: From bytes to the pixels that the network takes.
        engine: What the user asks for.
        title: Of the progress bar and the messages.
        copies: Whether many images may have the row of another: masked pictures often do,
            since many have four black corners.
        bad: Why images could not be used, by key; grows while :meth:`run` runs.
    """

    store: FeatureStore
    network: Callable[[], "Frozen"]
    policy: PixelPolicy
    engine: EngineChoice
    title: str
    copies: bool = False
    bad: dict[bytes, str] = field(default_factory=dict)
    _advance: Callable[[], None] = lambda: None

    def run(self, missing: Mapping[bytes, Item]) -> None:
        """Compute and commit the rows of images, by key.

        Raises:
            PipelineError: See the modules this calls; a full disk is a ``cache`` error.
        """
        self.store.prepare()
        gc(self.store)
        images = decoded(dict(missing), self.policy, self._skip)
        first = list(islice(images, 1))
        if first:  # no network is built for images that are all unusable
            with closing(self._start(len(missing))) as engine:
                self._rows(engine, chain(first, images), len(missing))
            compact(self.store)

    def _start(self, images: int) -> Engine:
        engine = start_engine(self.network(), self.engine, self.store.recipe.precision)
        _LOG.info("%s: %s", self.title, engine.description)
        if note := fallback_note(engine):
            _LOG.warning("%s", note)
        canaries = canary_features(engine, self.policy)
        provenance = engine.provenance()
        check_canaries(self.store.path, self.store.recipe, canaries, provenance=provenance)
        _warn_if_full(self.store, images * canaries[0].nbytes)
        return engine

    def _rows(self, engine: Engine, images: Iterator[Image], total: int) -> None:
        guard = FeatureGuard(copies=self.copies)
        provenance = provenance_text(engine.provenance())
        with (
            Progress(self.title, total) as progress,
            Writer(self.store, provenance=provenance) as writer,
        ):
            self._advance = progress.advance
            for key, row in features_of(images, engine):
                objection = guard.objection(row)
                if objection:
                    self.bad[key] = objection
                else:
                    writer.add(key, row)
                progress.advance()
        if guard.same and not self.copies:
            _LOG.warning(
                "%s: %s %s the features of another image: the same pixels in other bytes",
                *(self.title, counted(guard.same, "image"), have(guard.same)),
            )

    def _skip(self, key: bytes, reason: str) -> None:
        self.bad[key] = reason
        self._advance()


def canary_features(engine: Engine, policy: PixelPolicy) -> Features:
    """Features of the four images shipped with the package, shape ``(4, ...)``."""
    folder = resources.files("pipeline") / "canaries"
    files = sorted((f for f in folder.iterdir() if f.name[0] != "."), key=lambda f: f.name)
    images = [(f.name.encode(), decode(f.read_bytes(), policy)) for f in files]
    return np.stack([row for _, row in features_of(images, engine)])


def check_weights(network: "torch.nn.Module", store: FeatureStore) -> None:
    """Refuse a network that is not the one of the store's recipe.

    Raises:
        WeightsError: The weights file changed, or its remembered digest is damaged.
    """
    if state_digest(network) != store.recipe.weights:
        raise WeightsError(
            f"the weights of {store.recipe.backbone} changed while the run was under way, or "
            "their remembered digest is damaged: delete index/weights.json beside the "
            "stores and run again"
        )


def _warn_if_full(store: FeatureStore, size: int) -> None:
    needed = int(size * 1.1)
    free = disk.free_bytes(store.path)
    if free is not None and free < needed:
        _LOG.warning(
            "%s: about %d MB are needed and %d MB are free; what fits will be kept",
            store.path,
            needed >> 20,
            free >> 20,
        )
