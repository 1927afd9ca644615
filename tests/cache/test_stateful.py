"""Whatever happens to a store, in whatever order, it never tells a lie.

The model is what a stranger would find with plain h5py and hashlib: of the files
whose name is their SHA-256, the first by name that has the key.
"""

import hashlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache import disk
from cache.errors import MissingRowsError
from cache.maintenance import compact, gc
from cache.store import FeatureStore, Writer
from tests import cache_jobs as jobs

KEYS = [jobs.key_of(number) for number in range(10)]
keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)
provenances = st.sampled_from(['{"device":"cpu"}', '{"device":"cuda"}'])


@pytest.fixture(autouse=True, scope="module")
def no_power_cuts():
    """Nothing is forced to the device, which takes most of the time; see ``rows_at_risk``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fsync_dir"):
            patch.setattr(disk, name, lambda _: None)
        yield


class _Killed(BaseException):
    """The process dies here."""


def _flip_a_bit(file, data, place):
    changed = bytearray(data)
    if changed:
        changed[place % len(data)] ^= 1 << place % 8
    file.write_bytes(changed)


DAMAGE = {
    "flip a bit": _flip_a_bit,
    "truncate": lambda file, data, place: file.write_bytes(data[:place]),
    "rename": lambda file, *_: file.rename(file.with_name(f"part-{'5' * 64}.h5")),
    "delete": lambda file, *_: file.unlink(),
}


class StoreMachine(RuleBasedStateMachine):
    """Two long-lived stores of one recipe on one folder, and what befalls them."""

    @initialize()
    def begin(self):
        self.root = Path(tempfile.mkdtemp())
        self.stores = [FeatureStore(self.root, jobs.RECIPE) for _ in range(2)]
        self.parts = self.stores[0].path / "parts"
        self.stores[0].prepare()
        #: Every row that was ever given for a key: a stale store may still serve it.
        self.given = {key: [] for key in KEYS}
        #: Keys that were acknowledged and have a whole part since.
        self.safe = set()

    def teardown(self):
        shutil.rmtree(self.root, ignore_errors=True)

    def _found(self):
        """Key to row, as a stranger reads the folder."""
        found = {}
        for name in sorted(os.listdir(self.parts)):
            data = (self.parts / name).read_bytes()
            if name == f"part-{hashlib.sha256(data).hexdigest()}.h5":
                with h5py.File(io.BytesIO(data)) as file:
                    pairs = zip(file["key"][:], file["features"][:], strict=True)
                    for key, row in pairs:
                        found.setdefault(key.tobytes(), row)
        return found

    def _rows(self, wanted, shift):
        """Right rows; a shift stands for the rounding of another engine."""
        key, features = jobs.rows_of(wanted)
        features += np.float32(shift)
        for one, row in zip(wanted, features, strict=True):
            self.given[one].append(row)
        return key, features

    @rule(which=st.integers(0, 1), wanted=keys, shift=st.integers(0, 3), provenance=provenances)
    def commit(self, which, wanted, shift, provenance):
        self.stores[which].commit(*self._rows(wanted, shift), provenance=provenance)
        self.safe |= set(wanted)

    @rule(which=st.integers(0, 1), wanted=keys, dies=st.booleans())
    def write(self, which, wanted, dies):
        """A writer adds rows, and commits them or dies before that."""
        store = self.stores[which]
        new = [key for key in wanted if key not in store]
        writer = Writer(store)
        for key, row in zip(wanted, self._rows(wanted, 0)[1], strict=True):
            writer.add(key, row)
        if not dies:
            writer.commit()
            self.safe |= set(new)

    @rule(wanted=keys, call=st.sampled_from(["write", "fsync", "replace", "fsync_dir"]))
    def die_while_committing(self, wanted, call):
        """A third process is killed at a call of the seam; what it has written stays."""

        def die(*_):
            raise _Killed

        real = getattr(disk, call)
        setattr(disk, call, die)
        try:
            FeatureStore(self.root, jobs.RECIPE).commit(*self._rows(wanted, 0))
        except _Killed:
            pass
        finally:
            setattr(disk, call, real)

    @rule(which=st.integers(0, 1), maintenance=st.sampled_from([compact, gc, None]))
    def look_after(self, which, maintenance):
        """Compaction, collection of garbage, or a store that is opened anew."""
        if maintenance:
            maintenance(self.stores[which])
        else:
            self.stores[which] = FeatureStore(self.root, jobs.RECIPE)

    @rule(pick=st.integers(0, 9), kind=st.sampled_from(list(DAMAGE)), place=st.integers(0, 9999))
    def damage(self, pick, kind, place):
        """Do something to a part, if there is one; rows that only it had are not safe now."""
        files = sorted(self.parts.iterdir())
        if files:
            before = self._found().keys()
            file = files[pick % len(files)]
            DAMAGE[kind](file, file.read_bytes(), place)
            self.safe -= before - self._found().keys()

    @rule()
    def drop_a_foreign_file(self):
        (self.parts / "part-of-something.h5").write_bytes(b"not mine")

    @rule(which=st.integers(0, 1), wanted=keys)
    def look_up(self, which, wanted):
        """A store that knows an old state answers with rows that were given, or not at all."""
        try:
            rows = self.stores[which].read(wanted)
        except MissingRowsError:
            return
        for key, row in zip(wanted, rows, strict=True):
            assert any(np.array_equal(row, given) for given in self.given[key])

    @invariant()
    def nothing_acknowledged_goes_by_itself(self):
        assert self.safe <= self._found().keys()

    @invariant()
    def a_new_store_serves_exactly_what_is_whole(self):
        """Looked at in a copy, where setting damaged parts aside disturbs nobody."""
        found = self._found()
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(self.root, copy, dirs_exist_ok=True)
            store = FeatureStore(Path(copy), jobs.RECIPE)
            assert store.keys() == found.keys()
            rows = store.read(found)
        assert all(np.array_equal(a, b) for a, b in zip(rows, found.values(), strict=True))


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=20)
