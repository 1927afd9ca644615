"""A tiny job on a feature store, and a disk that fails or kills at any call of the seam.

Runs in child processes that are really killed; a test then looks at what is left. What a power
cut would take is judged from the notes of a job, not by luck. The model is the one POSIX promises
and no more: a file's bytes last once it was synced after its last write; a name lasts once its
folder was synced after the name was given; a removed name may be gone at once.
"""

import errno
import hashlib
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cache import disk
from cache.errors import CacheError
from cache.maintenance import compact, gc
from cache.part import Part
from cache.recipe import Recipe
from cache.store import FeatureStore, Writer

RECIPE = Recipe(
    backbone="tiny",
    cut="end",
    pooling="none",
    weights="0" * 64,
    preprocessing={"resize": 8, "mean": [0.5]},
)
WIDTH = 6
ROWS_PER_CHUNK = 4
CHUNKS = 3

READS = ("listdir", "read_all")
CHANGES = ("open_new", "write", "fsync", "close", "replace", "fsync_dir", "unlink", "make_dir")
#: Kind of fault: the error it raises, and the calls that can meet it.
ERRORS = MappingProxyType(
    {
        "ENOSPC": (errno.ENOSPC, CHANGES),
        "EROFS": (errno.EROFS, CHANGES),
        "EIO": (errno.EIO, CHANGES + READS),
    }
)
KILLS = ("kill before", "kill after")
SHORT = "short write"


def recipe_with(**changes: Any) -> Recipe:
    """The job's recipe, but for these fields."""
    return replace(RECIPE, **changes)


def key_of(number: object) -> bytes:
    """Key of an image that does not exist."""
    return hashlib.sha256(str(number).encode()).digest()


def row_of(key: bytes) -> np.ndarray:
    """The one right row of a key, so that every answer can be judged."""
    return np.frombuffer(key, np.uint8)[:WIDTH].astype(np.float32) / 7


def rows_of(keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Keys and right rows as :meth:`FeatureStore.commit` takes them."""
    stacked = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32)
    return stacked, np.stack([row_of(key) for key in keys])


def part_of(keys: list[bytes]) -> Part:
    """A part with these rows."""
    key, features = rows_of(keys)
    return Part(key=key, features=features, fingerprint=RECIPE.fingerprint)


def all_keys() -> list[bytes]:
    """Keys of the whole job."""
    return [key_of(number) for number in range(CHUNKS * ROWS_PER_CHUNK)]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, at which call of the seam, and whether it stays wrong."""

    call: int
    kind: str
    persistent: bool = False


class Seam:
    """Stands in front of every primitive of ``cache.disk``: notes it down, or fails.

    Nothing is forced to the device here: power loss is judged from the notes.
    """

    def __init__(self, log: Path, fault: Fault | None = None, without: str | None = None) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._fault = fault
        self._without = without
        self.calls = 0
        self._path_of: dict[int, Path] = {}

    def note(self, what: str, **details: Any) -> None:
        """Append a line by one plain write: it is there whatever happens next."""
        line = json.dumps({"what": what, **details}, default=str)
        os.write(self._log, line.encode() + b"\n")

    def call(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        """One call of a primitive."""
        if name == self._without:
            return None
        self.calls += 1
        kind = self._kind_for(name)
        if kind in ERRORS:
            self.note("fault", call=name)
            raise OSError(ERRORS[kind][0], os.strerror(ERRORS[kind][0]), str(args[0]))
        if kind == SHORT:
            self.note("fault", call=name)
            taken = 0 if self._fault and self._fault.persistent else max(1, len(args[1]) // 2)
            args = (args[0], args[1][:taken])
        if kind == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._perform(name, real, args)
        if kind == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def _kind_for(self, name: str) -> str | None:
        fault = self._fault
        due = fault and (self.calls == fault.call or (fault.persistent and self.calls > fault.call))
        if not fault or not due:
            return None
        if fault.kind in ERRORS and name not in ERRORS[fault.kind][1]:
            return None
        return None if fault.kind == SHORT and name != "write" else fault.kind

    def _perform(self, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if name == "make_dir" and not args[0].is_dir():
            self.note("make_dir", path=args[0])  # before: it syncs the parent itself
        result = None if name in ("fsync", "fsync_dir") else real(*args)
        if name == "open_new":
            self._path_of[result] = args[0]
        elif name in ("write", "fsync"):
            args = (self._path_of[args[0]],)
        if name in CHANGES and name not in ("make_dir", "close"):
            self.note(name, path=args[0], target=args[-1])
        return result


@contextmanager
def seam(log: Path, fault: Fault | None = None, without: str | None = None) -> Iterator[Seam]:
    """Put a :class:`Seam` in place for a while; ``without`` removes one protection."""
    stand_in = Seam(log, fault, without)
    real = {name: getattr(disk, name) for name in READS + CHANGES}
    for name, function in real.items():
        setattr(disk, name, lambda *a, _name=name, _real=function: stand_in.call(_name, _real, *a))
    try:
        yield stand_in
    finally:
        for name, function in real.items():
            setattr(disk, name, function)
        stand_in.note("calls", number=stand_in.calls)
        os.close(stand_in._log)


class NotedStore(FeatureStore):
    """A store that notes each commit down once it is acknowledged."""

    notes: Seam

    def commit(self, key: Any, features: Any, *, provenance: str = "{}") -> str:
        """Commit, then note."""
        name = super().commit(key, features, provenance=provenance)
        self.notes.note("ack", path=self.path / "parts" / name, keys=_hex(key))
        return name


def run(root: Path, log: Path, fault: Fault | None = None, without: str | None = None) -> None:
    """Three commits, then maintenance; what happens, an error too, is noted in ``log``."""
    with seam(log, fault, without) as notes:
        try:
            _fill(root, notes)
        except (OSError, CacheError) as error:
            notes.note("error", kind=type(error).__name__, text=str(error), errno=error.errno)
        else:
            notes.note("done")


def commit_below(limit: int, root: Path, answer: Path) -> None:
    """Commit where the system allows no file above ``limit`` bytes; the error is the answer."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = FeatureStore(root, RECIPE)
    store.prepare()
    try:
        store.commit(*rows_of(all_keys()))
    except CacheError as error:
        answer.write_text(str(error))


def _fill(root: Path, notes: Seam) -> None:
    store = NotedStore(root, RECIPE)
    store.notes = notes
    store.prepare()
    keys = all_keys()
    with Writer(store) as writer:
        for start in range(0, len(keys), ROWS_PER_CHUNK):
            missing = [k for k in keys[start : start + ROWS_PER_CHUNK] if k not in store]
            if missing:
                notes.note("computed", keys=[key.hex() for key in missing])
            for key in missing:
                writer.add(key, row_of(key))
            writer.commit()
    compact(store)
    gc(store)


def _hex(key: np.ndarray) -> list[str]:
    return [row.tobytes().hex() for row in key]


def notes_in(log: Path) -> list[dict[str, Any]]:
    """What was noted, in order."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def write_until(root: Path, log: Path, end: float) -> None:
    """Commit new rows, a few at a time; a key is in ``log`` once it is acknowledged."""
    store = FeatureStore(root, RECIPE)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    while time.time() < end:
        # Half of the keys are the same in every writer.
        names = [f"{log if i % 2 else ''}-{number + i}" for i in range(ROWS_PER_CHUNK)]
        keys = [key_of(name) for name in names]
        store.commit(*rows_of(keys))
        os.write(descriptor, b"".join(keys))
        number += ROWS_PER_CHUNK
        time.sleep(0.01)


def compact_until(root: Path, end: float) -> None:
    """Merge parts and clear away what is abandoned, without a pause."""
    store = FeatureStore(root, RECIPE)
    while time.time() < end:
        compact(store)
        gc(store)


def read_until(root: Path, logs: list[Path], end: float) -> None:
    """Read all that is acknowledged, again and again; fail when it is missing or wrong."""
    store = FeatureStore(root, RECIPE)
    while time.time() < end:
        keys = acknowledged(logs)
        store.scan()
        if keys and not np.array_equal(store.read(keys), rows_of(keys)[1]):
            raise AssertionError("a wrong row was served")


def acknowledged(logs: list[Path]) -> list[bytes]:
    """Keys in the logs of writers."""
    data = b"".join(log.read_bytes() for log in logs if log.exists())
    return [data[i : i + 32] for i in range(0, len(data), 32)]


class _Device:
    """What a disk holds for now, and what of it is sure to last."""

    def __init__(self, root: Path) -> None:
        self.names = {root}
        self.lasting_names = {root}
        self.lasting_bytes: set[Path] = set()

    def lasts(self, part: Path, root: Path) -> bool:
        """Whether a file would be whole, and be found, after a power cut now."""
        folders = {folder for folder in part.parents if root in folder.parents}
        return part in self.lasting_bytes and {part, *folders} <= self.lasting_names

    def apply(self, what: str, path: Path, target: Path) -> None:
        """Follow one call of the seam."""
        if what in ("make_dir", "open_new"):
            self.names.add(path)
        elif what == "write":
            self.lasting_bytes.discard(path)
        elif what == "fsync":
            self.lasting_bytes.add(path)
        elif what == "fsync_dir":
            self.lasting_names |= {name for name in self.names if name.parent == path}
        elif what == "unlink":
            self._forget(path)
        elif what == "replace":
            (self.lasting_bytes.discard, self.lasting_bytes.add)[path in self.lasting_bytes](target)
            self._forget(path)
            self.names.add(target)

    def _forget(self, path: Path) -> None:
        for known in (self.names, self.lasting_names, self.lasting_bytes):
            known.discard(path)


def rows_at_risk(notes: list[dict[str, Any]], root: Path) -> list[str]:
    """Each moment at which a power cut would take a row that counts as stored.

    Args:
        notes: Of one or more runs of a job on the same store, in order.
        root: Folder that was there before, for good.
    """
    device, held, risks = _Device(root), {}, []
    for note in notes:
        path = Path(note.get("path", root))
        target = Path(note.get("target", path))
        if note["what"] == "replace" and path not in device.lasting_bytes:
            risks.append(f"{target.name} got its name before its bytes were synced")
        device.apply(note["what"], path, target)
        if note["what"] == "ack":
            held[path] = set(note["keys"])
        if note["what"] in ("ack", "unlink"):
            safe = {k for part, keys in held.items() if device.lasts(part, root) for k in keys}
            lost = set().union(*held.values()) - safe
            if lost:
                risks.append(f"{len(lost)} acknowledged rows at {note['what']} of {path.name}")
        if note["what"] == "done":
            parts = {name for name in device.names if name.parent.name == "parts"}
            risks += [f"{p.name} counts as stored" for p in parts if not device.lasts(p, root)]
    return risks
