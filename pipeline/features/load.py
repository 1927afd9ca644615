"""Samples joined to their features, and the store for a study's choice of backbone."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.recipe import Recipe
from cache.store import FeatureStore
from pipeline.data.domain import DomainData
from pipeline.data.patients import FIT, TARGET, VALIDATION
from pipeline.data.samples import Samples, without_empty
from pipeline.errors import (
    MissingFeaturesError,
    MissingResultsError,
    StudyError,
    UnknownNameError,
    WeightsError,
    record_failure,
)
from pipeline.features.backbones import file_digest, spec_of, transform_of, weights_file
from pipeline.results import read_set
from pipeline.study import SOURCE, BackboneChoice, Study
from pipeline.words import are, counted, have

if TYPE_CHECKING:
    import torch

    from pipeline.features.frozen import FeatureExtractor

_LOG = logging.getLogger(__name__)
#: Stage 1 writes its report here, below the study's results; later stages read it.
FEATURES_REPORT = "features.json"
#: Increase it when a factory in ``pipeline.features.backbones`` loads the same file differently.
_LOADING = 1


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Samples of a study with the features of one backbone: the start of every later stage.

    Attributes:
        backbone: Name of the backbone, or of several concatenated ones.
        stores: The stores of the features, one for each backbone.
        widths: Number of columns of each backbone; their sum is ``d``.
        samples: ``n`` samples, all with features.
        X: Float32 features of shape ``(n, d)``; the mean if there are several views.
        views: Features of each of ``k`` views, shape ``(n, k, d)``; None if there is one view.
    """

    backbone: str
    stores: tuple[FeatureStore, ...]
    widths: tuple[int, ...]
    samples: Samples
    X: NDArray[np.float32]
    views: NDArray[np.float32] | None = None

    def domain(self, name: str, role: str | None = None) -> DomainData:
        """The rows of one domain; those of a target without labels have label None.

        Args:
            name: ``source`` or a target's name.
            role: ``fit`` or ``validation`` takes that part of the source; None takes all.

        Raises:
            StudyError: There are no such rows.
        """
        samples = self.samples
        of_domain = samples.domain == name
        if role in (FIT, VALIDATION):
            of_domain &= samples.split == role
        rows = np.flatnonzero(of_domain)
        return DomainData(
            name=name,
            role=role or (SOURCE if name == SOURCE else TARGET),
            group=samples.group[rows],
            label=samples.label[rows] if samples.labelled[rows].all() else None,
            features=self.X[rows],
            key=np.frombuffer(b"".join(samples.key[i] for i in rows), np.uint8).reshape(-1, 32),
            row=rows,
        )


def choose_backbone(study: Study, name: str | None) -> BackboneChoice:
    """A backbone of a study by its name, or its only one.

    Raises:
        StudyError: It has several and none is named, or the name is a concatenation.
        UnknownNameError: It has no such backbone.
    """
    by_name = {choice.name: choice for choice in study.backbones}
    if name is None and len(by_name) > 1:
        raise StudyError(f"the study has several backbones; name one of {', '.join(by_name)}")
    if name in study.concatenations:
        raise StudyError(f"{name} is several side by side; name one of {', '.join(by_name)}")
    if name is not None and name not in by_name:
        raise UnknownNameError("backbone of the study", name, by_name)
    return study.backbones[0] if name is None else by_name[name]


def load_features(
    study: Study,
    choice: BackboneChoice | Sequence[BackboneChoice],
    samples: Samples,
) -> FeatureTable:
    """Read the features of all samples of a study but those that stage 1 reported as unusable.

    Args:
        study: Where images and stores are.
        choice: Whose features; those of several backbones are put side by side.
        samples: Of the study.

    Raises:
        MissingFeaturesError: Stage 1 has not been run, or not since images were added.
    """
    parts = [choice] if isinstance(choice, BackboneChoice) else choice
    backbone = "+".join(part.name for part in parts)
    stores = tuple(store_for(study.store_root, part) for part in parts)
    stored = np.array([all(key in store for store in stores) for key in samples.key])
    unusable = _reported_unusable(study.results)
    lost = sum(samples.key[i].hex() not in unusable for i in np.flatnonzero(~stored))
    if lost:
        raise MissingFeaturesError(
            f"{lost} of {counted(len(samples), 'image')} {have(lost)} no features of "
            f"{backbone} yet in {study.store_root.resolve()}; first run: headrace features "
            "STUDY, or go to the folder in which it was run"
        )
    if not stored.all():
        out = int((~stored).sum())
        _LOG.warning("%s %s left out", counted(out, "unusable image"), are(out))
    samples = without_empty(study, samples.where(stored))
    blocks = [store.read(samples.key) for store in stores]
    rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=-1)
    return FeatureTable(
        backbone=backbone,
        stores=stores,
        widths=tuple(block.shape[-1] for block in blocks),
        samples=samples,
        X=mean_of_views(rows),
        views=rows if rows.ndim == 3 else None,
    )


def feature_tables(
    study: Study, samples: Samples
) -> Iterator[tuple[str, FeatureTable | Exception]]:
    """The features of each backbone of a study, by name, or the error why it has none.

    Raises:
        MissingFeaturesError: No backbone has features.
        WeightsError: No backbone has features, and the weights of the first are missing.
    """
    failures: dict[str, Exception] = {}
    for name, parts in study.variants.items():
        table = None
        with record_failure(name, failures, alone=len(study.variants) == 1):
            table = load_features(study, parts, samples)
            samples = table.samples
        yield name, table or failures[name]
    if len(failures) == len(study.variants):
        raise next(iter(failures.values()))


def mean_of_views(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features ``(n, d)`` from rows of a store: ``(n, d)``, or ``(n, k, d)`` for k views."""
    return rows if rows.ndim == 2 else rows.mean(axis=1)


def store_for(store_root: Path, choice: BackboneChoice) -> FeatureStore:
    """The store that holds, or will hold, the features of one backbone.

    The network is built only if its weights file was never loaded before.

    Raises:
        WeightsError: The weights are missing and cannot be fetched, or do not fit.
    """
    weights = _weights_digest(store_root, choice.network.name, choice.weights)
    return FeatureStore(store_root, recipe_of(choice, weights))


def _weights_digest(store_root: Path, name: str, weights: str) -> str:
    """Digest of a network's state dict; computed once for a weights file, then remembered.

    The file ``index/weights.json`` beside the stores remembers it. It is disposable: if it is
    damaged or cannot be written, that costs only time. The weights file is hashed at every start.
    """
    file, memory = weights_file(name, weights), store_root / "index" / "weights.json"
    entry = f"{name} v{_LOADING}: {file_digest(file)}"
    try:
        digests = dict(disk.read_json(memory))
    except (OSError, ValueError, TypeError):
        digests = {}
    if not isinstance(digests.get(entry), str):
        from pipeline.features.frozen import build, state_digest

        digests[entry] = state_digest(build(name, file))
        with suppress(OSError):
            disk.write_atomic(memory, json.dumps(digests, indent=1).encode())
    return str(digests[entry])


def recipe_of(choice: BackboneChoice, weights_digest: str) -> Recipe:
    """Everything that determines the features of one backbone; see ``cache.recipe``."""
    spec = spec_of(choice.name)
    return Recipe(
        backbone=choice.name,
        cut=spec.cut,
        pooling=spec.pooling,
        weights=weights_digest,
        preprocessing=transform_of(choice).to_json(),
        precision=choice.precision,
    )


def frozen_network(
    choice: BackboneChoice, recipe: Recipe | None = None, *, layers: Sequence[str] | None = None
) -> "FeatureExtractor":
    """The network that an engine runs: uint8 pixels in, features out.

    Args:
        choice: The study's choice of a backbone.
        recipe: Recipe that its weights must belong to; None: not checked.
        layers: Layers whose features are given, concatenated; None: those of the choice.

    Raises:
        WeightsError: The weights are missing, do not fit, or are not those of the recipe.
    """
    from pipeline.features.frozen import FeatureExtractor, build

    network = build(choice.network.name, weights_file(choice.name, choice.weights))
    if recipe:
        check_weights(network, recipe)
    return FeatureExtractor(
        network, transform_of(choice), [choice.layer] if layers is None else layers
    )


def check_weights(network: "torch.nn.Module", recipe: Recipe) -> None:
    """Check that a network has the weights of a recipe.

    Raises:
        WeightsError: The weights file changed, or its remembered digest is damaged.
    """
    from pipeline.features.frozen import state_digest

    if state_digest(network) != recipe.weights:
        raise WeightsError(
            f"the weights of {recipe.backbone} are not those of the features (SHA-256 "
            f"{recipe.weights[:16]}...). Give the file that they were made with (in predict by "
            "--weights), or, if it is, delete index/weights.json beside the stores and run again"
        )


def _reported_unusable(results: Path) -> set[str]:
    """Content keys, in hex, of the images that stage 1 could not use."""
    try:
        report = read_set(results / FEATURES_REPORT, "features").record
    except MissingResultsError:
        return set()
    return {skip["key"] for skip in report["skipped"] if skip["key"]}
