"""Every call to the disk fails, or kills the process, once: nothing acknowledged is lost."""

import errno
import multiprocessing
import os
import re
import signal
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from cache import part
from cache.errors import BadFeaturesError, MissingRowsError
from cache.part import name_of, to_bytes
from cache.store import FeatureStore
from tests import cache_jobs as jobs
from tests.cache.conftest import KEYS, assert_never_served
from tests.cache_jobs import ERRORS, KILLS, SHORT, Fault, rows_at_risk


@pytest.fixture(scope="module")
def children():
    """Starts child processes in milliseconds: what they import is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cache", "tests.cache_jobs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


SWEEPS = [
    *((kind, False) for kind in KILLS),
    *((kind, persistent) for kind in (*ERRORS, SHORT) for persistent in (False, True)),
]


@pytest.mark.parametrize(("kind", "persistent"), SWEEPS)
def test_whatever_call_goes_wrong_no_acknowledged_row_is_lost(
    tmp_path, children, counts, whole, kind, persistent
):
    """A job whose n-th call fails or kills it leaves right rows only, and can be run again."""
    met = 0
    for root, notes, exit_code in _faulted_jobs(tmp_path, children, kind, persistent=persistent):
        if kind in KILLS or any(note["what"] == "fault" for note in notes):
            met += 1
            assert exit_code == (-signal.SIGKILL if kind in KILLS else 0), root
            if kind not in KILLS:
                _check_error(notes, kind, persistent=persistent)
                assert persistent or not list(root.glob("*/.tmp-*"))
            _check_rows(root, notes, counts)
            _check_resumed(root, whole)
    counts["faults"] += met
    counts["kills"] += met * (kind in KILLS)
    assert met >= (5 if kind == SHORT else 40)  # a write for each commit, the merge, the probe


def _faulted_jobs(folder, children, kind, *, persistent):
    """Jobs whose call 1, 2, ... goes wrong, until one ends before its turn comes."""

    def start(call):
        root = folder / str(call)
        root.mkdir()
        fault = Fault(call=call, kind=kind, persistent=persistent)
        child = children.Process(target=jobs.run, args=(root, root / "log", fault))
        child.start()
        return root, child

    following = start(1)
    for call in range(1, 1000):
        (root, child), following = following, start(call + 1)  # which runs while this is judged
        child.join()
        notes = jobs.notes_in(root / "log")
        if notes and notes[-1]["what"] == "calls" and notes[-1]["number"] < call:
            following[1].join()
            return
        yield root, notes, child.exitcode
    raise AssertionError("the job never ends")


def _check_error(notes, kind, *, persistent):
    """One error, which names file, cause and room; none where the fault is harmless."""
    errors = [note for note in notes if note["what"] == "error"]
    changes = any(n["call"] in jobs.CHANGES for n in notes if n["what"] == "fault")
    if kind == SHORT and not persistent:
        assert errors == []
    elif changes:
        number = ERRORS[kind][0] if kind in ERRORS else errno.EIO
        (error,) = errors
        assert (error["kind"], error["errno"]) == ("WriteFailedError", number)
        message = rf"cannot write /.*tiny-.*\(errno {number}\); needed [\d,]+ bytes, [\d,]+ free"
        assert re.match(message, error["text"]), error["text"]
    else:
        assert all(re.search(r"tiny-|parts", error["text"]) for error in errors)


def _check_rows(root, notes, counts):
    """I1 to I5: right rows, all acknowledged ones, little to do again, only whole parts."""
    store = FeatureStore(root, jobs.RECIPE)
    keys = sorted(store.keys())
    acknowledged = {key for note in notes if note["what"] == "ack" for key in note["keys"]}
    computed = {key for note in notes if note["what"] == "computed" for key in note["keys"]}
    wrong = sum(
        (row != jobs.row_of(k)).any() for k, row in zip(keys, store.read(keys), strict=True)
    )
    lost = acknowledged - {key.hex() for key in keys}
    counts["wrong rows"] += wrong
    counts["lost rows"] += len(lost)
    assert not wrong
    assert not lost
    assert len(computed) - len(keys) <= jobs.ROWS_PER_CHUNK
    for file in (store.path / "parts").glob("*"):
        assert file.name == name_of(file.read_bytes())
    assert not store.damaged


def _check_resumed(root, whole):
    """Run again, the job ends with the very bytes of a job that met no fault."""
    jobs.run(root, root / "log")
    store = FeatureStore(root, jobs.RECIPE)
    assert os.listdir(store.path) == ["parts"]
    assert os.listdir(store.path / "parts") == [whole]
    assert store.keys() == set(jobs.all_keys())  # which also compares the name with the bytes
    assert rows_at_risk(jobs.notes_in(root / "log"), root) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Name, and so content, of the one part that a job without a fault leaves."""
    root = tmp_path_factory.mktemp("whole")
    jobs.run(root, root / "log")
    (name,) = os.listdir(root / jobs.RECIPE.folder / "parts")
    return name


def test_a_real_limit_on_the_size_of_files_is_a_clean_error(tmp_path, children):
    """The system itself cuts a write short and then refuses it: no part, no temporary file."""
    answer = tmp_path / "answer"
    child = children.Process(target=jobs.commit_below, args=(4096, tmp_path, answer))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert f"File too large (errno {errno.EFBIG}); needed" in answer.read_text()
    store = FeatureStore(tmp_path, jobs.RECIPE)
    assert os.listdir(store.path) == ["parts"]
    assert not os.listdir(store.path / "parts")


def _check_power_loss(folder, without=None):
    jobs.run(folder, folder / "log", without=without)
    notes = jobs.notes_in(folder / "log")
    assert any(note["what"] == "done" for note in notes)
    risks = rows_at_risk(notes, folder)
    assert not risks, "; ".join(risks)


def test_a_power_cut_takes_no_acknowledged_row(tmp_path):
    """Bytes are synced before they get their name, and the name before it is acknowledged."""
    _check_power_loss(tmp_path)


def test_a_row_that_is_not_finite_is_never_stored(tmp_path):
    """NaN and infinities are refused with their number, and no file appears."""
    store = FeatureStore(tmp_path, jobs.RECIPE)
    store.prepare()
    for bad in (np.nan, np.inf, -np.inf):
        key, features = jobs.rows_of(KEYS)
        features[3, 1] = bad
        with pytest.raises(BadFeaturesError, match="1 of 12 rows are not finite"):
            store.commit(key, features)
    assert not list((store.path / "parts").iterdir())


def _any_name(data):
    class Anything(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __ne__(self, other):
            return False

    return Anything(name_of(data))


def _without_sha(folder, monkeypatch):
    """A part with one flipped bit would be served."""
    monkeypatch.setattr(part, "name_of", _any_name)
    good = jobs.part_of(KEYS)
    data = bytearray(to_bytes(good))
    name = name_of(bytes(data))
    data[bytes(data).index(good.features.tobytes()) + 3] ^= 1 << 2
    assert_never_served(folder, name, bytes(data), KEYS)


def _without_finite(folder, monkeypatch):
    whole = part.check_rows
    monkeypatch.setattr(part, "check_rows", lambda key, rows: whole(key, np.nan_to_num(rows)))
    test_a_row_that_is_not_finite_is_never_stored(folder)


#: A protection taken away, and the words in which its check must then fail.
PLANTED = {
    "no fsync of a file": (
        lambda folder, _: _check_power_loss(folder, without="fsync"),
        "got its name before its bytes were synced",
    ),
    "no fsync of the folder": (
        lambda folder, _: _check_power_loss(folder, without="fsync_dir"),
        "acknowledged rows at ack of part-",
    ),
    "no SHA-256 against the name": (_without_sha, "12 rows of a damaged part are served"),
    "no check of finiteness": (_without_finite, "DID NOT RAISE"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_the_checks_catch_a_planted_bug(tmp_path, monkeypatch, counts, bug):
    """With one protection taken away, the check of its promise fails."""
    check, words = PLANTED[bug]
    counts["bugs planted"] += 1
    with pytest.raises((AssertionError, pytest.fail.Exception), match=words):
        check(tmp_path, monkeypatch)
    counts["bugs caught"] += 1


SECONDS = 2.5


def test_processes_that_write_compact_and_read_at_once_do_not_disturb_each_other(
    tmp_path, children
):
    """Two writers, a compactor and a reader: no wrong row, and no acknowledged row lost."""
    store = FeatureStore(tmp_path, jobs.RECIPE)
    store.prepare()
    logs = [tmp_path / f"log-{writer}" for writer in range(2)]
    end = time.time() + SECONDS
    workers = [
        *(children.Process(target=jobs.write_until, args=(tmp_path, log, end)) for log in logs),
        children.Process(target=jobs.compact_until, args=(tmp_path, end)),
        children.Process(target=jobs.read_until, args=(tmp_path, logs, end)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    keys = jobs.acknowledged(logs)
    assert len(keys) > 100
    assert np.array_equal(store.read(keys), jobs.rows_of(keys)[1])
    with pytest.raises(MissingRowsError, match="1 of 2 images"):
        store.read([keys[0], jobs.key_of(-1)])
