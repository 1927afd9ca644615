"""Compaction keeps every row, collection of garbage takes nothing that anybody needs."""

import os
import socket
import time

import numpy as np
import pytest

from cache import disk
from cache import store as upkeep
from cache.store import FeatureStore, compact, gc, quarantined
from tests import cache_jobs as jobs

KEYS = jobs.all_keys()


@pytest.fixture
def store(tmp_path):
    ready = FeatureStore(tmp_path, jobs.RECIPE)
    ready.prepare()
    return ready


def commit_in_threes(store, keys=KEYS, *, provenance="{}"):
    for start in range(0, len(keys), 3):
        store.commit(*jobs.rows_of(keys[start : start + 3]), provenance=provenance)


def parts_of(store):
    return os.listdir(store.path / "parts")


def rows_are_right(store, keys=KEYS):
    opened = FeatureStore(store.path.parent, store.recipe)
    return opened.keys() == set(keys) and np.array_equal(opened.read(keys), jobs.rows_of(keys)[1])


def test_the_order_of_the_commits_leaves_no_trace(store, tmp_path):
    """The same rows make the same part, bit for bit."""
    other = FeatureStore(tmp_path / "other", store.recipe)
    other.prepare()
    commit_in_threes(store)
    commit_in_threes(other, KEYS[::-1])
    compact(store)
    compact(other)
    assert parts_of(store) == parts_of(other)


def test_provenances_are_kept_apart(store):
    """Each merged part says truly which device made its rows."""
    commit_in_threes(store, KEYS[:6], provenance='{"device":"cpu"}')
    commit_in_threes(store, KEYS[6:], provenance='{"device":"cuda"}')
    assert compact(store) == 2
    assert {(p.provenance, p.rows) for p in store.parts.values()} == {
        ('{"device":"cpu"}', 6),
        ('{"device":"cuda"}', 6),
    }
    assert rows_are_right(store)


def test_a_key_that_is_there_twice_is_kept_once_with_the_row_readers_saw(store):
    """Merging does not change what was read before."""
    for shift in range(3):
        key, features = jobs.rows_of(KEYS)
        store.commit(key, features + shift)
    before = store.read(KEYS)
    compact(store)
    assert [part.rows for part in store.parts.values()] == [len(KEYS)]
    assert np.array_equal(store.read(KEYS), before)


def test_merged_parts_stay_below_the_limit(store, monkeypatch):
    """However many rows there are, one part's worth of memory is enough."""
    commit_in_threes(store)
    size = max(part.size for part in store.parts.values())
    monkeypatch.setattr(upkeep, "MAX_PART_BYTES", 2 * size)
    compact(store)
    assert len(parts_of(store)) == 2
    assert rows_are_right(store)


def test_a_part_that_goes_bad_during_the_merge_is_not_merged(store, monkeypatch):
    """What the scan accepted is checked again; the rest of its group stays."""
    commit_in_threes(store)
    bad = min(store.parts)
    whole = upkeep.from_bytes

    def gone_bad(data, *, name, fingerprint):
        if name == bad:
            (store.path / "parts" / bad).write_bytes(data[:-1])
            data = data[:-1]
        return whole(data, name=name, fingerprint=fingerprint)

    monkeypatch.setattr(upkeep, "from_bytes", gone_bad)
    compact(store)
    assert quarantined(store) == [bad]
    assert len(store) == 9
    assert rows_are_right(store, sorted(store.keys()))


HOST = socket.gethostname().replace("-", "_")
DEAD = 2**22 + 1  # Linux gives no process a number above 2**22


def _temporary(store, host, pid, *, hours=0.0):
    file = store.path / f".tmp-{host}-{pid}-{'0' * 32}"
    file.write_bytes(b"half a part")
    then = time.time() - hours * 3600
    os.utime(file, (then, then))
    return file.name


def test_garbage_is_what_dead_writers_left_and_what_is_a_day_old(store):
    """A living process of this host keeps its file for ever, one elsewhere for a day."""
    commit_in_threes(store)
    dead = _temporary(store, HOST, DEAD)
    impossible = _temporary(store, HOST, "9" * 30)
    old = _temporary(store, "elsewhere", os.getpid(), hours=24.1)
    kept = {
        _temporary(store, HOST, os.getpid(), hours=100),
        _temporary(store, "elsewhere", DEAD, hours=23.9),
        ".tmp-of-somebody-else",
    }
    (store.path / ".tmp-of-somebody-else").touch()
    os.utime(store.path / ".tmp-of-somebody-else", (0, 0))
    assert set(gc(store)) == {dead, impossible, old}
    assert {name for name in os.listdir(store.path) if name != "parts"} == kept
    assert rows_are_right(store)
    assert gc(store) == []


def test_a_temporary_file_is_never_data(store):
    """Even when it holds a whole part: it has no name yet, so nobody acknowledged it."""
    name = store.commit(*jobs.rows_of(KEYS))
    (store.path / "parts" / name).rename(store.path / "parts" / disk.temporary_name())
    assert not len(FeatureStore(store.path.parent, store.recipe))
