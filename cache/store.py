"""The feature store of one recipe: which keys are here, read, commit.

The parts on disk are the truth; what this object remembers of them is derived and
can be thrown away at any time. No file is ever changed, so there are no locks: any
number of processes may read and write the same store. A lookup gives the right row
or says that it is missing; a part that is not what it promises is moved to
``quarantine/`` and its rows count as missing. Upkeep (compaction, clearing of what
dead processes left) is in ``cache.upkeep``.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache import disk, meta
from cache.errors import (
    DamagedPartError,
    MissingRowsError,
    StoreFormatError,
    WriteFailedError,
)
from cache.part import NAME, Part, from_bytes, name_of, to_bytes
from cache.recipe import Recipe

_LOG = logging.getLogger(__name__)
_RESCANS = 5


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """What a scan learned of one part."""

    name: str
    rows: int
    size: int
    provenance: str


class FeatureStore:
    """Features of one recipe under ``root``.

    Args:
        root: Folder that holds all stores; need not exist for reading.
        recipe: How the features are made.

    Attributes:
        path: Folder of this store.
        parts: What the last scan found, by part name.
        damaged: Name and reason of each part that the last scan refused.
    """

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.recipe = recipe
        self.path = root / recipe.folder
        self.parts: dict[str, PartInfo] = {}
        self.damaged: dict[str, str] = {}
        self._row_of: dict[bytes, tuple[str, int]] = {}
        self._scanned = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing store by its folder.

        Raises:
            StoreFormatError: The folder has no readable ``meta.json``, or a newer one.
        """
        store = cls(path.parent, meta.read_recipe(path))
        if store.path != path:
            raise StoreFormatError(
                f"{path} holds the recipe of {store.path.name}: was the folder renamed?"
            )
        return store

    def __len__(self) -> int:
        self._scan_once()
        return len(self._row_of)

    def __contains__(self, key: bytes) -> bool:
        self._scan_once()
        return key in self._row_of

    def keys(self) -> set[bytes]:
        """Keys of all rows, each 32 bytes."""
        self._scan_once()
        return set(self._row_of)

    def row_shape(self) -> tuple[int, ...] | None:
        """Shape of one row; None while the store is empty."""
        self._scan_once()
        for key in self._row_of:
            return self.read([key]).shape[1:]
        return None

    def scan(self) -> None:
        """Read every part anew, checking all of it; this is also a full verification."""
        self.parts, self.damaged, self._row_of = {}, {}, {}
        for name in disk.listdir(self.path / "parts"):
            if NAME.fullmatch(name):
                self._scan_part(name)
            elif not name.startswith(disk.TEMPORARY):
                _LOG.warning("%s: not a part, ignored", self.path / "parts" / name)
        self._scanned = True

    def read(self, keys: Iterable[bytes]) -> NDArray[np.float32]:
        """Features in the order asked for; a key may repeat.

        Args:
            keys: ``n`` keys of 32 bytes.

        Returns:
            Float32 array of shape ``(n, ...)``, as the backbone gave it.

        Raises:
            MissingRowsError: Some keys are not here, or their part proved damaged.
        """
        wanted = list(keys)
        self._scan_once()
        for _ in range(_RESCANS):
            self._require(wanted)
            try:
                return self._gather(wanted)
            except FileNotFoundError:
                # Another process has compacted: the rows are in a new part.
                self.scan()
        raise MissingRowsError(self.path, len(wanted), len(wanted))

    def commit(
        self,
        key: NDArray[np.uint8],
        features: NDArray[np.float32],
        *,
        provenance: str = "{}",
    ) -> str:
        """Make rows durable as one new part; when this returns, they are safe.

        Args:
            key: Shape ``(n, 32)``, uint8, each key once.
            features: Shape ``(n, ...)``, float32, finite.
            provenance: JSON text; see :func:`cache.part.provenance_text`.

        Returns:
            Name of the part. The same rows give the same name and are no error.

        Raises:
            BadFeaturesError: The rows are not fit to be stored.
            WriteFailedError: The disk refused; nothing else is affected.
        """
        self._scan_once()
        part = Part(
            key=key,
            features=features,
            fingerprint=self.recipe.fingerprint,
            provenance=provenance,
        )
        data = to_bytes(part)
        name = name_of(data)
        disk.publish(self.path / "parts" / name, data, scratch=self.path)
        self._remember(name, part, len(data))
        return name

    def prepare(self) -> None:
        """Make the folders and try a write, so that a full or read-only disk shows now.

        Raises:
            WriteFailedError: The store cannot be written.
        """
        try:
            disk.make_dir(self.path / "parts")
        except OSError as cause:
            free = disk.free_bytes(self.path)
            raise WriteFailedError(self.path, cause, needed=1, free=free) from cause
        disk.probe(self.path)

    def _scan_once(self) -> None:
        if not self._scanned:
            self.scan()

    def _scan_part(self, name: str) -> None:
        try:
            data = disk.read_all(self.path / "parts" / name)
        except FileNotFoundError:
            return  # compacted away since the listing
        except OSError as cause:
            self.damaged[name] = f"cannot be read: {cause}"
            _LOG.warning("%s: cannot be read (%s); its rows count as missing", name, cause)
            return
        part = self._parse(name, data)
        if part is not None:
            self._remember(name, part, len(data))

    def _parse(self, name: str, data: bytes) -> Part | None:
        try:
            return from_bytes(data, name=name, fingerprint=self.recipe.fingerprint)
        except DamagedPartError as cause:
            self._quarantine(name, str(cause))
            return None

    def _quarantine(self, name: str, reason: str) -> None:
        self.damaged[name] = reason
        _LOG.warning("%s; moved to quarantine, its rows will be computed again", reason)
        try:
            disk.make_dir(self.path / "quarantine")
            disk.replace(self.path / "parts" / name, self.path / "quarantine" / name)
        except OSError as cause:
            _LOG.warning("%s: cannot be moved to quarantine: %s", name, cause)

    def _remember(self, name: str, part: Part, size: int) -> None:
        """Index a part; of two parts with one key the smaller name wins, for everyone."""
        rows = part.key.tobytes()
        for row in range(len(part.key)):
            key = rows[32 * row : 32 * row + 32]
            known = self._row_of.get(key)
            if known is None or name < known[0]:
                self._row_of[key] = (name, row)
        self.parts[name] = PartInfo(
            name=name, rows=len(part.key), size=size, provenance=part.provenance
        )

    def _require(self, wanted: list[bytes]) -> None:
        missing = sum(key not in self._row_of for key in wanted)
        if missing:
            raise MissingRowsError(self.path, missing, len(wanted))

    def _gather(self, wanted: list[bytes]) -> NDArray[np.float32]:
        """Rows by position, one part in memory at a time."""
        places: dict[str, list[tuple[int, int]]] = {}
        for position, key in enumerate(wanted):
            name, row = self._row_of[key]
            places.setdefault(name, []).append((position, row))
        found: NDArray[np.float32] | None = None
        for name, pairs in places.items():
            part = self._parse(name, disk.read_all(self.path / "parts" / name))
            if part is None:
                self.scan()
                raise MissingRowsError(self.path, len(pairs), len(wanted))
            if found is None:
                found = np.full((len(wanted), *part.features.shape[1:]), np.nan, np.float32)
            positions, rows = map(list, zip(*pairs, strict=True))
            found[positions] = part.features[rows]
        return np.empty((0, 0), np.float32) if found is None else found


def stores_in(root: Path) -> list[FeatureStore]:
    """All stores under a folder, by name; folders without ``meta.json`` are none."""
    names = [name for name in disk.listdir(root) if (root / name / "meta.json").is_file()]
    return [FeatureStore.open(root / name) for name in names]
