"""What makes two features comparable: the recipe, and the canaries in ``meta.json``.

A recipe names everything that determines a feature's value. Two stores share rows only if their
recipes are equal. Device, engine, batch size and library versions are provenance: they are kept
beside each part, and the canaries guard them. Canaries are features of fixed images that are
compared before every run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, get_origin

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.errors import CanaryError, NotPlainFileError, StoreFormatError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the features of an image.

    Attributes:
        backbone: Name of the frozen network.
        cut: Where the network was cut, for example ``before the classifier``.
        pooling: How a map became a vector, for example ``global average``.
        weights: Hex SHA-256 of the sorted state dict (name, dtype, shape, bytes).
        preprocessing: From file bytes to network input, as JSON values.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        format: Version of the store's format.
    """

    backbone: str
    cut: str
    pooling: str
    weights: str
    preprocessing: Mapping[str, Any]
    precision: str = "fp32"
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the recipe's canonical JSON."""
        return hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the store's folder: backbone, and 16 digits of the fingerprint."""
        readable = "".join(c if c.isalnum() or c in "._" else "_" for c in self.backbone)
        return f"{readable}-{self.fingerprint[:16]}"

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return asdict(self) | {"preprocessing": dict(self.preprocessing)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read a recipe; a StoreFormatError if it is newer than this version, or not a recipe."""
        if not isinstance(values, Mapping):
            raise StoreFormatError(f"not a recipe: {values!r}")
        written = values.get("format")
        if isinstance(written, int) and written > FORMAT:
            raise StoreFormatError(
                f"the store has format {written}, this headrace reads up to {FORMAT}: "
                "upgrade it (pip install --upgrade headrace)"
            )
        types: dict[str, Any] = {f.name: get_origin(f.type) or f.type for f in fields(cls)}
        wrong = values.keys() ^ types.keys()
        wrong |= {n for n in values.keys() & types.keys() if not isinstance(values[n], types[n])}
        if wrong:
            raise StoreFormatError(f"not a recipe: {sorted(wrong)} are not as they must be")
        return cls(**values)

    def changes_to(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """The fields that differ, with both values; preprocessing is compared key by key."""
        before, after = _spellings(self), _spellings(other)
        names = sorted(before.keys() | after.keys())
        return {
            name: (_value(before.get(name)), _value(after.get(name)))
            for name in names
            if before.get(name) != after.get(name)
        }


def canonical(values: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _spellings(recipe: Recipe) -> dict[str, str]:
    """Fields as compared for the fingerprint: 1, 1.0 and true differ, absent is not null."""
    values = recipe.to_json()
    nested = {f"preprocessing.{k}": v for k, v in values.pop("preprocessing").items()}
    return {name: canonical(value) for name, value in (values | nested).items()}


def _value(spelling: str | None) -> Any:
    return None if spelling is None else json.loads(spelling)


# ``meta.json``: the recipe in full, and the canaries.


META = "meta.json"
#: Largest distance by precision. In fp32, rounding of one network on different engines stays near
#: 1e-6; another network, or other pixels, give more than 1e-3. In bf16, another algorithm moves
#: features by 1e-2, another network by 1e-1 or more.
CANARY_TOLERANCE: Mapping[str, float] = MappingProxyType({"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2})


def read_recipe(path: Path) -> Recipe:
    """Recipe of the store in a folder; a StoreFormatError if ``meta.json`` is not readable."""
    try:
        recipe = disk.read_json(path / META)["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise StoreFormatError(f"{path} is not a feature store: {META}: {cause}") from cause
    return Recipe.from_json(recipe)


def check_canaries(
    path: Path, recipe: Recipe, features: NDArray[np.float32], *, provenance: Mapping[str, Any]
) -> float:
    """Compare this network with the one that made a store; for a new store, write ``meta.json``.

    Args:
        path: Folder of the store; must exist.
        recipe: Recipe of the store.
        features: Features of the canary images by this network, shape ``(c, ...)``, float32.
        provenance: This device, engine and versions, to say what changed.

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
        raise StoreFormatError(f"{path / META} holds another recipe than its folder's name says")
    distance = float(relative_l2(features, meta["canaries"]).max(initial=0.0))
    allowed = CANARY_TOLERANCE.get(recipe.precision, CANARY_TOLERANCE["fp32"])
    if distance > allowed:
        raise CanaryError(
            f"{path}: the current network gives features {distance:.1e} away from those of "
            f"the store (relative L2, allowed {allowed:.0e}); changed since: "
            f"{_changes(meta['provenance'], provenance)}. Undo the change, or keep the new "
            "features elsewhere (HEADRACE_FEATURES or [store] path)"
        )
    return distance


def relative_l2(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """``|a - b| / |b|`` of each row (n, ...); infinite if a value is missing or not finite."""
    if a.shape != b.shape:
        return np.full(len(a), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (a.astype(float) - b).reshape(len(a), -1)
        scale = np.linalg.norm(b.reshape(len(b), -1).astype(float), axis=1)
        distance = np.linalg.norm(difference, axis=1) / np.maximum(scale, np.finfo(float).tiny)
    return np.where(np.isnan(distance), np.inf, distance)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        meta = disk.read_json(path / META)
        canaries = np.asarray(meta["canaries"]["features"], np.float32)
        canaries = canaries.reshape(meta["canaries"]["shape"])
        provenance = dict(meta["provenance"])
        fingerprint = str(meta["fingerprint"])
    except FileNotFoundError:
        return None
    except (NotPlainFileError, ValueError, KeyError, TypeError, OverflowError) as cause:
        raise StoreFormatError(
            f"{path / META} is damaged ({cause}). Remove it to take the current network "
            "as the new reference, then compare: headrace cache verify STUDY --sample 300"
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
    disk.write_atomic(path / META, json.dumps(meta, indent=1, allow_nan=False).encode())


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(before.keys() | now.keys())
    changed = [f"{n} {before.get(n)} -> {now.get(n)}" for n in names if before.get(n) != now.get(n)]
    return ", ".join(changed) or "nothing that is recorded"
