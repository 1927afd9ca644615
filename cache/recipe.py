"""What makes two features comparable.

A recipe names all that determines a feature's value. Two stores never share rows
unless their recipes are equal; device, engine, batch size and library versions are
provenance, kept beside each part and guarded by the canaries.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, get_origin

from cache.errors import StoreFormatError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines the features of an image.

    Attributes:
        backbone: Name of the frozen network.
        cut: Where the network was cut, for example ``before the classifier``.
        pooling: How a map became a vector, for example ``global average``.
        weights: Hex SHA-256 over the sorted state dict (name, dtype, shape, bytes).
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
        """Name of the store's folder: readable backbone, first 16 digits."""
        readable = "".join(c if c.isalnum() or c in "._" else "_" for c in self.backbone)
        return f"{readable}-{self.fingerprint[:16]}"

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return asdict(self) | {"preprocessing": dict(self.preprocessing)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read a recipe back.

        Raises:
            StoreFormatError: It was written by a newer version, or is not a recipe.
        """
        if not isinstance(values, Mapping):
            raise StoreFormatError(f"not a recipe: {values!r}")
        written = values.get("format")
        if isinstance(written, int) and written > FORMAT:
            raise StoreFormatError(
                f"the store has format {written}, this headrace reads up to {FORMAT}: "
                "upgrade it (pip install --upgrade headrace)"
            )
        types: dict[str, Any] = {
            field.name: get_origin(field.type) or field.type for field in fields(cls)
        }
        wrong = values.keys() ^ types.keys()
        wrong |= {n for n in values.keys() & types.keys() if not isinstance(values[n], types[n])}
        if wrong:
            raise StoreFormatError(
                f"not a recipe: it has {sorted(values)}, a recipe has {sorted(types)}; "
                f"not as they must be: {sorted(wrong)}"
            )
        return cls(**values)

    def changes_to(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Fields that differ, each with (here, there); nested preprocessing by its key."""
        here, there = _flat(self.to_json()), _flat(other.to_json())
        names = sorted(here.keys() | there.keys())
        # Compared as the fingerprint sees them: 1, 1.0 and true differ, absent is not null.
        return {
            name: (here.get(name), there.get(name))
            for name in names
            if _spelling(here, name) != _spelling(there, name)
        }


def canonical(values: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _spelling(values: Mapping[str, Any], name: str) -> str | None:
    return canonical(values[name]) if name in values else None


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {f"preprocessing.{k}": v for k, v in values["preprocessing"].items()}
    return {k: v for k, v in values.items() if k != "preprocessing"} | nested
