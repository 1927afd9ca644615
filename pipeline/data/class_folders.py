"""Files of images: in class folders, each with its images at any depth, or without classes.

With a division that came with the data, the class folders lie below ``train`` and others.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from pipeline.data.dicom import is_dicom, patient_in
from pipeline.data.facts import facts_of_picture, jpeg_quality
from pipeline.data.grey_levels import Reading
from pipeline.data.images import depth_of, may_be_deep, picture_of
from pipeline.data.items import (
    NO_CLASS,
    Content,
    Each,
    Item,
    Listing,
    RememberedFile,
    Walk,
    in_turn,
    is_folder,
    read_file,
)
from pipeline.errors import ImageError, StudyError
from pipeline.study import Domain
from pipeline.words import composed

_SUFFIXES = (".jpg", ".jpeg", ".png", ".jpe", ".jfif", ".tif", ".tiff", ".dcm", ".dicom")
#: An uncompressed image has 8 bytes a pixel at most.
_MAX_BYTES_PER_PIXEL = 10


@dataclass(frozen=True)
class _FileContent(Content):
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

    def picture(self, at_least: int | None = None) -> Image.Image:
        """See :class:`pipeline.data.items.Content`."""
        return picture_of(self.data, self.reading, at_least=at_least)

    def facts(self) -> NDArray[Any]:
        """See :class:`pipeline.data.items.Content`."""
        facts = facts_of_picture(self.picture())
        facts["file_bytes"] = len(self.data)
        facts["jpeg_quality"] = jpeg_quality(self.data, self.reading)
        return facts


def is_sign(entry: "os.DirEntry[str]", *, labelled: bool) -> bool:
    """Whether an entry of the root shows that it holds class folders, or images at all."""
    is_image = entry.name.lower().endswith(_SUFFIXES) or "." not in entry.name
    return is_folder(entry) or (is_image and not labelled)


def scan(domain: Domain, each: Each = in_turn) -> Listing:
    """Find the images of each class; without labels all images, whatever their folders.

    Files are known by their ending, whatever its case, and without one by their first bytes.
    Links are followed to what is inside the root; a folder that is reached twice within a
    folder of the root is walked once.

    Args:
        domain: Where they are.
        each: How the folders of the root are walked.

    Raises:
        StudyError: No image, a class without an image, or a folder that cannot be listed.
    """
    listing = images_below(domain.path, ignore=domain.ignore or (), each=each)
    if domain.labelled or domain.split:
        listing = _by_folder(domain, listing)
    if not listing.items:
        what = "class folder" if domain.labelled else "image"
        raise StudyError(f"{domain.path} holds no {what} ({listing.left_out})")
    return listing


def _by_folder(domain: Domain, listing: Listing) -> Listing:
    """Images with the label and the split that the folders they lie in are called."""
    items = []
    for item in listing.items:
        *folders, _ = item.path.split("/")
        split = folders.pop(0) if domain.split and folders else ""
        if folders or not domain.labelled:
            label = composed(folders[0]) if domain.labelled else NO_CLASS
            items.append(replace(item, label=label, split=split))
    for folder, left_out in listing.empty.items():
        raise StudyError(
            f"{domain.path}/{folder}: the class folder holds no image ({left_out}). Put its "
            "images there, or remove the folder"
        )
    ignored = Counter(listing.ignored) + Counter(
        {"not in a class folder": len(listing.items) - len(items)}
    )
    return replace(listing, items=tuple(items), ignored=ignored)


def images_below(folder: Path, *, ignore: tuple[str, ...] = (), each: Each = in_turn) -> Listing:
    """All images below a folder, directly in it too, without a class; there may be none.

    Raises:
        StudyError: A folder cannot be listed.
    """
    return Walk(os.path.realpath(folder), _SUFFIXES, ignore, by_content=True).below(each)


def read(item: Item) -> _FileContent:
    """Read the file, once.

    Raises:
        ImageError: It cannot be read, or no image is that large.
    """
    limit = _MAX_BYTES_PER_PIXEL * item.reading.max_pixels
    if item.stat.size > limit:
        raise ImageError(f"too large ({item.stat.size} bytes, limit {limit})")
    return _FileContent(read_file(item.file, lambda stream: stream.read()), item.reading)
