"""Whatever lies among the parts: only whole parts of this recipe are ever served."""

import io
import os

import h5py
import numpy as np
import pytest

from cache import disk
from cache.maintenance import quarantined
from cache.part import MAX_BYTES, name_of, to_bytes
from cache.store import FeatureStore
from tests import cache_jobs as jobs
from tests.cache.conftest import KEYS, StoreWarnings, assert_never_served

FEATURES = jobs.rows_of(KEYS)[1]
WHOLE = to_bytes(jobs.part_of(KEYS))


def _damage_each(folder, counts, versions, whole=WHOLE, keys=KEYS):
    for damaged in versions:
        assert_never_served(folder, name_of(whole), damaged, keys)
        counts["damaged files"] += 1


def test_one_flipped_bit_anywhere_is_seen(tmp_path, counts):
    """Each byte of the metadata and of some rows, one bit at a time, is covered."""
    rows = range(WHOLE.index(FEATURES.tobytes()), WHOLE.index(FEATURES.tobytes()) + FEATURES.nbytes)
    places = [i for i in range(len(WHOLE)) if i not in rows or i % 5 == 0]
    assert len(places) > 2000

    def flipped(place):
        data = bytearray(WHOLE)
        data[place] ^= 1 << place % 8
        return bytes(data)

    _damage_each(tmp_path, counts, map(flipped, places))


def test_a_cut_file_is_seen(tmp_path, counts):
    """A part cut at any 512 bytes, to nothing, by one byte, or grown by one."""
    cuts = [*range(0, len(WHOLE), 512), len(WHOLE) - 1]
    _damage_each(tmp_path, counts, [*(WHOLE[:cut] for cut in cuts), WHOLE + b"\0"])


def test_a_lost_page_is_seen(tmp_path, counts):
    """4 KiB of zeros, wherever the page lies; or nothing but zeros."""
    keys = [jobs.key_of(number) for number in range(600)]
    whole = to_bytes(jobs.part_of(keys))
    pages = range(0, 600 * jobs.WIDTH * 4, 4096)
    lost = [whole[:at] + bytes(4096) + whole[at + 4096 :] for at in pages]
    _damage_each(tmp_path, counts, [*lost, bytes(len(whole))], whole, keys)


def _huge(place):
    with place.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


#: What is no file of bounded size, and must not be opened for long, followed or read.
STRANGE = {
    "folder": lambda place: (place.mkdir(), (place / "mine").write_text("")),
    "FIFO": os.mkfifo,
    "endless device": lambda place: place.symlink_to("/dev/zero"),
    "link to a whole part": lambda place: place.symlink_to(_elsewhere(place)),
    "link to nothing": lambda place: place.symlink_to("nowhere"),
    "far too large": _huge,
}


def _elsewhere(place):
    file = place.parents[2] / "elsewhere"
    file.write_bytes(WHOLE)
    return file


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_plain_file_is_set_aside_and_its_rows_can_be_written(
    tmp_path, store, counts, kind
):
    """Also twice: none keeps the part that belongs there from its place."""
    _damage_each(tmp_path, counts, 2 * [STRANGE[kind]])
    assert store.commit(*jobs.rows_of(KEYS)) == name_of(WHOLE)
    assert FeatureStore(tmp_path, jobs.RECIPE).keys() == set(KEYS)


def test_a_file_with_another_name_is_ignored(store):
    """It is no part: never opened, named in a warning, left where it is.

    A temporary file may hold a whole part: without a name nobody has acknowledged it.
    """
    store.commit(*jobs.rows_of(KEYS[:4]))
    foreign = store.path / "parts" / "notes.txt"
    foreign.write_text("mine")
    (store.path / "parts" / disk.temporary_name()).write_bytes(WHOLE)
    with StoreWarnings() as warned:
        store.scan()
    assert warned == [f"{foreign}: not a part, ignored"]
    assert foreign.read_text() == "mine"
    assert len(store) == 4


def test_damage_after_the_scan_is_seen_at_the_read(store):
    """A part is checked each time its rows are read, and a whole copy of them is found."""
    first = store.commit(*jobs.rows_of(KEYS[:4]))
    store.commit(*jobs.rows_of(KEYS))
    names = sorted(store.parts)
    place = store.path / "parts" / min(names)
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    kept = KEYS if min(names) == first else KEYS[:4]
    assert np.array_equal(store.read(kept), jobs.rows_of(kept)[1])
    assert quarantined(store) == [min(names)]


def _with(build):
    """A part's image, then changed by a function of the open file."""
    buffer = io.BytesIO(WHOLE)
    with h5py.File(buffer, "r+") as file:
        build(file)
    return buffer.getvalue()


def _features(*given, **options):
    def build(file):
        del file["features"]
        file.create_dataset("features", *given, **options)

    return build


def _virtual(file):
    del file["features"]
    layout = h5py.VirtualLayout(FEATURES.shape, "<f4")
    layout[:] = h5py.VirtualSource("secret", "features", FEATURES.shape)
    file.create_virtual_dataset("features", layout)


def _group(file):
    del file["features"]
    file.create_group("features")


def _linked(link):
    def build(file):
        file.move("features", "elsewhere")
        file["features"] = link

    return build


def _attribute(name, value, of="/"):
    return lambda file: file[of].attrs.__setitem__(name, value)


#: Files that are named by their own SHA-256, so that only the schema can refuse them.
CRAFTED = {
    "external data": _features(FEATURES.shape, "<f4", external=[("secret", 0, 4096)]),
    "virtual": _virtual,
    "soft link": _linked(h5py.SoftLink("/elsewhere")),
    "external link": _linked(h5py.ExternalLink("other.h5", "features")),
    "gzip": _features(data=FEATURES, compression="gzip"),
    "checksummed": _features(data=FEATURES, fletcher32=True),
    "chunked": _features(data=FEATURES, chunks=(2, jobs.WIDTH)),
    "no bytes behind the shape": _features(FEATURES.shape, "<f4"),
    "group": _group,
    "extra member": lambda file: file.__setitem__("label", [0]),
    "extra attribute": _attribute("patient", "a name"),
    "attribute on a dataset": _attribute("patient", "a name", of="features"),
    "float64": _features(data=FEATURES.astype("<f8")),
    "big-endian": _features(data=FEATURES.astype(">f4")),
    "strings": _features(data=["x"] * len(FEATURES)),
    "one axis": _features(data=FEATURES[:, 0]),
    "no value": _features(data=h5py.Empty("<f4")),
    "too few rows": _features(data=FEATURES[:-1]),
    "NaN": lambda file: file["features"].__setitem__((2, 3), np.nan),
    "infinite": lambda file: file["features"].__setitem__((0, 0), np.inf),
    "key twice": lambda file: file["key"].__setitem__(3, jobs.rows_of(KEYS)[0][2]),
    "n wrong": _attribute("n", len(FEATURES) + 1),
    "n infinite": _attribute("n", np.inf),
    "n missing": lambda file: file.attrs.__delitem__("n"),
    "newer format": _attribute("format", 2),
    "format no number": _attribute("format", "1"),
    "another recipe": _attribute("fingerprint", "0" * 64),
}


def _number(value):
    return np.uint64(value).tobytes()


_PLACE = WHOLE.index(FEATURES.tobytes())
#: What the file says of its numbers, and the lie that takes its place.
LIES = {
    "a million rows": (_number(len(FEATURES)) + _number(jobs.WIDTH), _number(10**6) + _number(6)),
    "wide rows": (_number(jobs.WIDTH), _number(10**6)),
    "far away": (_number(_PLACE), _number(_PLACE + 2**62)),
    "farther than any number": (_number(_PLACE), _number(_PLACE + 2**63)),
    "at the end": (_number(_PLACE), _number(len(WHOLE) - 8)),
}


@pytest.mark.parametrize("trick", [*CRAFTED, *LIES])
def test_a_crafted_file_is_set_aside(tmp_path, monkeypatch, counts, trick):
    """No link, foreign data, filter or odd shape is followed, even under a right name.

    For a shape that the bytes cannot hold no memory is asked.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(4096))  # what a part must not be able to show
    data = _with(CRAFTED[trick]) if trick in CRAFTED else WHOLE.replace(*LIES[trick])
    assert data != WHOLE
    _damage_each(tmp_path, counts, [data], data)
