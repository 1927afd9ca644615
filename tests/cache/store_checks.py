"""Checks of the store's promises that a planted bug must fail; see the mutation test."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.errors import BadFeaturesError
from cache.part import name_of, to_bytes
from cache.store import FeatureStore
from tests import cache_jobs as jobs
from tests.power_loss import rows_at_risk

KEYS = jobs.all_keys()


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


def check_power_loss(folder: Path, without: str | None = None) -> None:
    """At no moment of a job would a power cut take an acknowledged row."""
    jobs.run(folder, folder / "log", without=without)
    notes = jobs.notes_in(folder / "log")
    assert any(note["what"] == "done" for note in notes)
    risks = rows_at_risk(notes, folder)
    assert not risks, "; ".join(risks)


def check_damage(folder: Path) -> None:
    """A part with one flipped bit is set aside, and none of its rows is served."""
    keys = jobs.all_keys()
    part = jobs.part_of(keys)
    data = bytearray(to_bytes(part))
    place = bytes(data).index(part.features.tobytes())
    name = name_of(bytes(data))
    data[place + 3] ^= 1 << 2
    assert_never_served(folder, name, bytes(data), keys)


def check_finite(folder: Path) -> None:
    """A row that is not finite is refused, whichever way it comes."""
    store = FeatureStore(folder, jobs.RECIPE)
    store.prepare()
    for bad in (np.nan, np.inf, -np.inf):
        key, features = jobs.rows_of(jobs.all_keys())
        features[3, 1] = bad
        with pytest.raises(BadFeaturesError, match="1 of 12 rows are not finite"):
            store.commit(key, features)
    assert not list((store.path / "parts").iterdir())


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
