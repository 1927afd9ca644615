"""Classify new images: with a saved head through the feature store, or with an ONNX file.

Images are identified by their content: if the store has the features of an image, from any study,
they are not computed again. New features are added to the store. If images lie in folders of
classes, correct predictions are counted.
"""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.errors import WriteFailedError
from cache.recipe import META
from cache.store import FeatureStore
from pipeline.data.arrays import is_archive, scan_archive
from pipeline.data.images import Transform
from pipeline.data.items import (
    NO_CLASS,
    Depth,
    FileStat,
    Item,
    ReadOptions,
    images_in,
    system_reason,
)
from pipeline.data.sources import read_image
from pipeline.errors import ImageError, ModelError, NoImagesError, SkippedImagesError, StudyError
from pipeline.features.backbones import transform_of
from pipeline.features.decoding import decode_images
from pipeline.features.engines import EngineChoice, check_engine
from pipeline.features.extract import fill_stores
from pipeline.features.load import frozen_network, mean_of_views, recipe_of
from pipeline.heads.save import Network, load_head
from pipeline.study import BackboneChoice, Domain, ImageTable
from pipeline.words import counted, printable

_LOG = logging.getLogger(__name__)
#: In an ONNX file: key of the model card in its metadata, names of input and output.
CARD, INPUT, OUTPUT = "headrace", "pixels", "probabilities"
#: Images in one batch for an ONNX file.
_BATCH = 32
#: Images of other bits are at least this many times as bright or dark as the model's.
_OTHER_RANGE = 2
_Keyed = tuple[Item, bytes]


def predict(
    model: Path,
    images: Sequence[Path],
    *,
    store: Path,
    engine: EngineChoice | None = None,
    weights: Path | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Classify images.

    Args:
        model: Folder of a saved head, or a file of ``headrace export``. The file needs
            onnxruntime, but no torch, store, engine or weights.
        images: Files, also ``.npz`` files, and folders that are searched at any depth.
        store: Folder of the feature stores.
        engine: The user's choice of an engine.
        weights: File of the backbone's weights, if it is not where it was when the head was
            fitted; it must have the same digest.
        strict: Whether an image that cannot be used is an error, once the others are stored.

    Returns:
        The record, JSON values: the head with its study and classes; ``rows`` in the order of
        the images, each with path, content key, predicted class and the probability of each
        class; ``class_folders``, images and correct predictions of each class, empty unless all
        images lie in folders of classes; ``skipped`` images with their reasons; ``computed``,
        the number of images that went through a network.

    Raises:
        ModelError: The head cannot be used, or needs other features.
        WeightsError: The network's weights are not available, or have changed.
        NoImagesError: No image can be used.
        SkippedImagesError: ``strict`` and an image cannot be used.
    """
    if model.suffix == ".onnx":
        return _predict_file(model, images, strict=strict)
    engine = engine or EngineChoice()
    check_engine(engine)
    head = load_head(model)
    pairs, skipped = _find_images(images, ReadOptions(window=head.window, frame=head.frame))
    unusable: dict[bytes, str] = {}
    features, computed = [], set()
    with TemporaryDirectory(prefix="headrace-") as scratch:
        for network in head.networks:
            choice = _choice(network, weights)
            stores = FeatureStore(store, network.recipe), Path(scratch)
            rows_of, new = _rows_of(choice, pairs, unusable, *stores, engine=engine)
            features.append(rows_of)
            computed |= new
    good = _usable(pairs, unusable, skipped, strict=strict)
    blocks = [mean_of_views(np.stack([rows_of[key] for _, key in good])) for rows_of in features]
    proba = head.predict_proba(np.concatenate(blocks, axis=1))
    return {
        "head": head.head,
        "backbone": "+".join(network.recipe.backbone for network in head.networks),
        "study": head.study,
        "images": head.images,
        "contains_training_features": head.contains_training_features,
        "computed": len(computed),
        **_answers(head.classes, good, proba),
        "skipped": skipped,
    }


def _predict_file(model: Path, images: Sequence[Path], *, strict: bool) -> dict[str, Any]:
    """Classify images with a file of ``headrace export``; nothing is stored."""
    try:
        data = model.read_bytes()
    except OSError as cause:
        raise ModelError(f"{model} cannot be read: {cause.strerror or cause}") from cause
    text = _session(data, str(model)).get_modelmeta().custom_metadata_map.get(CARD)
    if text is None:
        raise ModelError(f"{model} has no model card of headrace: write it with `headrace export`")
    card = json.loads(text)
    declared = card["preprocessing"]
    names = {f.name for f in fields(Transform)}
    transform = Transform(**{name: value for name, value in declared.items() if name in names})
    if transform.to_json() != declared:
        raise ModelError(f"{model} takes pixels that this headrace does not make: export it again")
    options = ReadOptions(window=card["window"] and tuple(card["window"]), frame=card["frame"])
    pairs, skipped = _find_images(images, options)
    unusable: dict[bytes, str] = {}
    decoded = dict(decode_images({key: item for item, key in pairs}, transform, unusable))
    good = _usable(pairs, unusable, skipped, strict=strict)
    proba = run_onnx(data, np.stack([decoded[key] for _, key in good]))
    return {
        "head": card["model"],
        "backbone": card["backbone"],
        "study": card["trained"]["study"],
        "images": card["trained"]["images"],
        "contains_training_features": False,
        "computed": len(decoded),
        **_answers(card["classes"], good, proba),
        "skipped": skipped,
    }


def run_onnx(data: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Probabilities ``(n, K)`` of pixels ``(n, size, size, 3)`` by a graph of ``headrace export``.

    Raises:
        ModelError: It is not such a graph, or onnxruntime is not installed.
    """
    session = _session(data, "the model")
    parts = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    return np.concatenate([session.run([OUTPUT], {INPUT: part})[0] for part in parts]).astype(float)


def _session(data: bytes, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError as cause:
        raise ModelError('onnxruntime is missing: pip install "headrace[onnx]"') from cause
    try:
        return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as cause:  # onnxruntime's errors share no class
        raise ModelError(f"{name} is no ONNX file: {str(cause)[:100]}") from cause


def _usable(
    pairs: Sequence[_Keyed],
    unusable: dict[bytes, str],
    skipped: list[dict[str, str]],
    *,
    strict: bool,
) -> list[_Keyed]:
    """The images that can be used; the others are added to ``skipped``."""
    skipped += [_as_skipped(item.path, unusable[key]) for item, key in pairs if key in unusable]
    good = [(item, key) for item, key in pairs if key not in unusable]
    first = f"first: {skipped[0]['path']}: {skipped[0]['reason']}" if skipped else ""
    if not good:
        raise NoImagesError(
            f"no image to classify among what was given{first and '; '}{first}. Give "
            "images (.jpg, .png, .tif, .bmp, .dcm), or folders that hold some"
        )
    if strict and skipped:
        count = counted(len(skipped), "image")
        raise SkippedImagesError(f"{count} cannot be used and --strict is set; {first}")
    return good


def _answers(
    classes: Sequence[str], good: Sequence[_Keyed], proba: NDArray[np.float64]
) -> dict[str, Any]:
    """A row for each image, and the number of correct predictions by class folder."""
    rows = [
        {
            "path": printable(item.path),
            "key": key.hex(),
            "predicted": classes[int(p.argmax())],
            "probability": p.tolist(),
        }
        for (item, key), p in zip(good, proba, strict=True)
    ]
    counts = {name: {"images": 0, "right": 0} for name in classes}
    for row in rows:
        if (folder := Path(row["path"]).parent.name) not in counts:
            counts = {}
            break
        counts[folder]["images"] += 1
        counts[folder]["right"] += row["predicted"] == folder
    return {"classes": [*classes], "rows": rows, "class_folders": counts}


def _find_images(
    images: Sequence[Path], options: ReadOptions
) -> tuple[list[_Keyed], list[dict[str, str]]]:
    """Images with their content keys, each file once; and the images that cannot be read."""
    pairs, skipped, depths = [], [], list[Depth]()
    seen: set[tuple[str, str, int | None]] = set()
    damaged: dict[tuple[str, str], StudyError] = {}
    for given in images:
        items, unread = _items(given)
        skipped += unread
        for item in items:
            if (identity := (item.file, item.split, item.row)) in seen:
                continue
            seen.add(identity)
            try:
                if reason := damaged.get(identity[:2]):
                    raise reason
                read = replace(item, options=options)
                file = read_image(read).remembered()
                pairs.append((read, file.key(options)))
                depths.append(file.depth)
            except ImageError as cause:
                skipped.append(_as_skipped(item.path, str(cause)))
            except StudyError as cause:  # each row of an array would decompress it again
                damaged[identity[:2]] = cause
                skipped.append(_as_skipped(item.path, str(cause)))
    _warn_of_range(options, depths)
    return pairs, skipped


def _warn_of_range(options: ReadOptions, depths: Sequence[Depth]) -> None:
    """Say it if values of more than 8 bits do not fit the model's window.

    A study guesses the bits of each domain; a model reads all images as its source was read.
    A window other than 0 to the largest value of some bits was chosen, and may cut values off.
    """
    top = max((depth for depth in depths if depth is not None), default=0)
    black, white = options.window or (0, 0)
    if top <= 0 or black or not white or not np.log2(white + 1).is_integer():
        return
    if not white / _OTHER_RANGE <= top <= white * _OTHER_RANGE:
        _LOG.warning(
            "the images have values up to %d, but white is %g for this model: it sees them too "
            "%s. Convert them to the range of the images that it was trained on",
            *(top, white, "bright" if top > white else "dark"),
        )


def _items(given: Path) -> tuple[list[Item], list[dict[str, str]]]:
    """The images of a path, and reasons for what is not an image; a FIFO is never opened."""
    try:
        stat = given.stat()
        if given.is_dir():
            listing = images_in(given)
        elif not given.is_file():
            return [], [_as_skipped(given, "not a regular file")]
        elif is_archive(given):  # its labels are not looked at
            listing = scan_archive(Domain(path=given, table=ImageTable(file=given, finding="")))
        else:
            item = Item(str(given), NO_CLASS, os.path.realpath(given), None, FileStat.of(stat))
            return [item], []
    except (OSError, ValueError) as cause:
        reason = system_reason(cause) if isinstance(cause, OSError) else str(cause)
        return [], [_as_skipped(given, f"cannot be read: {reason}")]
    items = [replace(item, path=str(given / item.path)) for item in listing.items]
    unread = "of a format that is not read: convert to .png"
    skipped = [_as_skipped(given / path, unread) for path in sorted(listing.unread)]
    if not items and not skipped:
        skipped = [_as_skipped(given, "the folder holds no .jpg, .jpeg or .png file")]
    return items, skipped


def _as_skipped(path: object, reason: str) -> dict[str, str]:
    return {"path": printable(str(path)), "reason": reason}


def _rows_of(
    choice: BackboneChoice,
    images: Sequence[_Keyed],
    unusable: dict[bytes, str],
    store: FeatureStore,
    scratch: Path,
    *,
    engine: EngineChoice,
) -> tuple[dict[bytes, NDArray[np.float32]], set[bytes]]:
    """Features of images by content key, and the keys of those that were computed.

    Reasons why images cannot be used are added to ``unusable``. If the store can only be read,
    new features go to the folder ``scratch``.
    """
    missing = {key: item for item, key in images if key not in store and key not in unusable}
    stored = [key for _, key in images if key in store]
    rows = dict(zip(stored, store.read(stored), strict=True))
    if missing:
        target = _writable(store, scratch)
        unusable |= fill_stores(
            [target],
            missing,
            build=partial(frozen_network, choice, store.recipe),
            transform=transform_of(choice),
            engine=engine,
            title=choice.name,
        )
        new = [key for key in missing if key not in unusable]
        rows |= dict(zip(new, target.read(new), strict=True))
    return rows, missing.keys() - unusable.keys()


def _writable(store: FeatureStore, scratch: Path) -> FeatureStore:
    """The store; if it can only be read, a temporary one with the same canaries."""
    try:
        store.prepare()
    except WriteFailedError as cause:
        _LOG.warning("the new features are not stored: %s", cause)
    else:
        return store
    aside = FeatureStore(scratch, store.recipe)
    with suppress(FileNotFoundError):
        disk.write_atomic(aside.path / META, disk.read_all(store.path / META))
    return aside


def _choice(network: Network, weights: Path | None) -> BackboneChoice:
    """The backbone that a model names, in this version of headrace.

    Raises:
        UnknownNameError: There is no such backbone.
        ModelError: This version would compute other features of the same image.
    """
    recipe = network.recipe
    choice = BackboneChoice(
        name=recipe.backbone,
        weights=str(weights) if weights else network.weights,
        resize=str(recipe.preprocessing.get("resize")),
        precision=recipe.precision,
        decode=str(recipe.preprocessing.get("decode", "cpu")),
        views=len(recipe.preprocessing.get("views", [0])),
    )
    changed = recipe.changes_to(recipe_of(choice, recipe.weights))
    if changed:
        name, (before, now) = next(iter(changed.items()))
        raise ModelError(
            f"the head takes features of another recipe: {name} was {before!r}, and is {now!r} "
            "in this headrace. Run `headrace heads` again"
        )
    return choice
