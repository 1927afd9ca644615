"""Class folders: each folder in the root is a class, its images are at any depth below."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.data.facts import facts_of_file
from pipeline.data.images import PixelPolicy, Pixels, decode
from pipeline.data.items import NO_CLASS, File, Item, Listing, Walk, read_from
from pipeline.errors import ImageError, StudyError

SUFFIXES = (".jpg", ".jpeg", ".png")
#: An uncompressed image of the largest size allowed is smaller, at 8 bytes a pixel.
_MAX_BYTES = 500_000_000


@dataclass(frozen=True)
class FileContent:
    """An image file in memory; see :class:`pipeline.data.items.Content`."""

    data: bytes

    @property
    def key(self) -> bytes:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(self.data).digest()

    def pixels(self, policy: PixelPolicy) -> Pixels:
        """See :func:`pipeline.data.images.decode`."""
        return decode(self.data, policy)

    def facts(self) -> NDArray[Any]:
        """See :func:`pipeline.data.facts.facts_of_file`."""
        return facts_of_file(self.data)


def scan(root: Path) -> Listing:
    """Find the images of each class.

    Files are known by their ending, whatever its case. Links are followed to what is
    inside the root; a folder that is reached twice within a class is walked once.

    Raises:
        StudyError: A class without an image, or a folder that cannot be listed.
    """
    walk = Walk(os.path.realpath(root), SUFFIXES)
    loose, classes = walk.look()
    if loose:
        walk.ignored["not in a class folder"] += len(loose)
    if not classes:
        raise StudyError(f"{root} holds no class folder ({walk.ignored_text()})")
    items = [
        Item(path, label, file, None, stat)
        for label in classes
        for path, file, stat in _images_of_class(walk, label)
    ]
    return walk.listing(items)


def scan_loose(root: Path) -> Listing:
    """Find all images below a folder, directly in it too; its folders are no classes.

    Raises:
        StudyError: No image, or a folder that cannot be listed.
    """
    walk = Walk(os.path.realpath(root), SUFFIXES)
    items = [Item(path, NO_CLASS, file, None, stat) for path, file, stat in images_below(walk)]
    if not items:
        raise StudyError(f"{root} holds no image ({walk.ignored_text()})")
    return walk.listing(items)


def read(item: Item) -> FileContent:
    """Read the file, once.

    Raises:
        ImageError: It cannot be read, or no image is that large.
    """
    if item.stat.size > _MAX_BYTES:
        raise ImageError(f"too large ({item.stat.size} bytes, limit {_MAX_BYTES})")
    return FileContent(read_from(item.file, lambda stream: stream.read()))


def _images_of_class(walk: Walk, label: str) -> list[File]:
    below = replace(walk, ignored=Counter(), unread=[])
    found = list(images_below(below, label))
    if not found:
        raise StudyError(
            f"{walk.root}/{label}: the class folder holds no image ({below.ignored_text()}). "
            "Put its images there, or remove the folder"
        )
    walk.ignored.update(below.ignored)
    walk.unread.extend(below.unread)
    return found


def images_below(walk: Walk, label: str | None = None) -> Iterator[File]:
    """Depth first; the root counts as walked, or a link to it would mix the classes.

    Without a label the root is where it starts.
    """
    walked = set() if label is None else {walk.identity()}
    waiting = [label or ""]
    while waiting:
        folder = waiting.pop()
        identity = walk.identity(folder)
        if identity in walked:
            walk.ignored["folder reached twice"] += 1
            continue
        walked.add(identity)
        files, folders = walk.look(folder)
        yield from files
        waiting.extend(reversed(folders))
