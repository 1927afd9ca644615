"""What a source finds, and the one way in which the bytes of a file are read."""

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from numpy.typing import NDArray

from pipeline.data.images import PixelPolicy, Pixels
from pipeline.errors import ImageError, StudyError
from pipeline.words import are, counted

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
        """Shape ``(size, size, 3)``, uint8; see :func:`pipeline.data.images.decode`.

        Raises:
            ImageError: The image cannot be used.
        """

    def facts(self) -> NDArray[Any]:
        """A record of :data:`pipeline.data.facts.FACTS`, but for its key.

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


# Which entries of a folder may be opened: regular, visible, and inside the root.


#: Endings of images that are not read here: whoever has them in a folder must hear of it.
OTHER_IMAGES = (
    ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".heic", ".dcm", ".dicom", ".nii", ".nii.gz",
    ".svs", ".ndpi",
)  # fmt: skip


class File(NamedTuple):
    """A file that may be opened: path relative to the root, absolute path, stat."""

    path: str
    file: str
    stat: FileStat


@dataclass(frozen=True)
class Walk:
    """A look at the folders below one root.

    Attributes:
        root: Absolute, without links.
        suffixes: Lower-case endings of the files to take, such as ``.jpg``.
        ignored: Number of entries left out so far, by reason.
        unread: Paths of images that are not read, see ``OTHER_IMAGES``; not in ``ignored``.
    """

    root: str
    suffixes: tuple[str, ...]
    ignored: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)

    def look(self, folder: str = "") -> tuple[list[File], list[str]]:
        """Files and sub-folders directly in a folder; paths are relative to the root.

        Raises:
            StudyError: The folder cannot be listed.
        """
        files, folders = [], []
        prefix = f"{folder}/" if folder else ""
        for entry in _entries(os.path.join(self.root, folder)):  # noqa: PTH118 - no Path here
            path = prefix + entry.name
            if entry.name.startswith("."):
                self.ignored["hidden"] += 1
            elif entry.is_symlink() and not self._holds(entry.path):
                self.ignored["link out of the folder"] += 1
            elif _is_folder(entry):
                folders.append(path)
            elif entry.name.lower().endswith(OTHER_IMAGES):
                self.unread.append(path)
            elif not entry.name.lower().endswith(self.suffixes):
                self.ignored[f"not a {'/'.join(self.suffixes)} file"] += 1
            elif stat := _stat_of_regular(entry):
                files.append(File(path, entry.path, stat))
            else:
                self.ignored["not a regular file"] += 1
        return files, sorted(folders)

    def identity(self, folder: str = "") -> tuple[int, int]:
        """Device and inode: equal for two paths of one folder.

        Raises:
            StudyError: The folder has vanished.
        """
        try:
            stat = os.stat(os.path.join(self.root, folder))  # noqa: PTH116, PTH118 - as above
        except OSError as cause:
            raise StudyError(f"{self.root}/{folder}: {system_reason(cause)}") from cause
        return stat.st_dev, stat.st_ino

    def listing(self, items: Iterable[Item]) -> Listing:
        """These items, in the order of their paths, beside what was left out."""
        found = sorted(items, key=lambda item: item.path)
        return Listing(items=tuple(found), ignored=dict(self.ignored), unread=tuple(self.unread))

    def ignored_text(self) -> str:
        """What was left out, for a message."""
        parts = [f"{count} x {reason}" for reason, count in sorted(self.ignored.items())]
        if self.unread:
            parts.insert(0, not_read(self.unread))
        return f"ignored: {', '.join(parts)}" if parts else "it is empty"

    def _holds(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.root)


def not_read(paths: Sequence[str]) -> str:
    """How many images of which formats are not read, and what to do."""
    endings = Counter(Path(path).suffix.lower() for path in paths)
    found = ", ".join(counted(n, f"{ending} image") for ending, n in sorted(endings.items()))
    return f"{found} {are(len(paths))} not read: convert to .png"


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as cause:
        raise StudyError(f"{folder} cannot be listed: {system_reason(cause)}") from cause


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stat_of_regular(entry: "os.DirEntry[str]") -> FileStat | None:
    """None for a FIFO, a device, a socket, a broken link and what has just vanished."""
    try:
        return stat_of(entry.stat()) if entry.is_file() else None
    except OSError:
        return None
