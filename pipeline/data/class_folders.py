"""Files of images: in class folders, each with its images at any depth, or without classes.

With a division that came with the data, the class folders lie below ``train`` and others.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.data.dicom import is_dicom, patient_in
from pipeline.data.facts import facts_of_file
from pipeline.data.grey_levels import Reading
from pipeline.data.images import PixelPolicy, Pixels, decode, depth_of, may_be_deep
from pipeline.data.items import Item, Listing, RememberedFile, Walk, is_folder, read_file
from pipeline.errors import ImageError, StudyError
from pipeline.study import Domain
from pipeline.words import composed

_SUFFIXES = (".jpg", ".jpeg", ".png", ".jpe", ".jfif", ".tif", ".tiff", ".dcm", ".dicom")
#: An uncompressed image has 8 bytes a pixel at most.
_MAX_BYTES_PER_PIXEL = 10


@dataclass(frozen=True)
class _FileContent:
    """An image file in memory; see :class:`pipeline.data.items.Content`."""

    data: bytes
    reading: Reading

    @property
    def key(self) -> bytes:
        """SHA-256 of the file's bytes, and of what is declared for files of more than 8 bits."""
        digest = hashlib.sha256(self.data).digest()
        return self.reading.key(digest) if may_be_deep(self.data) else digest

    def remembered(self, salt: bytes | None = None) -> RememberedFile:
        """See :class:`pipeline.data.items.Content`."""
        depth = depth_of(self.data, self.reading)
        patient = patient_in(self.data, salt) if salt and is_dicom(self.data) else ""
        return RememberedFile(hashlib.sha256(self.data).digest(), depth, patient)

    def pixels(self, policy: PixelPolicy) -> Pixels:
        """See :func:`pipeline.data.images.decode`."""
        return decode(self.data, policy, self.reading)

    def facts(self) -> NDArray[Any]:
        """See :func:`pipeline.data.facts.facts_of_file`."""
        return facts_of_file(self.data, self.reading)


def is_sign(entry: "os.DirEntry[str]", *, labelled: bool) -> bool:
    """Whether an entry of the root shows that it holds class folders, or images at all."""
    is_image = entry.name.lower().endswith(_SUFFIXES) or "." not in entry.name
    return is_folder(entry) or (is_image and not labelled)


def scan(domain: Domain) -> Listing:
    """Find the images of each class; without labels all images, whatever their folders.

    Files are known by their ending, whatever its case, and without one by their first bytes.
    Links are followed to what is inside the root; a folder that is reached twice within a
    class is walked once.

    Raises:
        StudyError: No image, a class without an image, or a folder that cannot be listed.
    """
    walk = _walk(domain.path, domain.ignore or ())
    if not domain.labelled and not domain.split:
        listing = walk.listing(list(walk.files_below()))
        if not listing.items:
            raise StudyError(f"{domain.path} holds no image ({listing.left_out})")
        return listing
    loose_files, folders = walk.entries()
    if loose_files:
        walk.ignored["not in a class folder"] += len(loose_files)
    if not folders:
        raise StudyError(f"{domain.path} holds no class folder ({walk.listing().left_out})")
    if not domain.split:
        return walk.listing(item for folder in folders for item in _images_by_class(walk, folder))
    return walk.listing(
        replace(item, split=split) for split in folders for item in _of_split(walk, split, domain)
    )


def images_below(folder: Path, *, ignore: tuple[str, ...] = ()) -> Listing:
    """All images below a folder, directly in it too, without a class; there may be none.

    Raises:
        StudyError: A folder cannot be listed.
    """
    walk = _walk(folder, ignore)
    return walk.listing(list(walk.files_below()))


def read(item: Item) -> _FileContent:
    """Read the file, once.

    Raises:
        ImageError: It cannot be read, or no image is that large.
    """
    limit = _MAX_BYTES_PER_PIXEL * item.reading.max_pixels
    if item.stat.size > limit:
        raise ImageError(f"too large ({item.stat.size} bytes, limit {limit})")
    return _FileContent(read_file(item.file, lambda stream: stream.read()), item.reading)


def _walk(root: Path, ignore: tuple[str, ...]) -> Walk:
    return Walk(os.path.realpath(root), _SUFFIXES, ignore, by_content=True)


def _of_split(walk: Walk, split: str, domain: Domain) -> Iterator[Item]:
    """Images below the folder of a split, with the folders in it as classes."""
    if not domain.labelled:
        yield from walk.files_below(split)
        return
    for folder in walk.entries(split)[1]:
        label = composed(folder.rpartition("/")[2])
        yield from (replace(item, label=label) for item in _images_by_class(walk, folder))


def _images_by_class(walk: Walk, folder: str) -> list[Item]:
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
