"""Remember the content key of a file as long as nothing about the file changed.

A disposable index, so that a second run reads no image. It knows files only by a
hash of their path, because names of medical images can name people. It is believed
where size, times and inode agree *and* the file was last touched before the hashing
began: a file changed within the clock tick in which it was hashed would look the
same afterwards (git calls such entries racy). Racy entries are never written.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from cache import disk
from cache.errors import WriteFailedError
from pipeline.data.items import Item

_FORMAT = 2


class KeyIndex:
    """Keys of the files of one domain.

    Args:
        store_root: Folder of the feature stores; the index lies in ``index/`` there.
        domain: Root folder of the domain's files.
        rehash: Believe nothing that is remembered.
    """

    def __init__(self, store_root: Path, domain: Path, *, rehash: bool = False) -> None:
        self._folder = store_root / "index"
        self._file = self._folder / f"{_short_hash(str(domain.resolve()))}.json"
        self._known: dict[str, Any] = {} if rehash else self._load()
        self._new: dict[str, list[int | str]] = {}

    def key(self, item: Item) -> bytes | None:
        """The remembered key of a file that has not changed since, or None."""
        entry = self._known.get(_short_hash(item.path))
        if entry is None or entry[:4] != _facts(item):
            return None
        return bytes.fromhex(entry[4])

    def learn(self, item: Item, key: bytes) -> None:
        """Take note of a key that was just computed from the file's content."""
        self._new[_short_hash(item.path)] = [*_facts(item), key.hex()]

    def stamp(self) -> int | None:
        """Now, by the clock of the disk; ask before the hashing begins.

        Returns:
            Nanoseconds, or None where nothing can be written: then nothing is kept.
        """
        probe = self._folder / disk.temporary_name()
        try:
            disk.make_dir(self._folder)
            disk.close(disk.open_new(probe))
            stamp = probe.stat().st_mtime_ns
            disk.unlink(probe)
        except OSError:
            return None
        return stamp

    def save(self, stamp: int | None) -> None:
        """Write what was learned, without the racy entries; a failure costs only time."""
        if stamp is None or not self._new:
            return
        safe = {k: v for k, v in self._new.items() if max(int(v[1]), int(v[2])) < stamp}
        entries = self._known | safe
        text = json.dumps(entries, separators=(",", ":"), sort_keys=True)
        head = f'{{"format":{_FORMAT},"sha256":"{_sha256(text)}","entries":'
        data = f"{head}{text}}}"
        try:
            disk.publish(self._file, data.encode())
        except WriteFailedError:
            return

    def _load(self) -> dict[str, Any]:
        """What was saved, if every byte of it is as it was written."""
        try:
            index = json.loads(disk.read_all(self._file))
            entries: dict[str, Any] = index["entries"]
            text = json.dumps(entries, separators=(",", ":"), sort_keys=True)
            whole = index["format"] == _FORMAT and index["sha256"] == _sha256(text)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        return entries if whole else {}


def _facts(item: Item) -> list[int]:
    """Ctime stands in for an editor that sets the old mtime again."""
    stat = item.stat
    return [stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode]


def _short_hash(path: str) -> str:
    data = path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
