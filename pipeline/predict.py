"""Classify new images with a saved head: backbone, then head, through the feature store.

Images are known by their content: one whose features the store has, from whatever study,
is not computed again, and new features are committed. Nothing is learned here, and no
label is looked at.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.store import FeatureStore
from pipeline.data.class_folders import images_below
from pipeline.data.items import NO_CLASS, FileStat, Item, system_reason
from pipeline.data.sources import read_image
from pipeline.errors import ImageError, ModelError, NoImagesError, SkippedImagesError
from pipeline.features.backbones import policy_of, weights_file
from pipeline.features.engines import EngineChoice, check_engine
from pipeline.features.extract import fill_store
from pipeline.features.load import frozen_network, recipe_of
from pipeline.heads.save import Network, SavedHead, load_head
from pipeline.study import BackboneChoice
from pipeline.words import counted, printable

if TYPE_CHECKING:
    from pipeline.features.frozen import Frozen


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How new images are classified.

    Attributes:
        store: Folder of the feature stores.
        engine: See :class:`pipeline.features.engines.EngineChoice`.
        weights: File of the backbone's weights, instead of where they were when the head
            was fitted; must have the same digest.
        strict: Whether an image that cannot be used is an error once all others are safe.
    """

    store: Path
    engine: EngineChoice = field(default_factory=EngineChoice)
    weights: Path | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the head says of one image.

    Attributes:
        path: As it was given, or found below a folder that was given.
        key: Content key in hex.
        called: The most probable class.
        probability: Of each class, in the order of the model's classes.
    """

    path: str
    key: str
    called: str
    probability: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """An image that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one run says.

    Attributes:
        model: The head.
        rows: In the order of the images.
        skipped: Images that are in no row.
        computed: How many images a network had to look at; the others were in the store.
    """

    model: SavedHead
    rows: tuple[Row, ...]
    skipped: tuple[Unusable, ...]
    computed: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        model = self.model
        return {
            "head": model.head,
            "backbone": "+".join(network.recipe.backbone for network in model.networks),
            "study": model.study,
            "images": model.images,
            "contains_training_features": model.contains_training_features,
            "classes": list(model.classes),
            "rows": [asdict(row) for row in self.rows],
            "skipped": [asdict(one) for one in self.skipped],
            "computed": self.computed,
        }


def predict(model: Path, images: Sequence[Path], options: PredictOptions) -> Predictions:
    """Classify images.

    Args:
        model: Folder of a saved head.
        images: Files, and folders that are searched at any depth.
        options: See :class:`PredictOptions`.

    Raises:
        ModelError: The head cannot be used, or its network would be another one.
        WeightsError: The network's weights cannot be had, or are others.
        NoImagesError: No image is left that can be used.
        SkippedImagesError: ``options.strict`` and an image cannot be used.
    """
    check_engine(options.engine)
    head = load_head(model)
    if options.weights and len(head.networks) > 1:
        raise ModelError(
            f"{model} takes {len(head.networks)} networks; one weights file cannot be for all"
        )
    found, skipped = _found(images)
    bad: dict[bytes, str] = {}
    blocks, new = [], set()
    for network in head.networks:
        store, computed = _fill(network, found, options, bad)
        new |= computed
        blocks.append(store)
    good = [(item, key) for item, key in found if key not in bad]
    skipped += [
        Unusable(path=printable(item.path), reason=bad[key]) for item, key in found if key in bad
    ]
    _check_some(good, skipped)
    X = np.concatenate([store.read([key for _, key in good]) for store in blocks], axis=1)
    rows = _rows(head, good, head.predict_proba(X))
    if options.strict and skipped:
        raise SkippedImagesError(
            f"{counted(len(skipped), 'image')} cannot be used and --strict is set; first: "
            f"{skipped[0].path}: {skipped[0].reason}. The features of all others are stored"
        )
    return Predictions(model=head, rows=rows, skipped=tuple(skipped), computed=len(new))


def _rows(
    head: SavedHead, good: Sequence[tuple[Item, bytes]], proba: NDArray[np.float64]
) -> tuple[Row, ...]:
    return tuple(
        Row(
            path=printable(item.path),
            key=key.hex(),
            called=head.classes[int(p.argmax())],
            probability=tuple(float(value) for value in p),
        )
        for (item, key), p in zip(good, proba, strict=True)
    )


def _check_some(good: Sequence[object], skipped: Sequence[Unusable]) -> None:
    if not good:
        first = f"; first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise NoImagesError(
            f"no image to classify among what was given{first}. Give .jpg, .jpeg or .png files, "
            "or folders that hold some"
        )


def _found(images: Sequence[Path]) -> tuple[list[tuple[Item, bytes]], list[Unusable]]:
    """Images with their content keys, each file once, and those that cannot be read."""
    found, skipped = [], []
    seen: set[str] = set()
    for given in images:
        items, bad = _items(given)
        skipped += bad
        for item in items:
            if item.file in seen:
                continue
            seen.add(item.file)
            try:
                found.append((item, read_image(item).key))
            except ImageError as cause:
                skipped.append(Unusable(path=printable(item.path), reason=str(cause)))
    return found, skipped


def _items(given: Path) -> tuple[list[Item], list[Unusable]]:
    """What a path stands for, and what it does not; a FIFO is never opened."""
    try:
        stat = given.stat()
    except (OSError, ValueError) as cause:
        reason = system_reason(cause) if isinstance(cause, OSError) else str(cause)
        return [], [_unusable(given, f"cannot be read: {reason}")]
    if given.is_dir():
        items, unread = _below(given)
        bad = [_unusable(path, "of a format that is not read: convert to .png") for path in unread]
        if not items and not bad:
            bad = [_unusable(given, "the folder holds no .jpg, .jpeg or .png file")]
        return items, bad
    if not given.is_file():
        return [], [_unusable(given, "not a regular file")]
    return [Item(str(given), NO_CLASS, os.path.realpath(given), None, FileStat.of(stat))], []


def _unusable(path: Path, reason: str) -> Unusable:
    return Unusable(path=printable(str(path)), reason=reason)


def _below(folder: Path) -> tuple[list[Item], list[Path]]:
    """Images that may be read, sorted by path, and those of other formats."""
    listing = images_below(folder)
    items = [replace(item, path=str(folder / item.path)) for item in listing.items]
    return items, sorted(folder / path for path in listing.unread)


def _fill(
    network: Network,
    found: Sequence[tuple[Item, bytes]],
    options: PredictOptions,
    bad: dict[bytes, str],
) -> tuple[FeatureStore, set[bytes]]:
    """The store of a network, with the features of all images that are not in ``bad``."""
    choice = _choice(network, options.weights)
    store = FeatureStore(options.store, network.recipe)
    missing = {key: item for item, key in found if key not in store and key not in bad}

    def frozen() -> "Frozen":
        made = frozen_network(choice)
        _check_same(choice, made, store)
        return made

    if missing:
        bad |= fill_store(
            store,
            missing,
            build=frozen,
            weights=weights_file(choice.name, choice.weights),
            policy=policy_of(choice.name, choice.resize),
            engine=options.engine,
            title=choice.name,
        )
    return store, missing.keys() - bad.keys()


def _choice(network: Network, weights: Path | None) -> BackboneChoice:
    """The backbone that a model names, as this headrace has it.

    Raises:
        UnknownNameError: There is no such backbone.
        ModelError: This headrace would make other features of the same image.
    """
    recipe = network.recipe
    choice = BackboneChoice(
        name=recipe.backbone,
        weights=str(weights) if weights else network.weights,
        resize=str(recipe.preprocessing.get("resize")),
        precision=recipe.precision,
    )
    changed = recipe.changes_to(recipe_of(choice, recipe.weights))
    if changed:
        name, (there, here) = next(iter(changed.items()))
        raise ModelError(
            f"the head takes features of another recipe: {name} was {there!r}, and is {here!r} "
            "in this headrace. Run `headrace heads` again"
        )
    return choice


def _check_same(choice: BackboneChoice, made: "Frozen", store: FeatureStore) -> None:
    from pipeline.features.frozen import state_digest

    if state_digest(made.network) != store.recipe.weights:
        raise ModelError(
            f"the weights of {choice.name} ({choice.weights}) are not those that the head was "
            f"fitted with (SHA-256 {store.recipe.weights[:16]}...): give theirs with --weights FILE"
        )
