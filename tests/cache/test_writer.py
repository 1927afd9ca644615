"""The writer commits often enough, takes no bad row, and loses none when it is interrupted."""

import numpy as np
import pytest

from cache import disk
from cache import store as writer_module
from cache.errors import BadFeaturesError, WriteFailedError
from cache.store import FeatureStore, Writer
from tests import cache_jobs as jobs

KEYS = [jobs.key_of(number) for number in range(2500)]
ROWS = jobs.rows_of(KEYS)[1]


class _CountingStore(FeatureStore):
    """Remembers how many rows each commit had."""

    def commit(self, key, features, *, provenance="{}"):
        name = super().commit(key, features, provenance=provenance)
        self.__dict__.setdefault("sizes", []).append(len(key))
        return name


@pytest.fixture
def store(tmp_path):
    ready = _CountingStore(tmp_path, jobs.RECIPE)
    ready.prepare()
    ready.sizes = []
    return ready


def stored(store):
    """Keys that are on disk, with their rows checked."""
    opened = FeatureStore(store.path.parent, store.recipe)
    keys = sorted(opened.keys())
    if keys:
        assert np.array_equal(opened.read(keys), jobs.rows_of(keys)[1])
    return set(keys)


def test_it_commits_at_1024_rows(store):
    """No more than one commit's rows are at risk, and the rest goes on leaving."""
    output = np.empty(jobs.WIDTH, np.float32)
    with Writer(store) as writer:
        for key in KEYS:
            output[:] = jobs.row_of(key)  # an engine may use its array again
            writer.add(key, output)
    assert store.sizes == [1024, 1024, 452]
    assert stored(store) == set(KEYS)


def test_it_commits_after_30_seconds(store, monkeypatch):
    """A slow network loses half a minute at most; the clock starts with the first row."""
    now = [1000.0]
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now[0])
    with Writer(store) as writer:
        for key, row, seconds in zip(KEYS, ROWS, [0, 29.9, 0.1, 500, 29, 0], strict=False):
            now[0] += seconds
            writer.add(key, row)
        assert store.sizes == [3]
    assert store.sizes == [3, 3]


def test_wide_rows_are_committed_by_their_size(store, monkeypatch):
    """Activations of 512 x 7 x 7 do not pile up to 1024 rows in memory."""
    monkeypatch.setattr(writer_module, "BYTES_PER_COMMIT", 5 * ROWS[0].nbytes)
    with Writer(store) as writer:
        for key, row in zip(KEYS[:12], ROWS, strict=False):
            writer.add(key, row)
    assert store.sizes == [5, 5, 2]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interruption_commits_what_there_is(store, interruption):
    """Ctrl-C, a mistake elsewhere or an exit cost no row that was computed."""
    with pytest.raises(interruption), Writer(store) as writer:
        for key, row in zip(KEYS[:7], ROWS, strict=False):
            writer.add(key, row)
        raise interruption
    assert stored(store) == set(KEYS[:7])


def test_an_interruption_of_the_commit_itself_loses_nothing(store, monkeypatch):
    """Ctrl-C while the part is on its way to the disk: it is written on leaving."""
    whole = disk.replace

    def interrupted(*_):
        monkeypatch.setattr(disk, "replace", whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), Writer(store) as writer:
        for key, row in zip(KEYS[:7], ROWS, strict=False):
            writer.add(key, row)
        writer.commit()
    assert stored(store) == set(KEYS[:7])


def test_a_disk_that_refuses_is_asked_once(store, monkeypatch):
    """The error ends the run; leaving does not try the same rows again."""
    tries = []

    def full(*_):
        tries.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(WriteFailedError, match="No space left"), Writer(store) as writer:
        writer.add(KEYS[0], ROWS[0])
        writer.commit()
    assert len(tries) == 1


BAD_ROWS = {
    "NaN": (KEYS[5], np.where(np.arange(6) == 2, np.nan, ROWS[5]), "1 of 1 rows are not finite"),
    "float64": (KEYS[5], ROWS[5].astype(float), "float64"),
    "other shape": (KEYS[5], ROWS[5][:1], r"shape \(1,\) among rows of shape \(6,\)"),
    "short key": (KEYS[5][:31], ROWS[5], "32"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_when_it_comes_and_the_good_ones_are_kept(store, case):
    """The error points at the row that caused it, and takes no other row with it."""
    key, row, message = BAD_ROWS[case]
    with pytest.raises(BadFeaturesError, match=message), Writer(store) as writer:
        for good in range(5):
            writer.add(KEYS[good], ROWS[good])
        writer.add(key, row.astype(np.float32) if case == "NaN" else row)
    assert stored(store) == set(KEYS[:5])


def test_the_first_row_of_a_key_stands(store):
    """A key that is stored or buffered is not stored again."""
    with Writer(store) as writer:
        for key in (KEYS[0], KEYS[1], KEYS[0]):
            writer.add(key, jobs.row_of(key))
        writer.add(KEYS[1], ROWS[1] + 1)
        writer.commit()
        writer.add(KEYS[0], ROWS[0] + 1)
    assert store.sizes == [2]
    assert stored(store) == set(KEYS[:2])
