"""What is remembered of images between runs: keys of files, facts of contents, near copies.

All of it lies in ``index/`` below the feature stores and is disposable: what is damaged,
or of another version, counts as not there, and a disk that is full costs only time.
"""

import hashlib
import io
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.errors import WriteFailedError
from pipeline.data.facts import FACTS
from pipeline.data.items import Each, Item, RememberedFile, in_threads
from pipeline.data.near_copies import NearPair, find_near_copies
from pipeline.data.sources import read_image
from pipeline.errors import ImageError
from pipeline.progress import Progress

_LOG = logging.getLogger(__name__)
#: In the names of files and folders: whoever writes otherwise writes into another one.
_KEYS_VERSION, _FACTS_VERSION, _NEAR_VERSION = 4, 3, 1
_DIGEST_BYTES = 32
#: Measured images that a killed run may lose.
_SAVE_EVERY_S = 30.0


class KeyIndex:
    """What is known of the files of one domain, so that a second run reads no image.

    It knows files only by a hash of their path, because names of medical images can name people.
    It is believed where size, times and inode agree *and* the file was last touched before the
    hashing began: a file changed within the clock tick in which it was hashed would look the same
    afterwards (git calls such entries racy). Racy entries are never written.

    Args:
        store_root: Folder of the feature stores.
        domain: Root folder of the domain's files.
        salt: By which patients of headers are hashed; another salt has another index.
        rehash: Believe nothing that is remembered.
    """

    def __init__(
        self, store_root: Path, domain: Path, *, salt: bytes | None = None, rehash: bool = False
    ) -> None:
        self._folder, self._salt = store_root / "index", salt
        name = str(domain.resolve()) + (f"|{hashlib.sha256(salt).hexdigest()}" if salt else "")
        self._file = self._folder / f"{_short_hash(name)}-v{_KEYS_VERSION}.json"
        self._entries: dict[str, Any] = {} if rehash else self._load()

    def contents(
        self, items: Sequence[Item], each: Each, progress: Progress
    ) -> list[RememberedFile | str]:
        """What is in each file, remembered or read now; of one that cannot be used the reason."""
        contents: dict[int, RememberedFile | str] = {}
        for row, item in enumerate(items):
            if remembered := self._remembered(item):
                contents[row] = remembered
        missing = [row for row in range(len(items)) if row not in contents]
        progress.expect(len(missing))
        stamp = self._stamp() if missing else None
        read = each(partial(_content_or_reason, salt=self._salt), [items[row] for row in missing])
        new: dict[str, list[Any]] = {}
        for row, content in zip(missing, read, strict=True):
            contents[row] = content
            if isinstance(content, RememberedFile):
                new[_short_hash(items[row].path)] = _entry(items[row], content)
            progress.advance()
        if stamp is not None and new:
            self._save(new, stamp)
        return [contents[row] for row in range(len(items))]

    def _remembered(self, item: Item) -> RememberedFile | None:
        """What is remembered of a file that has not changed since."""
        entry = self._entries.get(_short_hash(item.path))
        if entry is None or entry[:4] != _stat_values(item):
            return None
        digest, *more = entry[4:]
        return RememberedFile(bytes.fromhex(digest), *more)

    def _stamp(self) -> int | None:
        """Now, by the clock of the disk, in ns; None where nothing can be written."""
        file = self._folder / disk.temporary_name()
        with suppress(OSError):
            disk.make_dir(self._folder)
            disk.close(disk.open_new(file))
            stamp = file.stat().st_mtime_ns
            disk.unlink(file)
            return stamp
        return None

    def _save(self, new: dict[str, list[Any]], stamp: int) -> None:
        """Write what was learned since the stamp, without the racy entries."""
        safe = {k: v for k, v in new.items() if max(v[1:3]) < stamp}
        # Read again: another run may have saved its own meanwhile.
        others = {k: v for k, v in self._load().items() if k not in new}
        with suppress(WriteFailedError):
            _write_checked(self._file, json.dumps(self._entries | others | safe).encode())

    def _load(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return dict(json.loads(_read_checked(self._file)))
        return {}


class FactsIndex:
    """Facts of contents, measured once for each.

    Files of one folder, each written once under a name of its own, so that two runs at a time lose
    nothing: records of dtype ``FACTS``, as of ``np.save``, then the SHA-256 of all before it.
    """

    def __init__(self, store_root: Path) -> None:
        self._folder = store_root / "index" / f"facts-v{_FACTS_VERSION}"
        files = sorted(self._folder.glob("*.npy"))
        self._records = np.concatenate([np.empty(0, FACTS), *map(_read_facts, files)])
        self._row_of = {bytes(key): row for row, key in enumerate(self._records["key"])}

    def __contains__(self, key: bytes) -> bool:
        return key in self._row_of

    def facts(self, keys: Iterable[bytes]) -> NDArray[Any]:
        """Records in the order asked for; a key may repeat."""
        return np.asarray(self._records[[self._row_of[key] for key in keys]])

    def add(self, records: Sequence[NDArray[Any]]) -> None:
        """Take note of facts, and write them beside what is known."""
        new = [record for record in records if bytes(record["key"]) not in self._row_of]
        if not new:
            return
        self._row_of |= {bytes(r["key"]): len(self._records) + row for row, r in enumerate(new)}
        self._records = np.concatenate([self._records, np.array(new, FACTS)])
        stream = io.BytesIO()
        np.save(stream, self._records[-len(new) :], allow_pickle=False)
        name = hashlib.sha256(stream.getvalue()).hexdigest()[:24]
        try:
            _write_checked(self._folder / f"{name}.npy", stream.getvalue())
        except WriteFailedError as cause:
            _LOG.warning("the facts of the images cannot be kept: %s", cause)

    def measure(
        self, keys: Sequence[bytes], items: Sequence[Item], progress: Progress
    ) -> dict[bytes, str]:
        """Measure what is not known yet, of ``n`` keys and items; what is done is kept meanwhile.

        Returns:
            Reason by key for the images that cannot be measured.
        """
        missing = {k: i for k, i in zip(keys, items, strict=True) if k not in self}
        progress.expect(len(missing))
        waiting: list[NDArray[Any]] = []
        reasons: dict[bytes, str] = {}
        saved = time.monotonic()
        try:
            measured = in_threads(_facts_or_reason, list(missing.items()))
            for key, result in zip(missing, measured, strict=True):
                if isinstance(result, str):
                    reasons[key] = result
                else:
                    waiting.append(result)
                progress.advance()
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self.add(waiting)
                    waiting, saved = [], time.monotonic()
        finally:
            self.add(waiting)
        return reasons


def stored_facts(store_root: Path, keys: Sequence[bytes]) -> NDArray[Any] | None:
    """Records of all keys, where an audit has measured them all; else None."""
    index = FactsIndex(store_root)
    return index.facts(keys) if all(key in index for key in keys) else None


def near_copies(
    store_root: Path, small: NDArray[np.uint8], roles: NDArray[np.str_], group: NDArray[np.str_]
) -> tuple[NearPair, ...]:
    """See :func:`find_near_copies`; every stage asks, and the same images are compared once."""
    content = hashlib.sha256(small.tobytes())
    for names in (roles, group):
        content.update(json.dumps(names.tolist()).encode())
    file = store_root / "index" / f"near-v{_NEAR_VERSION}" / f"{content.hexdigest()[:24]}.json"
    with suppress(OSError, ValueError):
        return tuple(
            NearPair(rows=(a, b), likeness=likeness, how=how)
            for (a, b), likeness, how in json.loads(_read_checked(file))
        )
    pairs = find_near_copies(small, roles, group)
    with suppress(WriteFailedError):
        _write_checked(file, json.dumps([astuple(pair) for pair in pairs]).encode())
    return pairs


def _facts_or_reason(entry: tuple[bytes, Item]) -> NDArray[Any] | str:
    key, item = entry
    try:
        facts = read_image(item, key).facts()
    except ImageError as reason:
        return str(reason)
    facts["key"] = np.frombuffer(key, np.uint8)
    return facts


def _read_facts(file: Path) -> NDArray[Any]:
    """What was kept; none of a file that is damaged or of another version."""
    with suppress(OSError, ValueError):
        records = np.load(io.BytesIO(_read_checked(file)), allow_pickle=False)
        if records.dtype == FACTS:
            return np.asarray(records)
    return np.empty(0, FACTS)


def _write_checked(file: Path, body: bytes) -> None:
    disk.publish(file, body + hashlib.sha256(body).digest())


def _read_checked(file: Path) -> bytes:
    """What was written before its digest; a ValueError where any byte of it is damaged."""
    data = disk.read_all(file)
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{file} is damaged")
    return body


def _content_or_reason(item: Item, *, salt: bytes | None) -> RememberedFile | str:
    try:
        return read_image(item).remembered(salt)
    except ImageError as reason:
        return str(reason)


def _entry(item: Item, content: RememberedFile) -> list[Any]:
    values = [content.digest.hex(), content.depth, content.patient]
    while values[-1] in (None, ""):  # most files have neither; a depth may be 0
        values.pop()
    return [*_stat_values(item), *values]


def _stat_values(item: Item) -> list[int]:
    """Ctime stands in for an editor that sets the old mtime again."""
    stat = item.stat
    return [stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode]


def _short_hash(path: str) -> str:
    data = path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=12).hexdigest()
