"""The store: what goes in comes out, commits in time."""

import errno
import os
import re
from dataclasses import replace
from shutil import copytree
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cache
from cache import disk
from cache import store as store_module
from cache.errors import BadFeaturesError, MissingRowsError, StoreFormatError, WriteFailedError
from cache.maintenance import compact
from cache.part import Part, from_bytes, name_of, to_bytes
from cache.store import FeatureStore, Writer, stores_in
from tests import cache_jobs as jobs
from tests.cache.conftest import KEYS, StoreWarnings, assert_holds, reopened, sizes

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
row_shapes = st.sampled_from([(1,), (6,), (1024,), (2, 3), (512, 7, 7)])


@settings(max_examples=25)
@given(data=st.data(), shape=row_shapes, rows=st.integers(1, 5))
def test_a_part_gives_back_the_very_bits(data, shape, rows):
    """Features of any shape, any finite value, and any keys survive the round trip."""
    features = data.draw(hnp.arrays(np.float32, (rows, *shape), elements=finite, fill=finite))
    key = np.stack([np.frombuffer(jobs.key_of(i), np.uint8) for i in range(rows)])
    part = Part(key=key, features=features, fingerprint="f", provenance='{"device":"cpu"}')
    image = to_bytes(part)
    back = from_bytes(image, name=name_of(image), fingerprint="f")
    assert back.features.tobytes() == features.tobytes()
    assert back.features.shape == features.shape
    assert np.array_equal(back.key, key)
    assert back.provenance == part.provenance


def test_rows_come_in_the_order_asked_for(store):
    """A key may repeat, and rows of several parts may mix."""
    store.commit(*jobs.rows_of(KEYS[:5]))
    store.commit(*jobs.rows_of(KEYS[5:]))
    wanted = [KEYS[i] for i in np.random.default_rng(0).integers(0, len(KEYS), 40)]
    for opened in (store, reopened(store)):
        assert np.array_equal(opened.read(iter(wanted)), jobs.rows_of(wanted)[1])
        assert opened.read([]).shape == (0, jobs.WIDTH)


def test_an_empty_store_answers(tmp_path):
    """Before anything is written, nothing is there, and reading makes no folder."""
    store = FeatureStore(tmp_path, jobs.RECIPE)
    assert (len(store), store.keys(), store.row_shape()) == (0, set(), None)
    assert KEYS[0] not in store
    assert store.read([]).size == 0
    with pytest.raises(MissingRowsError, match=r"^1 of 1 image has no features in .*tiny-"):
        store.read(KEYS[:1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("descending", [False, True])
def test_of_two_rows_with_one_key_the_smaller_part_name_wins(store, descending):
    """Whoever reads, and in whatever order the parts came, believes the same row."""
    key, features = jobs.rows_of(KEYS[:2])
    part = jobs.part_of(KEYS[:2])
    named = {
        name_of(to_bytes(replace(part, features=shifted))): shifted
        for shifted in (features, features + 1, features + 2)
    }
    for name in sorted(named, reverse=descending):
        assert store.commit(key, named[name]) == name
    for opened in (store, reopened(store)):
        assert np.array_equal(opened.read(KEYS[:2]), named[min(named)])
        assert len(opened) == 2


def test_a_new_file_never_takes_the_place_of_another(tmp_path):
    """Nor does it follow a link that somebody put there."""
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            disk.open_new(tmp_path / name)
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "target").exists()


def test_the_stores_of_a_root_are_those_with_a_recipe(store):
    """No ``meta.json``, no store; one that cannot be opened says why and hides no other."""
    root = store.path.parent
    assert stores_in(root) == {}
    cache.recipe.check_canaries(
        store.path, store.recipe, np.ones((1, 2), np.float32), provenance={}
    )
    copytree(store.path, root / "old")
    found = stores_in(root)
    assert set(found) == {"old", store.path.name}
    opened = found[store.path.name]
    assert (opened.path, opened.recipe) == (store.path, store.recipe)
    assert isinstance(found["old"], StoreFormatError)
    assert re.search(r"old holds the recipe of tiny-.*renamed\?", str(found["old"]))


UNFIT = {
    "float64": (jobs.rows_of(KEYS)[0], np.zeros((12, 6)), "must be float32"),
    "no rows": (np.zeros((0, 32), np.uint8), np.zeros((0, 6), np.float32), "n > 0"),
    "one axis": (jobs.rows_of(KEYS)[0], np.zeros(12, np.float32), "shape"),
    "too few keys": (jobs.rows_of(KEYS[:3])[0], np.zeros((4, 6), np.float32), "4 rows need keys"),
    "short keys": (np.zeros((1, 31), np.uint8), np.zeros((1, 6), np.float32), r"\(1, 32\)"),
    "key twice": (*jobs.rows_of([*KEYS, KEYS[5]]), "a key stands twice among 13 rows"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_rows_unfit_to_be_stored_are_refused(store, case):
    """Nothing is acknowledged that a later scan would not accept."""
    key, features, message = UNFIT[case]
    with pytest.raises(BadFeaturesError, match=message):
        store.commit(key, features)
    assert not os.listdir(store.path / "parts")


def test_rows_of_another_shape_never_mix(store):
    """One value a row must not be spread over rows of six; two shapes on disk are an error."""
    store.commit(*jobs.rows_of(KEYS[:4]))
    key, features = jobs.rows_of(KEYS[4:])
    with pytest.raises(BadFeaturesError, match=r"shape \(1,\) cannot join .*shape \(6,\)"):
        store.commit(key, features[:, :1])
    image = to_bytes(Part(key=key, features=features[:, :1], fingerprint=store.recipe.fingerprint))
    (store.path / "parts" / name_of(image)).write_bytes(image)
    with pytest.raises(StoreFormatError, match="one recipe gives one shape"):
        reopened(store).read(KEYS[:5])


def test_a_scan_during_a_compaction_misses_nothing(store, monkeypatch):
    """Parts that go between the listing and their turn are looked for in newer ones."""
    for start in range(0, 12, 4):
        store.commit(*jobs.rows_of(KEYS[start : start + 4]))
    whole = disk.listdir

    def listing_then_compaction(folder):
        names = whole(folder)
        monkeypatch.setattr(disk, "listdir", whole)
        compact(store)
        return names

    monkeypatch.setattr(disk, "listdir", listing_then_compaction)
    assert reopened(store).keys() == set(KEYS)


def test_a_store_that_cannot_be_written_can_be_read(store, monkeypatch):
    """Reads work, and ``prepare`` says at once which folder refuses, and why."""
    store.commit(*jobs.rows_of(KEYS))
    damaged = store.path / "parts" / f"part-{'0' * 64}.h5"
    damaged.write_bytes(b"")
    refuse = Mock(side_effect=OSError(30, "Read-only file system"))
    for name in jobs.CHANGES:
        monkeypatch.setattr(disk, name, refuse)
    reader = reopened(store)
    with StoreWarnings() as warned:
        assert np.array_equal(reader.read(KEYS), jobs.rows_of(KEYS)[1])
    assert "cannot be moved to quarantine" in warned[-1]
    with pytest.raises(WriteFailedError, match=r"cannot write .*tiny-.*Read-only file system") as e:
        reader.prepare()
    assert e.value.errno == 30
    assert e.value.exit_code == 4


@pytest.mark.parametrize(
    ("shared", "umask", "modes"),
    [("", 0o022, (0o700, 0o600)), ("", 0o277, (0o500, 0o400)), ("1", 0o007, (0o770, 0o660))],
)
def test_files_are_for_their_owner_unless_a_team_says_otherwise(
    tmp_path, monkeypatch, shared, umask, modes
):
    """A stricter umask is obeyed; with HEADRACE_SHARED the umask alone decides."""
    monkeypatch.setenv("HEADRACE_SHARED", shared)
    before = os.umask(umask)
    try:
        disk.make_dir(tmp_path / "a" / "b")
        disk.write_atomic(tmp_path / "file", b"", scratch=tmp_path)
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "file"]
    assert [path.stat().st_mode & 0o777 for path in made] == [modes[0], *modes]


ADVICE = {
    errno.ENOSPC: "make room, or choose",
    errno.EROFS: "get the right to write there",
    errno.EACCES: "get the right to write there",
    errno.EIO: "the disk may be failing",
    errno.EINVAL: "safe: choose another place",
}


@pytest.mark.parametrize("number", ADVICE)
def test_the_advice_fits_the_error(tmp_path, monkeypatch, number):
    """More room does not help where nobody may write."""
    refuse = Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr(disk, "open_new", refuse)
    with pytest.raises(WriteFailedError, match=ADVICE[number]) as error:
        disk.write_atomic(tmp_path / "file", b"")
    assert str(error.value).count("make room") == (number == errno.ENOSPC)


# The writer.


MANY = [jobs.key_of(number) for number in range(2500)]
ROWS = jobs.rows_of(MANY)[1]


def add(writer, count):
    """Add the first rows."""
    for key, row in zip(MANY[:count], ROWS, strict=False):
        writer.add(key, row)


def test_it_commits_at_1024_rows(store):
    """No more than one commit's rows are at risk, and the rest goes on leaving."""
    output = np.empty(jobs.WIDTH, np.float32)
    with Writer(store) as writer:
        for key in MANY:
            output[:] = jobs.row_of(key)  # an engine may use its array again
            writer.add(key, output)
    assert sizes(store) == [1024, 1024, 452]
    assert_holds(store, MANY)


def test_it_commits_after_30_seconds(store, monkeypatch):
    """A slow network loses half a minute at most; the clock starts with the first row."""
    now = [1000.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now[0])
    with Writer(store) as writer:
        for key, row, seconds in zip(MANY, ROWS, [0, 29.9, 0.1, 500, 29, 0], strict=False):
            now[0] += seconds
            writer.add(key, row)
        assert sizes(store) == [3]
    assert sizes(store) == [3, 3]


def test_wide_rows_are_committed_by_their_size(store, monkeypatch):
    """Activations of 512 x 7 x 7 do not pile up to 1024 rows in memory."""
    monkeypatch.setattr(store_module, "_BYTES_PER_COMMIT", 5 * ROWS[0].nbytes)
    with Writer(store) as writer:
        add(writer, 12)
    assert sizes(store) == [5, 5, 2]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interruption_commits_what_there_is(store, interruption):
    """Ctrl-C, a mistake elsewhere or an exit cost no row that was computed."""
    with pytest.raises(interruption), Writer(store) as writer:
        add(writer, 7)
        raise interruption
    assert_holds(store, MANY[:7])


def test_an_interruption_of_the_commit_itself_loses_nothing(store, monkeypatch):
    """Ctrl-C while the part is on its way to the disk: it is written on leaving."""
    whole = disk.replace

    def interrupted(*_):
        monkeypatch.setattr(disk, "replace", whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), Writer(store) as writer:
        add(writer, 7)
        writer.commit()
    assert_holds(store, MANY[:7])


def test_a_disk_that_refuses_is_asked_once(store, monkeypatch):
    """The error ends the run; leaving does not try the same rows again."""
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(WriteFailedError, match="No space left"), Writer(store) as writer:
        writer.add(MANY[0], ROWS[0])
        writer.commit()
    assert full.call_count == 1


BAD_ROWS = {
    "NaN": (MANY[5], np.where(np.arange(6) == 2, np.nan, ROWS[5]), "1 of 1 rows are not finite"),
    "float64": (MANY[5], ROWS[5].astype(float), "float64"),
    "other shape": (MANY[5], ROWS[5][:1], r"shape \(1,\) among rows of shape \(6,\)"),
    "short key": (MANY[5][:31], ROWS[5], "32"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_when_it_comes_and_the_good_ones_are_kept(store, case):
    """The error points at the row that caused it, and takes no other row with it."""
    key, row, message = BAD_ROWS[case]
    with pytest.raises(BadFeaturesError, match=message), Writer(store) as writer:
        add(writer, 5)
        writer.add(key, row.astype(np.float32) if case == "NaN" else row)
    assert_holds(store, MANY[:5])


def test_the_first_row_of_a_key_stands(store):
    """A key that is stored or buffered is not stored again."""
    with Writer(store) as writer:
        for key in (MANY[0], MANY[1], MANY[0]):
            writer.add(key, jobs.row_of(key))
        writer.add(MANY[1], ROWS[1] + 1)
        writer.commit()
        writer.add(MANY[0], ROWS[0] + 1)
    assert sizes(store) == [2]
    assert_holds(store, MANY[:2])
