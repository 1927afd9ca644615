"""Class folders: each folder in the root is a class, its images are at any depth below."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.data.facts import facts_of_file
from pipeline.data.images import MAGICS, PixelPolicy, Pixels, decode
from pipeline.data.items import Item, Listing, Walk, is_folder, read_file
from pipeline.errors import ImageError, StudyError
from pipeline.words import composed

HAS_ROWS = False
_SUFFIXES = (".jpg", ".jpeg", ".png", ".jpe", ".jfif")
#: An uncompressed image has 8 bytes a pixel at most.
_MAX_BYTES_PER_PIXEL = 10


@dataclass(frozen=True)
class _FileContent:
    """An image file in memory; see :class:`pipeline.data.items.Content`."""

    data: bytes
    max_pixels: int

    @property
    def key(self) -> bytes:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(self.data).digest()

    def pixels(self, policy: PixelPolicy) -> Pixels:
        """See :func:`pipeline.data.images.decode`."""
        return decode(self.data, policy, max_pixels=self.max_pixels)

    def facts(self) -> NDArray[Any]:
        """See :func:`pipeline.data.facts.facts_of_file`."""
        return facts_of_file(self.data, max_pixels=self.max_pixels)


def is_sign(entry: "os.DirEntry[str]", *, labelled: bool) -> bool:
    """Whether an entry of the root shows that it holds class folders, or images at all."""
    is_image = entry.name.lower().endswith(_SUFFIXES)
    return is_folder(entry) or (is_image and not labelled)


def scan(root: Path, *, labelled: bool, ignore: tuple[str, ...] = ()) -> Listing:
    """Find the images of each class; without labels all images, whatever their folders.

    Files are known by their ending, whatever its case, and without one by their first bytes.
    Links are followed to what is
    inside the root; a folder that is reached twice within a class is walked once.

    Raises:
        StudyError: No image, a class without an image, or a folder that cannot be listed.
    """
    if not labelled:
        listing = images_below(root, ignore=ignore)
        if not listing.items:
            raise StudyError(f"{root} holds no image ({listing.left_out})")
        return listing
    walk = Walk(os.path.realpath(root), _SUFFIXES, ignore, MAGICS)
    loose_files, folders = walk.entries()
    if loose_files:
        walk.ignored["not in a class folder"] += len(loose_files)
    if not folders:
        raise StudyError(f"{root} holds no class folder ({walk.listing().left_out})")
    return walk.listing(item for folder in folders for item in _images_of_class(walk, folder))


def images_below(folder: Path, *, ignore: tuple[str, ...] = ()) -> Listing:
    """All images below a folder, directly in it too, without a class; there may be none.

    Raises:
        StudyError: A folder cannot be listed.
    """
    walk = Walk(os.path.realpath(folder), _SUFFIXES, ignore, MAGICS)
    return walk.listing(list(walk.files_below()))


def read(item: Item) -> _FileContent:
    """Read the file, once.

    Raises:
        ImageError: It cannot be read, or no image is that large.
    """
    limit = _MAX_BYTES_PER_PIXEL * item.max_pixels
    if item.stat.size > limit:
        raise ImageError(f"too large ({item.stat.size} bytes, limit {limit})")
    return _FileContent(read_file(item.file, lambda stream: stream.read()), item.max_pixels)


def _images_of_class(walk: Walk, folder: str) -> list[Item]:
    below = replace(walk, ignored=Counter(), unread=[])
    items = list(below.files_below(folder, composed(folder)))
    if not items:
        raise StudyError(
            f"{walk.root}/{folder}: the class folder holds no image ({below.listing().left_out}). "
            "Put its images there, or remove the folder"
        )
    walk.ignored.update(below.ignored)
    walk.unread.extend(below.unread)
    return items
