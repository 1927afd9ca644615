"""Maintenance of a store: compaction, and what dead writers left behind."""

import errno
import logging
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from cache import disk, maintenance
from cache import store as store_module
from cache.errors import WriteFailedError
from cache.maintenance import compact, gc, quarantined
from cache.store import FeatureStore
from tests import cache_jobs as jobs
from tests.cache.conftest import KEYS, assert_holds, sizes


def commit_in_threes(store, keys=KEYS, *, provenance="{}"):
    for start in range(0, len(keys), 3):
        store.commit(*jobs.rows_of(keys[start : start + 3]), provenance=provenance)


def test_provenances_are_kept_apart(store):
    """Each merged part says truly which device made its rows."""
    commit_in_threes(store, KEYS[:6], provenance='{"device":"cpu"}')
    commit_in_threes(store, KEYS[6:], provenance='{"device":"cuda"}')
    assert compact(store) == 2
    assert {(p.provenance, p.rows) for p in store.parts.values()} == {
        ('{"device":"cpu"}', 6),
        ('{"device":"cuda"}', 6),
    }
    assert_holds(store)


def test_a_key_that_is_there_twice_is_kept_once_with_the_row_readers_saw(store):
    """Merging does not change what was read before."""
    for shift in range(3):
        key, features = jobs.rows_of(KEYS)
        store.commit(key, features + shift)
    before = store.read(KEYS)
    compact(store)
    assert sizes(store) == [len(KEYS)]
    assert np.array_equal(store.read(KEYS), before)


def test_merged_parts_stay_below_the_limit(store, monkeypatch):
    """However many rows there are, one part's worth of memory is enough."""
    commit_in_threes(store)
    size = max(part.size for part in store.parts.values())
    monkeypatch.setattr(maintenance, "_MAX_PART_BYTES", 2 * size)
    compact(store)
    assert len(store.parts) == 2
    assert_holds(store)


def test_a_part_that_goes_bad_during_the_merge_is_not_merged(store, monkeypatch):
    """What the scan accepted is checked again; the rest of its group stays."""
    commit_in_threes(store)
    bad = min(store.parts)
    whole = store_module.from_bytes

    def gone_bad(data, *, name, fingerprint):
        if name == bad:
            (store.path / "parts" / bad).write_bytes(data[:-1])
            data = data[:-1]
        return whole(data, name=name, fingerprint=fingerprint)

    monkeypatch.setattr(store_module, "from_bytes", gone_bad)
    compact(store)
    assert quarantined(store) == [bad]
    assert len(store) == 9
    assert_holds(store, sorted(store.keys()))


NOBODY = 65534


@pytest.fixture
def of_root_and_nobody(monkeypatch):
    """A store in sticky folders with two parts of each user; from here on nobody runs."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("only root can try it as another user")
    folder = Path(tempfile.mkdtemp())  # other users may not enter the folders of pytest
    monkeypatch.setenv("HEADRACE_SHARED", "1")
    shared = FeatureStore(folder, jobs.RECIPE)
    shared.prepare()
    commit_in_threes(shared)
    for name in sorted(shared.parts)[:2]:
        os.chown(shared.path / "parts" / name, NOBODY, NOBODY)
    for path in (folder, shared.path, shared.path / "parts"):
        path.chmod(0o1777)
    os.seteuid(NOBODY)
    try:
        yield shared
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_parts_of_another_user_in_a_sticky_folder_stay_and_are_named(of_root_and_nobody, caplog):
    """Only their owner may remove them, so they are not merged; the others are."""
    store = of_root_and_nobody
    foreign = sorted(store.parts)[2:]
    with caplog.at_level(logging.INFO, "cache"):
        assert compact(store) == 1
    assert len(store.parts) == 3
    assert set(foreign) < set(store.parts)
    for name, record in zip(foreign, caplog.records, strict=True):
        assert f"{name}: stays: it is another user's" in record.getMessage()
    assert_holds(store)


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
    assert_holds(store)
    assert gc(store) == []


def test_the_folder_is_synced_once_however_many_files_go(store, monkeypatch):
    """A sync of a network drive takes milliseconds; without garbage there is none."""
    names = [_temporary(store, HOST, pid) for pid in (DEAD, DEAD + 1, DEAD + 2)]
    synced = []
    monkeypatch.setattr(disk, "fsync_dir", synced.append)
    assert gc(store) == sorted(names)
    assert synced == [store.path]
    gc(store)
    assert synced == [store.path]


def test_garbage_of_another_user_stays_and_the_rest_goes(store, monkeypatch):
    """In a sticky folder only its owner may remove it; a failing disk is still an error."""
    names = [_temporary(store, HOST, pid) for pid in (DEAD, DEAD + 1)]
    foreign, real, why = min(names), disk.unlink, errno.EPERM

    def unlink(path):
        if path.name == foreign:
            raise OSError(why, os.strerror(why), path)
        real(path)

    monkeypatch.setattr(disk, "unlink", unlink)
    assert gc(store) == [max(names)]
    assert foreign in os.listdir(store.path)
    why = errno.EIO
    with pytest.raises(WriteFailedError, match="errno 5"):
        gc(store)
