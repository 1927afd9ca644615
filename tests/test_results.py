"""Results on disk: those of one run, whole, or refused with the command that mends them."""

import errno
import hashlib
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cache import disk
from cache.errors import CacheError
from pipeline.compare import CompareOptions, compare
from pipeline.errors import MissingResultsError, ModelError, ResultsError
from pipeline.heads.save import load_head
from pipeline.results import _with_checksum, add_files, read_set, write_file, write_set
from pipeline.study_file import load_study
from tests.cache_jobs import CHANGES, ERRORS, KILLS, READS, SHORT
from tests.tiny import stored_tiny_study

#: Linux gives no process a number above 2**22.
DEAD = 2**22 + 1


class Killed(BaseException):
    """Stands for SIGKILL: from then on nothing reaches the disk any more."""


class Disk:
    """Stands in front of ``cache.disk``; its n-th call, and maybe all after it, goes wrong."""

    def __init__(self, call: int, kind: str = "", *, persistent: bool = False) -> None:
        self.call, self.kind, self.persistent = call, kind, persistent
        self.calls: list[str] = []
        self.dead = False

    def perform(self, name, real, *args):
        """One call."""
        if self.dead:
            raise Killed
        self.calls.append(name)
        number = len(self.calls)
        due = number == self.call or (self.persistent and number > self.call)
        if due and self.kind in ERRORS and name in ERRORS[self.kind][1]:
            number = ERRORS[self.kind][0]
            raise OSError(number, os.strerror(number), str(args[0]))
        if due and self.kind == SHORT and name == "write":
            args = (args[0], args[1][: 0 if self.persistent else max(1, len(args[1]) // 2)])
        if due and self.kind in KILLS:
            self.dead = True
            if self.kind == "kill after":
                real(*args)
            raise Killed
        return None if name in ("fsync", "fsync_dir") else real(*args)


@contextmanager
def faulty(stand_in: Disk):
    """Put a disk in place; what its process leaves is of a dead one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*READS, *CHANGES, "remove_dir"):
            real = getattr(disk, name)
            patch.setattr(disk, name, lambda *a, _n=name, _r=real: stand_in.perform(_n, _r, *a))
        patch.setattr(disk.os, "getpid", lambda: DEAD)
        yield


def _heads(folder: Path, run: bytes) -> None:
    """As ``heads`` does it: a set for each head, then the record, then tables and figures."""
    disk.prepare(folder)
    kept = {}
    for name in ("linear", "mlp") if run == b"old" else ("linear",):
        place = f"heads/net/{name}"
        files = {"model.safetensors": run * 9, "fit.safetensors": run}
        written = write_set(folder / place / "model.json", {"head": name}, files)
        kept |= {f"{place}/{file}": digest for file, digest in written.items()}
    owned = ("heads*.csv", "figures/heads-*", "heads/*/*/*")
    record = {"run": run.decode()}
    files = {"probabilities.h5": run * 5}
    write_set(folder / "heads.json", record, files, unchanged=kept, owned=owned)
    figures = ("roc", "gone") if run == b"old" else ("roc",)
    more = dict.fromkeys(("heads.csv", *(f"figures/heads-{name}.png" for name in figures)), run)
    add_files(folder / "heads.json", record, more, "heads")


def _finetune(folder: Path, run: bytes) -> None:
    disk.prepare(folder)
    model, checkpoint = folder / "finetune" / "lp-net-0", b"checkpoint"
    disk.write_all_atomic({model / "checkpoints" / "state": checkpoint})
    files = {"model.safetensors": run * 9, "probabilities.safetensors": run}
    write_set(model / "model.json", {"run": run.decode()}, files, owned=("checkpoints/*",))
    write_set(folder / "finetune.json", {"run": run.decode()}, {"finetune.h5": run * 5})


def _stage(stage: str, files: list[str], added: list[str], owned: list[str]):
    """One that writes a record with files, in its first run one more, and then adds some."""

    def run_stage(folder: Path, run: bytes) -> None:
        disk.prepare(folder)
        record = {"run": run.decode()}
        names = files if run == b"old" else files[:1]
        write_set(folder / f"{stage}.json", record, dict.fromkeys(names, run * 5), owned=owned)
        if added:
            add_files(folder / f"{stage}.json", record, dict.fromkeys(added, run), stage)

    return run_stage


def _one_file(folder: Path, run: bytes) -> None:
    """As ``report``, ``cache export`` and ``predict --csv`` do it."""
    write_file(folder / "report.html", run * 99)


STAGES = {
    "heads": _heads,
    "shift": _stage("shift", ["shift.h5"], ["shift.md", "shift_errors.csv"], ["shift*.csv"]),
    "finetune": _finetune,
    "audit": _stage("audit", ["leave_out.txt", "near_duplicates.png"], [], ["near_duplicates.png"]),
    "report": _one_file,
}
#: The errors go wrong once, and for good.
SWEEPS = [
    *((kind, False) for kind in KILLS),
    *((kind, False) for kind in (*ERRORS, SHORT)),
    *((kind, True) for kind in ("EIO", SHORT)),
]


def believed(folder: Path, stage: str) -> set[bytes]:
    """Runs whose files a reader takes; empty where it refuses them and says what to do."""
    if stage == "report":
        return set(re.findall(b"old|new", (folder / "report.html").read_bytes()))
    found = set()
    for file in folder.rglob("*.json"):
        try:
            one = read_set(file, stage)
            one.check()
        except ResultsError as refused:
            found |= set() if f"headrace {stage} STUDY" in str(refused) else {b"no advice", b""}
            continue
        if file.name != "model.json":
            data = b"".join(one.read(name) for name in one.digests if "model.json" not in name)
            found |= {one.record["run"].encode(), *re.findall(b"old|new", data)}
    return found


def left(folder: Path) -> set[str]:
    """Names of all files."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_call_goes_wrong_no_two_runs_are_taken_for_one(
    tmp_path, monkeypatch, counts, stage
):
    """A second run, faulted at each call: its results, the first's, or none; run again, its own."""
    monkeypatch.setattr(disk, "fsync", lambda _: None)
    monkeypatch.setattr(disk, "fsync_dir", lambda _: None)
    job = STAGES[stage]
    job(tmp_path / "old", b"old")
    job(tmp_path / "new", b"new")
    whole = left(tmp_path / "new")
    names = _run(job, copy_of(tmp_path), Disk(0))
    for kind, persistent in SWEEPS:
        for call in [n for n, name in enumerate(names, 1) if name in _meet(kind)]:
            folder = copy_of(tmp_path)
            error = None
            try:
                _run(job, folder, Disk(call, kind, persistent=persistent))
            except (Killed, CacheError, OSError, ResultsError) as cause:
                error = cause
            counts["result faults"] += 1
            counts["result kills"] += kind in KILLS
            runs = believed(folder, stage)
            counts["mixed results"] += len(runs) > 1
            assert len(runs) <= 1, (kind, call)
            assert error or runs == {b"new"}
            assert isinstance(error, Killed) == (kind in KILLS)
            assert persistent or kind in KILLS or not list(folder.rglob(".tmp-*"))
            job(folder, b"new")
            assert believed(folder, stage) == {b"new"}
            assert left(folder) == whole


@pytest.mark.slow
def test_the_real_stage_killed_at_each_file_leaves_one_run_or_none(tmp_path, monkeypatch, counts):
    """``heads`` of two heads, then of one with other settings, dies as each file gets its name."""
    study = load_study(stored_tiny_study(tmp_path, monkeypatch, source=48, target=16))
    monkeypatch.setattr(disk, "fsync", lambda _: None)
    monkeypatch.setattr(disk, "fsync_dir", lambda _: None)
    quick = CompareOptions(repeats=0, draws=20)

    def job(_: Path, run: bytes) -> None:
        heads, how = (("linear", "prior"), "none") if run == b"old" else (("linear",), "l2")
        compare(study, replace(quick, heads=heads, baseline="linear", preprocessing=how))

    job(tmp_path, b"new")
    shutil.rmtree(study.results)
    job(tmp_path, b"old")
    shutil.copytree(study.results, tmp_path / "old")
    names = _run(job, tmp_path, Disk(0))
    for call in [n for n, name in enumerate(names, 1) if name in ("replace", "unlink")]:
        shutil.rmtree(study.results)
        shutil.copytree(tmp_path / "old", study.results)
        with pytest.raises(Killed):
            _run(job, tmp_path, Disk(call, "kill before"))
        counts["result faults"] += 1
        counts["result kills"] += 1
        try:
            found = read_set(study.results / "heads.json", "heads")
            found.check()
        except ResultsError:
            found = None
        for head in ("linear", "prior"):
            folder = study.results / "heads" / "tiny" / head
            named = found and f"heads/tiny/{head}/model.json" in found.digests
            try:
                load_head(folder)
                assert named or found is None
            except (ResultsError, ModelError):
                assert not named
    job(tmp_path, b"new")
    assert not (study.results / "heads" / "tiny" / "prior").exists()
    read_set(study.results / "heads.json", "heads").check()


def copy_of(folder: Path) -> Path:
    """The results of the first run, to be replaced by a second."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    return Path(shutil.copytree(folder / "old", folder / "copy"))


def _run(job, folder: Path, stand_in: Disk) -> list[str]:
    with faulty(stand_in):
        job(folder, b"new")
    return stand_in.calls


def _meet(kind: str) -> tuple[str, ...]:
    """Calls that can meet a kind of fault."""
    if kind in ERRORS:
        return ERRORS[kind][1]
    return ("write",) if kind == SHORT else (*CHANGES, "remove_dir")


def test_one_altered_byte_in_any_file_is_found(tmp_path, counts):
    """Each byte of each file of a set, its record among them."""
    record = {"values": [1, 0.5, "ü"], "none": None}
    write_set(tmp_path / "heads.json", record, {"a.csv": b"1,2\n", "figures/b.png": b"PNG"})
    assert read_set(tmp_path / "heads.json", "heads").record == record
    for name in left(tmp_path):
        whole = (tmp_path / name).read_bytes()
        for place in range(len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << place % 8
            (tmp_path / name).write_bytes(data)
            with pytest.raises(ResultsError, match=rf"{name} is not .*headrace heads STUDY again"):
                read_set(tmp_path / "heads.json", "heads").check()
            counts["altered bytes"] += 1
        (tmp_path / name).write_bytes(whole)
    read_set(tmp_path / "heads.json", "heads").check()


STRANGE = {
    "nothing": lambda file: None,
    "a folder": lambda file: file.mkdir(),
    "a FIFO": os.mkfifo,
    "an endless device": lambda file: file.symlink_to("/dev/zero"),
    "a link to the same bytes": lambda file: file.symlink_to(_same(file)),
}


def _same(file):
    (file.parent / "same").write_bytes(b"1")
    return file.parent / "same"


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["heads.json", "a.csv"])
def test_what_is_no_plain_file_is_refused_and_never_waited_for(tmp_path, name, kind):
    """In the place of a record, or of a file that it names."""
    write_set(tmp_path / "heads.json", {}, {"a.csv": b"1"})
    (tmp_path / name).unlink()
    STRANGE[kind](tmp_path / name)
    missing = (kind, name) == ("nothing", "heads.json")
    with pytest.raises(MissingResultsError if missing else ResultsError, match=name):
        read_set(tmp_path / "heads.json", "heads").check()


BREAKING = [f'{{\n "a": {v}\n}}' for v in ("[" * 200_000 + "]" * 200_000, "NaN", '1,\n "files": 3')]


@pytest.mark.parametrize(
    "data",
    [*map(_with_checksum, BREAKING), b"[" * 200_000, b'{"a":' * 200_000, b"{}", b"", b"\0"],
    ids=range(8),
)
def test_a_record_that_was_made_to_break_its_reader_is_refused(tmp_path, data):
    """Even where the digest fits; nothing is parsed before it was compared."""
    (tmp_path / "shift.json").write_bytes(data)
    with pytest.raises(ResultsError, match="run headrace shift STUDY again"):
        read_set(tmp_path / "shift.json", "shift")


def test_files_are_only_added_to_the_record_of_the_same_run(tmp_path):
    """Another process may have replaced it in between."""
    write_set(tmp_path / "heads.json", {"run": 1})
    write_set(tmp_path / "heads.json", {"run": 2})
    with pytest.raises(ResultsError, match="another run has replaced"):
        add_files(tmp_path / "heads.json", {"run": 1}, {"heads.csv": b"1"}, "heads")
    assert left(tmp_path) == {"heads.json"}


def test_only_what_dead_processes_left_is_cleared(tmp_path, monkeypatch):
    """At any depth; a file that a living process writes stays.

    So does one that cannot be removed: cleaning is a courtesy, and stops no stage.
    """
    (tmp_path / "heads" / "net").mkdir(parents=True)
    alive, stuck = disk.temporary_name(), disk.temporary_name()
    dead, stuck = (name.replace(f"-{os.getpid()}-", f"-{DEAD}-") for name in (alive, stuck))
    for name in (alive, dead, f"heads/net/{alive}", f"heads/net/{dead}"):
        (tmp_path / name).touch()
    real = disk.unlink

    def unlink(path):
        if path.name == stuck:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        real(path)

    monkeypatch.setattr(disk, "unlink", unlink)
    disk.prepare(tmp_path)
    stay = {alive, f"heads/net/{alive}"}
    assert left(tmp_path) == stay
    (tmp_path / stuck).touch()
    disk.prepare(tmp_path)
    write_file(tmp_path / "out.csv", b"x")
    assert left(tmp_path) == stay | {stuck, "out.csv", "out.csv.sha256"}


def test_results_are_for_their_owner_alone_and_can_be_checked_anywhere(tmp_path):
    """Record, files, and the folders in between; the SHA-256 of a file by itself is beside it."""
    before = os.umask(0o022)
    try:
        write_set(tmp_path / "results" / "a.json", {}, {"figures/b.png": b""})
        write_file(tmp_path / "out" / "c.h5", b"data")
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {0o600}
    assert {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_dir()} == {0o700}
    line = (tmp_path / "out" / "c.h5.sha256").read_text()
    assert line == f"{hashlib.sha256(b'data').hexdigest()}  c.h5\n"
