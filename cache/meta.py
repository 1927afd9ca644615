"""``meta.json``: the recipe in full, and the canaries that keep provenance honest.

Device, engine and library versions are not part of a recipe, so that a store made on
a GPU serves a laptop. What catches the change that does move the features is here:
the features of four fixed images, compared each time a network is built.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.errors import CanaryError, StoreFormatError
from cache.recipe import Recipe

NAME = "meta.json"
#: Rounding of one network on different engines stays near 1e-6; another network,
#: another decoder or TF32 is beyond 1e-3.
CANARY_TOLERANCE = 1e-4


def read_recipe(path: Path) -> Recipe:
    """Recipe of the store in a folder.

    Raises:
        StoreFormatError: There is no readable ``meta.json``, or it is a newer one.
    """
    try:
        recipe = json.loads(disk.read_all(path / NAME))["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise StoreFormatError(f"{path} is not a feature store: {NAME}: {cause}") from cause
    return Recipe.from_json(recipe)


def check_canaries(
    path: Path,
    recipe: Recipe,
    features: NDArray[np.float32],
    *,
    provenance: Mapping[str, Any],
) -> float:
    """Compare the network in hand with the one that made a store, or found the store.

    Args:
        path: Folder of the store; must exist.
        recipe: Of the store.
        features: Shape ``(c, ...)``, float32: features of the fixed canary images.
        provenance: Device, engine and versions in hand, to say what changed.

    Returns:
        Largest relative L2 distance; 0.0 when this call wrote ``meta.json``.

    Raises:
        CanaryError: The distance is above ``CANARY_TOLERANCE``.
        StoreFormatError: ``meta.json`` is damaged.
    """
    if not np.isfinite(features).all():
        raise CanaryError(
            f"{path}: the network gives features that are not finite: broken weights?"
        )
    meta = _read(path)
    if meta is None:
        _write(path, recipe, features, provenance)
        return 0.0
    if meta["fingerprint"] != recipe.fingerprint:
        raise StoreFormatError(f"{path / NAME} holds another recipe than its folder's name says")
    distance = relative_l2(features, meta["canaries"])
    if distance > CANARY_TOLERANCE:
        raise CanaryError(
            f"{path}: the network in hand gives features {distance:.1e} away from those of "
            f"the store (relative L2, allowed {CANARY_TOLERANCE:.0e}); changed since: "
            f"{_changes(meta['provenance'], provenance)}. Undo the change, or keep the new "
            "features elsewhere (HEADRACE_FEATURES or [store] path)"
        )
    return distance


def relative_l2(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest ``|a - b| / |b|`` over the rows of two arrays of shape ``(n, ...)``.

    Infinite when the shapes differ or a row is not finite.
    """
    if a.shape != b.shape:
        return float("inf")
    return float(relative_l2_rows(a, b).max(initial=0.0))


def relative_l2_rows(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """``|a - b| / |b|`` of each row; infinite where a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (a.astype(float) - b).reshape(len(a), -1)
        scale = np.linalg.norm(b.reshape(len(b), -1).astype(float), axis=1)
        distance = np.linalg.norm(difference, axis=1) / np.maximum(scale, np.finfo(float).tiny)
    return np.where(np.isnan(distance), np.inf, distance)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = disk.read_all(path / NAME)
    except FileNotFoundError:
        return None
    try:
        meta = json.loads(data)
        canaries = np.asarray(meta["canaries"]["features"], np.float32)
        canaries = canaries.reshape(meta["canaries"]["shape"])
        provenance = dict(meta["provenance"])
        fingerprint = str(meta["fingerprint"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as cause:
        raise StoreFormatError(
            f"{path / NAME} is damaged ({cause}). Remove it to take the network in hand as "
            "the new reference, then compare: headrace cache verify STUDY --sample 300"
        ) from cause
    return {"canaries": canaries, "provenance": provenance, "fingerprint": fingerprint}


def _write(
    path: Path, recipe: Recipe, features: NDArray[np.float32], provenance: Mapping[str, Any]
) -> None:
    meta = {
        "fingerprint": recipe.fingerprint,
        "recipe": recipe.to_json(),
        "provenance": dict(provenance),
        "canaries": {
            "shape": list(features.shape),
            "features": features.astype(float).ravel().tolist(),
        },
    }
    disk.publish(path / NAME, json.dumps(meta, indent=1, allow_nan=False).encode())


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(before.keys() | now.keys())
    changed = [f"{n} {before.get(n)} -> {now.get(n)}" for n in names if before.get(n) != now.get(n)]
    return ", ".join(changed) or "nothing that is recorded"
