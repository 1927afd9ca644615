"""What a source finds, and the one way in which the bytes of a file are read."""

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.images import PixelPolicy, Pixels

#: Errors that a network file system gives once and not again.
_TRANSIENT = (errno.EIO, errno.ESTALE)
_RETRIES = 3
_PAUSE_SECONDS = 0.1
#: Name of no class.
NO_CLASS = ""
_T = TypeVar("_T")


class FileStat(NamedTuple):
    """What tells, without reading it, that a file has not changed; times in ns."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Item:
    """One image as it was found.

    Attributes:
        path: Relative to the domain's root, with ``/``; ``test_normal.npy#17`` is a row
            of a stack. Bytes that are no UTF-8 are kept as ``os.fsdecode`` has them.
        label: Name of its class; empty where no class was asked for.
        file: Absolute path of the file.
        row: Index in a stack; None where the file is the image.
        stat: The file's, when it was found.
    """

    path: str
    label: str
    file: str
    row: int | None
    stat: FileStat


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder holds.

    Attributes:
        items: Sorted by path.
        ignored: Number of entries that were not taken, by reason.
        unread: Paths of images in formats that are not read.
    """

    items: tuple[Item, ...]
    ignored: Mapping[str, int]
    unread: tuple[str, ...] = ()


class Content(Protocol):
    """An image in memory: the bytes that are hashed are the bytes that are decoded."""

    @property
    def key(self) -> bytes:
        """Content key, 32 bytes."""

    def pixels(self, policy: PixelPolicy) -> Pixels:
        """Shape ``(size, size, 3)``, uint8; see :func:`pipeline.images.decode`.

        Raises:
            ImageError: The image cannot be used.
        """

    def facts(self) -> NDArray[Any]:
        """A record of :data:`pipeline.images.facts.FACTS`, but for its key.

        Raises:
            ImageError: The image cannot be used.
        """


def stat_of(stat: os.stat_result) -> FileStat:
    """The part of a stat that is kept."""
    return FileStat(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def read_from(file: str | Path, action: Callable[[FileIO], _T]) -> _T:
    """Open a file, without a buffer, for one action; try again where that may help.

    Raises:
        ImageError: The system's reason: permission, vanished, input/output error.
    """
    tries = 0
    while True:
        try:
            with open(file, "rb", buffering=0) as stream:  # noqa: PTH123 - 4 us less than Path
                return action(stream)
        except OSError as cause:
            if cause.errno not in _TRANSIENT or tries == _RETRIES:
                raise ImageError(f"cannot be read: {system_reason(cause)}") from cause
        tries += 1
        time.sleep(_PAUSE_SECONDS)


def system_reason(cause: OSError) -> str:
    """For example ``Permission denied (EACCES)``; the path is the caller's to name."""
    code = errno.errorcode.get(cause.errno or 0, "no errno")
    return f"{cause.strerror or type(cause).__name__} ({code})"
