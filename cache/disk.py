"""The only module that touches the disk on behalf of a store.

Everything a store does to files is one of the primitives below, so a test can
make any of them fail, or kill the process there, and look at what is left.
``publish`` is the one way in which a file comes to be: written beside its place,
synced, renamed, and the folder synced. A file that has its final name is whole.
"""

import errno
import os
import shutil
import socket
import time
import uuid
from pathlib import Path

from cache.errors import WriteFailedError

TEMPORARY = ".tmp-"
_ABANDONED_AFTER_S = 24 * 3600


def open_new(path: Path) -> int:
    """Create ``path`` for writing; never follow a link, never reuse a file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o644)


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
    """Force a folder's entries to the device; Windows cannot, and needs no call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unlink(path: Path) -> None:
    """Remove a file; it is no error when somebody else removed it first."""
    path.unlink(missing_ok=True)


def make_dir(path: Path) -> None:
    """Create a folder with its parents, durably."""
    if path.is_dir():
        return
    make_dir(path.parent)
    path.mkdir(exist_ok=True)
    fsync_dir(path.parent)


def listdir(folder: Path) -> list[str]:
    """Names in a folder, sorted; none when there is no such folder."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


def read_all(path: Path) -> bytes:
    """Read a whole file once: what is checked is then what is parsed."""
    return path.read_bytes()


def size(path: Path) -> int:
    """Size of a file in bytes."""
    return path.stat().st_size


def free_bytes(folder: Path) -> int | None:
    """Bytes free for us where ``folder`` is or will be; None when nobody can say."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def publish(path: Path, data: bytes, *, scratch: Path | None = None) -> None:
    """Put a whole file in place, or leave nothing of it.

    Args:
        path: Final name; its folder must exist. An older file there is replaced.
        data: The complete content.
        scratch: Folder of the temporary file, on the same file system; default: beside
            the final place.

    Raises:
        WriteFailedError: Any step failed. The temporary file is removed. A failed
            fsync is never repeated on the same file: a second one may report success
            although the data is lost (the kernel drops the error with the page).
    """
    temporary = (scratch or path.parent) / temporary_name()
    try:
        _write_durably(temporary, data)
        replace(temporary, path)
        fsync_dir(path.parent)
    except OSError as cause:
        free = free_bytes(path.parent)
        _discard(temporary)
        raise WriteFailedError(path, cause, needed=len(data), free=free) from cause


def check_writable(folder: Path) -> None:
    """Find out now, not after an hour of work, that a folder cannot be written.

    Raises:
        WriteFailedError: A one-byte file could not be written there.
    """
    temporary = folder / temporary_name()
    try:
        make_dir(folder)
        _write_durably(temporary, b"?")
        unlink(temporary)
    except OSError as cause:
        free = free_bytes(folder)
        _discard(temporary)
        raise WriteFailedError(folder, cause, needed=1, free=free) from cause


def remove(folder: Path, names: list[str]) -> None:
    """Remove files of a folder, durably.

    Raises:
        WriteFailedError: A file could not be removed; those after it are still there.
    """
    path = folder
    try:
        for name in names:
            path = folder / name
            unlink(path)
        fsync_dir(folder)
    except OSError as cause:
        raise WriteFailedError(path, cause, needed=0, free=free_bytes(folder)) from cause


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
    """A name with host and process, by which :func:`is_abandoned` decides."""
    host = socket.gethostname().replace("-", "_").replace(os.sep, "_")
    return f"{TEMPORARY}{host}-{os.getpid()}-{uuid.uuid4().hex}"


def is_abandoned(path: Path) -> bool:
    """Whether a temporary file's writer is gone: dead on this host, or a day old."""
    host, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    this_host = temporary_name().removeprefix(TEMPORARY).partition("-")[0]
    pid = rest.partition("-")[0]
    # On Windows os.kill would not test but send Ctrl-C: only the age counts there.
    if host == this_host and pid.isdecimal() and os.name != "nt":
        return not _is_alive(int(pid))
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
