"""What the tests of the store share: an empty store, and what must be true of its folder."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.store import FeatureStore
from tests import cache_jobs as jobs

KEYS = jobs.all_keys()


@pytest.fixture
def store(tmp_path):
    """An empty store, ready to be written to."""
    ready = FeatureStore(tmp_path, jobs.RECIPE)
    ready.prepare()
    return ready


def reopened(store):
    return FeatureStore(store.path.parent, store.recipe)


def assert_holds(store, keys=KEYS):
    """On disk are the right rows of these keys, and no others."""
    opened = reopened(store)
    assert opened.keys() == set(keys)
    assert not keys or np.array_equal(opened.read(keys), jobs.rows_of(keys)[1])


def sizes(store):
    """Rows of each part, in the order of the commits."""
    return [part.rows for part in store.parts.values()]


def assert_never_served(
    folder: Path, name: str, data: bytes | Callable[[Path], object], keys: list[bytes]
) -> None:
    """Put a file, or what a function makes, among the parts: no key of it may be found.

    It is named in a warning, and moved to ``quarantine/`` as it is.
    """
    store = FeatureStore(folder, jobs.RECIPE)
    place = store.path / "parts" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data) if isinstance(data, bytes) else data(place)
    with StoreWarnings() as warned:
        store.scan()
    served = [key for key in keys if key in store]
    assert not served, f"{len(served)} rows of a damaged part are served"
    assert set(store.damaged) == {name}
    assert any(name in text for text in warned)
    assert not os.path.lexists(place)
    aside = store.path / "quarantine" / name
    if isinstance(data, bytes):
        assert aside.read_bytes() == data
        aside.unlink()  # ext4 is slow to rename over a file that is there
    assert os.listdir(aside.parent) or isinstance(data, bytes)


class StoreWarnings(logging.Handler):
    """Collects the store's warnings while it is entered, however logging is set up."""

    def __enter__(self) -> list[str]:
        self.texts: list[str] = []
        logging.getLogger("cache").addHandler(self)
        return self.texts

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("cache").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.texts.append(record.getMessage())
