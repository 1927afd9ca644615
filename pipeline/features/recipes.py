"""From a study's choice of backbone to the recipe, and so to the store, of its features."""

from typing import TYPE_CHECKING

from cache import FeatureStore, Recipe
from pipeline.backbones import build, policy_of, spec_of, state_digest, weights_file
from pipeline.backbones.weights import DigestMemory, file_digest
from pipeline.study import BackboneChoice, Study

if TYPE_CHECKING:
    from pipeline.backbones.frozen import Frozen


def store_for(study: Study, choice: BackboneChoice) -> FeatureStore:
    """The store that holds, or will hold, the features of one backbone of a study.

    The network is built only where its weights file has never been loaded before.

    Raises:
        WeightsError: The weights are not here and cannot be fetched, or do not fit.
    """
    file = weights_file(choice.name, choice.weights)
    memory = DigestMemory(study.store_root, choice.name, file_digest(file))
    digest = memory.get()
    if digest is None:
        digest = state_digest(build(choice.name, file))
        memory.put(digest)
    return FeatureStore(study.store_root, recipe_of(choice, digest))


def recipe_of(choice: BackboneChoice, weights_digest: str) -> Recipe:
    """All that determines the features of one backbone; see ``cache.recipe``."""
    spec = spec_of(choice.name)
    return Recipe(
        backbone=choice.name,
        cut=spec.cut,
        pooling=spec.pooling,
        weights=weights_digest,
        preprocessing=policy_of(choice.name, choice.resize, choice.mask).to_json(),
        precision=choice.precision,
    )


def frozen_network(choice: BackboneChoice) -> "Frozen":
    """The network that an engine runs: uint8 pixels in, features out.

    Raises:
        WeightsError: See :func:`store_for`.
    """
    from pipeline.backbones.frozen import Frozen

    network = build(choice.name, weights_file(choice.name, choice.weights))
    return Frozen(network, policy_of(choice.name, choice.resize, choice.mask))
