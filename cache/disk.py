"""The only module that touches the disk on behalf of a store.

Everything a store does to files is one of the primitives below, so a test can make any of them
fail, or kill the process there, and look at what is left. ``write_atomic`` is the only way to
create a file: it is written beside its place, synced and renamed, and then the folder is synced.
A file with its final name is whole.

Files are readable by their owner alone (0600 in folders 0700), because they hold data of
patients. With ``HEADRACE_SHARED=1`` the umask decides instead.
"""

import errno
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cache.errors import NotPlainFileError, WriteFailedError

TEMPORARY = ".tmp-"
_TEMPORARY_NAME = re.compile(r"\.tmp-(?P<host>[^-]*)-(?P<pid>[0-9]+)-[0-9a-f]{32}")
_ABANDONED_AFTER_S = 24 * 3600
#: Largest file that is read whole; a part is far smaller.
MAX_BYTES = 16 << 30
MAX_JSON_BYTES = 512 << 20


def _is_shared() -> bool:
    return os.environ.get("HEADRACE_SHARED") == "1"


def open_new(path: Path) -> int:
    """Create ``path`` for writing; never follow a link, never reuse a file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666 if _is_shared() else 0o600)


def write(descriptor: int, data: memoryview) -> int:
    """Write some of ``data``; return how many bytes were taken, as ``write(2)`` does."""
    return os.write(descriptor, data)


def fsync(descriptor: int) -> None:
    """Force a file's bytes to the device."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor of :func:`open_new`."""
    os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Give a file its final name, atomically."""
    source.replace(target)


def fsync_dir(folder: Path) -> None:
    """Force a folder's entries to the device; Windows cannot do this."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unlink(path: Path) -> None:
    """Remove a file; it is no error if another process removed it first."""
    path.unlink(missing_ok=True)


def make_dir(path: Path) -> None:
    """Create a folder with its parents, durably."""
    if path.is_dir():
        return
    make_dir(path.parent)
    path.mkdir(0o777 if _is_shared() else 0o700, exist_ok=True)
    fsync_dir(path.parent)


def remove_dir(path: Path) -> None:
    """Remove a folder, if it is empty."""
    if not listdir(path):
        path.rmdir()


def listdir(folder: Path) -> list[str]:
    """Names in a folder, sorted; none if there is no such folder."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


def read_all(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a whole file once, so that the checked bytes are the parsed bytes.

    Raises:
        NotPlainFileError: It is a folder, a FIFO, a device or a link, or has more than ``most``
            bytes. Nothing was read.
    """
    # Opening a FIFO without a writer would block for ever.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except OSError as cause:
        if cause.errno in (errno.ELOOP, errno.ENXIO):
            raise NotPlainFileError(path) from cause
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotPlainFileError(path)
        if status.st_size > most:
            too_large = f"it has {status.st_size:,} bytes; at most {most:,} are read"
            raise NotPlainFileError(path, too_large)
        pieces, rest = [], status.st_size
        while rest and (piece := os.read(descriptor, rest)):
            pieces.append(piece)
            rest -= len(piece)
    finally:
        os.close(descriptor)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """Values of a JSON file; see :func:`read_all` and :func:`parse_json`."""
    return parse_json(read_all(path, most))


def parse_json(data: bytes | str) -> Any:
    """Values of a JSON text; a ValueError if it is not JSON, or is nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause


def free_bytes(folder: Path) -> int | None:
    """Free bytes on the disk where ``folder`` is or will be; None if unknown."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def write_atomic(path: Path, data: bytes, *, scratch: Path | None = None) -> None:
    """Put a whole file in place, or leave nothing of it; see :func:`write_all_atomic`."""
    write_all_atomic({path: data}, scratch=scratch)


def write_all_atomic(contents: Mapping[Path, bytes], *, scratch: Path | None = None) -> None:
    """Put whole files in place, one after the other, once all of them are on the disk.

    Args:
        contents: Content by final name. Folders are made, older files are replaced.
        scratch: Folder of the temporary files, on the same file system; None: beside them.

    Raises:
        WriteFailedError: Any step failed; the temporary files are removed. A failed fsync is never
            repeated on the same file: a second one may report success although the data is lost
            (the kernel drops the error with the page).
    """
    waiting: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            make_dir(path.parent)
            waiting[path] = (scratch or path.parent) / temporary_name()
            _write_durably(waiting[path], data)
        for path in contents:
            replace(waiting[path], path)
            del waiting[path]
            fsync_dir(path.parent)
    except OSError as cause:
        free = free_bytes(path.parent)
        for temporary in waiting.values():
            _discard(temporary)
        raise WriteFailedError(path, cause, needed=len(contents[path]), free=free) from cause


def check_writable(folder: Path) -> None:
    """Check that a folder can be written, before an hour of work."""
    temporary = folder / temporary_name()
    try:
        make_dir(folder)
        _write_durably(temporary, b"?")
        unlink(temporary)
    except OSError as cause:
        free = free_bytes(folder)
        _discard(temporary)
        raise WriteFailedError(folder, cause, needed=1, free=free) from cause


def remove(
    folder: Path, names: list[str], *, refusals: tuple[type[OSError], ...] = ()
) -> list[str]:
    """Remove files of a folder, durably; returns those that were removed.

    A file whose removal is refused with one of ``refusals`` stays; any other error stops it.
    """
    path, removed = folder, []
    try:
        for name in names:
            path = folder / name
            with suppress(*refusals):
                unlink(path)
                removed.append(name)
        if removed:
            fsync_dir(folder)
    except OSError as cause:
        raise WriteFailedError(path, cause, needed=0, free=free_bytes(folder)) from cause
    return removed


def may_remove(path: Path) -> bool:
    """Whether a file is ours to remove: in a sticky folder only its owner's and the folder's."""
    try:
        folder, file = path.parent.stat(), path.lstat()
    except FileNotFoundError:
        return True
    return not folder.st_mode & stat.S_ISVTX or os.geteuid() in (folder.st_uid, file.st_uid)


def remove_abandoned(folder: Path) -> list[str]:
    """Remove temporary files of a folder whose writer is gone; returns their names.

    In a shared folder, those of other users that may not be removed stay.
    """
    temporary = [name for name in listdir(folder) if name.startswith(TEMPORARY)]
    abandoned = [name for name in temporary if is_abandoned(folder / name)]
    return remove(folder, abandoned, refusals=(PermissionError,))


def prepare(folder: Path) -> None:
    """Check that a folder can be written; remove what dead processes left at any depth."""
    check_writable(folder)
    for below in {path.parent for path in folder.rglob(f"{TEMPORARY}*")}:
        with suppress(OSError):  # cleaning is a courtesy: it stops no stage
            remove_abandoned(below)


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = open_new(path)
    try:
        rest = memoryview(data)
        while rest:
            taken = write(descriptor, rest)
            if taken <= 0:
                raise OSError(errno.EIO, "the disk takes no more bytes and gives no reason")
            rest = rest[taken:]
        fsync(descriptor)
    finally:
        close(descriptor)


def _discard(temporary: Path) -> None:
    try:
        unlink(temporary)
    except OSError:
        return  # the first error is the one to report; gc finds this file later


def temporary_name() -> str:
    """A name with host and process, for :func:`is_abandoned`."""
    return f"{TEMPORARY}{_host()}-{os.getpid()}-{uuid.uuid4().hex}"


def _host() -> str:
    return socket.gethostname().replace("-", "_").replace(os.sep, "_")


def is_abandoned(path: Path) -> bool:
    """Whether our temporary file has no writer: its process is dead, or it is a day old."""
    name = _TEMPORARY_NAME.fullmatch(path.name)
    if name is None:
        return False
    # On Windows os.kill would not test but send Ctrl-C: only the age counts there.
    if name["host"] == _host() and os.name != "nt":
        return not _is_alive(int(name["pid"]))
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
