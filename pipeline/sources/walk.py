"""Which entries of a folder may be opened: regular, visible, and inside the root.

Nothing is opened here: reading a FIFO or a device would wait for ever. 100,000 files
must be listed in about a second, so there is one ``stat`` a file and no ``Path``.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import StudyError
from pipeline.sources.items import FileStat, Item, Listing, stat_of, system_reason
from pipeline.text.counts import are, counted

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
