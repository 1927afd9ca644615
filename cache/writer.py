"""Buffer rows and commit them often enough: 1024 rows or 30 s, whichever comes first."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache.errors import BadFeaturesError, CacheError, WriteFailedError
from cache.part import check_rows
from cache.store import FeatureStore

ROWS_PER_COMMIT = 1024
SECONDS_PER_COMMIT = 30.0
#: Activations are wider than pooled features: 1024 rows of 512 x 7 x 7 are 100 MB.
BYTES_PER_COMMIT = 64 << 20


class Writer:
    """Context manager that commits what it is given, also when it is interrupted.

    Args:
        store: Where the rows go; :meth:`FeatureStore.prepare` must have been called.
        provenance: JSON text kept with each part.
        clock: Seconds that only grow.

    Rows whose key is already in the store or in the buffer are dropped: the first
    one stands. On leaving, the rest is committed, unless the disk has refused a write.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        provenance: str = "{}",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._provenance = provenance
        self._clock = clock
        self._rows: dict[bytes, NDArray[np.float32]] = {}
        self._since = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, WriteFailedError):
            self.commit()

    def add(self, key: bytes, features: NDArray[np.float32]) -> None:
        """Buffer one row of any shape, and commit when it is time.

        Args:
            key: 32 bytes.
            features: Shape ``(...)``, float32, finite; copied, so the caller may reuse it.

        Raises:
            BadFeaturesError: This row is not fit to be stored; those before it are kept.
            WriteFailedError: It was time, and the disk refused.
        """
        if key in self._rows or key in self._store:
            return
        shape = next((row.shape for row in self._rows.values()), self._store.row_shape())
        if shape not in (None, features.shape):
            raise BadFeaturesError(f"a row of shape {features.shape} among rows of shape {shape}")
        check_rows(np.frombuffer(key, np.uint8)[None], features[None])
        if not self._rows:
            self._since = self._clock()
        self._rows[key] = features.copy()
        size = len(self._rows)
        if (
            size >= ROWS_PER_COMMIT
            or size * features.nbytes >= BYTES_PER_COMMIT
            or self._clock() - self._since >= SECONDS_PER_COMMIT
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
            # What the store refuses stays out of the next try: the run ends with the error.
            self._rows = {}
            raise
        self._rows = {}
