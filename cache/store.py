"""The feature store of one recipe: look up keys, read rows, commit rows.

The parts on disk are the truth; what this object remembers of them can be thrown away at any
time. No file is ever changed, so there are no locks: any number of processes may read and write
the same store. A lookup gives the right row or says that it is missing. A damaged part is moved
to ``quarantine/`` and its rows count as missing. :class:`Writer` buffers rows and commits them
in time. ``cache.maintenance`` keeps the folder small.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.errors import (
    BadFeaturesError,
    CacheError,
    DamagedPartError,
    MissingRowsError,
    NotPlainFileError,
    StoreFormatError,
    WriteFailedError,
)
from cache.part import MAX_BYTES, NAME, Part, check_rows, from_bytes, name_of, to_bytes
from cache.recipe import Recipe, read_recipe

_LOG = logging.getLogger(__name__)
_RESCANS = 5


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """The result of a scan of one part."""

    name: str
    rows: int
    size: int
    row_shape: tuple[int, ...]
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
        """Open an existing store by its folder; a StoreFormatError if it is not a store."""
        store = cls(path.parent, read_recipe(path))
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
        return next((part.row_shape for part in self.parts.values()), None)

    def assume_empty(self) -> Self:
        """Skip the scan, for a writer of rows that the caller found missing."""
        self._scanned = True
        return self

    def scan(self) -> None:
        """Read and check every part again; this is also a full verification.

        Raises:
            StoreFormatError: Two parts have rows of different shapes.
        """
        self.parts, self.damaged, self._row_of = {}, {}, {}
        for _ in range(_RESCANS):
            unread = [name for name in self._part_names() if name not in self.damaged]
            vanished = [n for n in unread if n not in self.parts and not self._scan_part(n)]
            if not vanished:
                break
            # Compacted away since the listing: their rows are in a part newer than that.
        self._scanned = True

    def read(self, keys: Iterable[bytes]) -> NDArray[np.float32]:
        """Features (n, ...) of ``n`` keys, float32, in their order; a key may repeat.

        Raises:
            MissingRowsError: Some keys are missing, or their part is damaged.
        """
        wanted = list(keys)
        self._scan_once()
        for _ in range(_RESCANS):
            if missing := sum(key not in self._row_of for key in wanted):
                raise MissingRowsError(self.path, missing, len(wanted))
            features = self._read_parts(wanted)
            if features is not None:
                return features
            # Another process has compacted, so the rows are in a new part; or a part has
            # gone bad, and the scan shows whether another one has its rows too.
            self.scan()
        raise MissingRowsError(self.path, len(wanted), len(wanted))

    def commit(
        self, key: NDArray[np.uint8], features: NDArray[np.float32], *, provenance: str = "{}"
    ) -> str:
        """Make rows durable as one new part; when this returns, they are safe.

        Args:
            key: Shape ``(n, 32)``, uint8, each key once.
            features: Shape ``(n, ...)``, float32, finite.
            provenance: JSON text in the spelling of :func:`cache.recipe.canonical`.

        Returns:
            Name of the part. The same rows give the same name and are no error.

        Raises:
            BadFeaturesError: The rows must not be stored.
            WriteFailedError: The disk refused the write; nothing else is affected.
        """
        if self.row_shape() not in (None, features.shape[1:]):
            raise BadFeaturesError(
                f"rows of shape {features.shape[1:]} cannot join {self.path}, "
                f"whose rows have shape {self.row_shape()}"
            )
        fingerprint = self.recipe.fingerprint
        part = Part(key=key, features=features, fingerprint=fingerprint, provenance=provenance)
        data = to_bytes(part)
        name = name_of(data)
        disk.write_atomic(self.path / "parts" / name, data, scratch=self.path)
        self._remember(name, part, len(data))
        return name

    def prepare(self) -> None:
        """Make the folders and try a write, so that a full or read-only disk shows now."""
        try:
            disk.make_dir(self.path / "parts")
            # Whoever made a folder or renamed a part may have been killed before the sync.
            for folder in (self.path / "parts", self.path, self.path.parent):
                disk.fsync_dir(folder)
        except OSError as cause:
            free = disk.free_bytes(self.path)
            raise WriteFailedError(self.path, cause, needed=1, free=free) from cause
        disk.check_writable(self.path)

    def _scan_once(self) -> None:
        if not self._scanned:
            self.scan()

    def _part_names(self) -> list[str]:
        names = disk.listdir(self.path / "parts")
        for name in names:
            if not NAME.fullmatch(name) and not name.startswith(disk.TEMPORARY):
                _LOG.warning("%s: not a part, ignored", self.path / "parts" / name)
        return [name for name in names if NAME.fullmatch(name)]

    def _scan_part(self, name: str) -> bool:
        """Index the content of a part; False if the file no longer exists."""
        if loaded := self.load_part(name):
            self._remember(name, *loaded)
        return loaded is not None or name in self.damaged

    def load_part(self, name: str) -> tuple[Part, int] | None:
        """A checked part and its bytes; None if it is gone, or damaged and set aside."""
        try:
            data = disk.read_all(self.path / "parts" / name, MAX_BYTES)
            return from_bytes(data, name=name, fingerprint=self.recipe.fingerprint), len(data)
        except FileNotFoundError:
            return None
        except (NotPlainFileError, DamagedPartError) as cause:
            self._quarantine(name, str(cause))
        except OSError as cause:
            self.damaged[name] = f"{name}: cannot be read: {cause}"
            _LOG.warning("%s: cannot be read (%s); its rows count as missing", name, cause)
        return None

    def _quarantine(self, name: str, reason: str) -> None:
        self.damaged[name] = reason
        _LOG.warning("%s; moved to quarantine, its rows will be computed again", reason)
        try:
            aside = self.path / "quarantine" / name
            disk.make_dir(aside.parent)
            if os.path.lexists(aside):  # a folder gives way to nothing
                aside = aside.with_name(f"{name}-{uuid.uuid4().hex}")
            disk.replace(self.path / "parts" / name, aside)
        except OSError as cause:
            _LOG.warning("%s: cannot be moved to quarantine: %s", name, cause)

    def _remember(self, name: str, part: Part, size: int) -> None:
        """Index a part; if two parts have one key, the smaller name wins, for all readers."""
        shape = part.features.shape[1:]
        if self.parts and shape != (first := next(iter(self.parts.values()))).row_shape:
            raise StoreFormatError(
                f"{self.path}: rows have shape {first.row_shape} in {first.name} and {shape} in "
                f"{name}, but one recipe gives one shape: move the wrong part away"
            )
        rows = part.key.tobytes()
        for row in range(len(part.key)):
            key = rows[32 * row : 32 * row + 32]
            if name <= self._row_of.get(key, (name,))[0]:
                self._row_of[key] = (name, row)
        self.parts[name] = PartInfo(
            name=name, rows=len(part.key), size=size, row_shape=shape, provenance=part.provenance
        )

    def _read_parts(self, wanted: list[bytes]) -> NDArray[np.float32] | None:
        """Rows by position, with one part in memory at a time; None if a part is unusable."""
        wanted_of: dict[str, list[tuple[int, int]]] = {}
        for position, key in enumerate(wanted):
            name, row = self._row_of[key]
            wanted_of.setdefault(name, []).append((position, row))
        features = np.full((len(wanted), *(self.row_shape() or (0,))), np.nan, np.float32)
        for name, pairs in wanted_of.items():
            loaded = self.load_part(name)
            if loaded is None:
                return None
            positions, rows = map(list, zip(*pairs, strict=True))
            features[positions] = loaded[0].features[rows]
        return features


def stores_in(root: Path) -> dict[str, FeatureStore | StoreFormatError]:
    """The stores in a folder, by name, or the error why one cannot be opened."""
    stores: dict[str, FeatureStore | StoreFormatError] = {}
    for name in disk.listdir(root):
        if (root / name / "meta.json").is_file():
            try:
                stores[name] = FeatureStore.open(root / name)
            except StoreFormatError as reason:
                stores[name] = reason
    return stores


#: Buffered rows are committed after 1024 rows or 30 s, whichever comes first.
ROWS_PER_COMMIT = 1024
_SECONDS_PER_COMMIT = 30.0
#: Activations are wider than pooled features: 1024 rows of 512 x 7 x 7 are 100 MB.
_BYTES_PER_COMMIT = 64 << 20


class Writer:
    """Context manager that commits all rows that it gets, even if it is interrupted.

    Args:
        store: Where the rows go; :meth:`FeatureStore.prepare` must have been called.
        provenance: JSON text kept with each part.

    Rows whose key is already in the store or in the buffer are dropped: the first one counts. At
    the end the rest is committed, unless the disk has refused a write.
    """

    def __init__(self, store: FeatureStore, *, provenance: str = "{}") -> None:
        self._store = store
        self._provenance = provenance
        self._rows: dict[bytes, NDArray[np.float32]] = {}
        self._since = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not isinstance(error, WriteFailedError):
            self.commit()

    def add(self, key: bytes, features: NDArray[np.float32]) -> None:
        """Buffer a copy of one row, float32 of any shape, and commit when it is time.

        Raises:
            BadFeaturesError: This row must not be stored; those before it are kept.
            WriteFailedError: The disk refused a commit.
        """
        if key in self._rows or key in self._store:
            return
        shape = next((row.shape for row in self._rows.values()), self._store.row_shape())
        if shape not in (None, features.shape):
            raise BadFeaturesError(f"a row of shape {features.shape} among rows of shape {shape}")
        check_rows(np.frombuffer(key, np.uint8)[None], features[None])
        if not self._rows:
            self._since = time.monotonic()
        self._rows[key] = features.copy()
        size = len(self._rows)
        if (
            size >= ROWS_PER_COMMIT
            or size * features.nbytes >= _BYTES_PER_COMMIT
            or time.monotonic() - self._since >= _SECONDS_PER_COMMIT
        ):
            self.commit()

    def commit(self) -> None:
        """Make everything buffered durable."""
        if not self._rows:
            return
        key = np.frombuffer(b"".join(self._rows), np.uint8).reshape(len(self._rows), -1)
        features = np.stack(list(self._rows.values()))
        try:
            self._store.commit(key, features, provenance=self._provenance)
        except CacheError:
            # Refused rows are not tried again: the run ends with the error.
            self._rows = {}
            raise
        self._rows = {}
