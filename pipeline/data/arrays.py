"""Arrays of images along their first axis: folders of ``.npy`` stacks, and ``.npz`` files.

A stack holds images of one class. A ``.npz`` file is as MedMNIST ships it: ``train_images`` and
``train_labels``, the same with ``val`` and ``test`` or any other name; labels are whole numbers,
one an image, and name the classes. Nothing is unpickled.

Rows of stacks are read, not mapped: of a mapped file that gets shorter, or whose disk fails,
the system kills the process instead of raising an error.
"""

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from io import FileIO
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.facts import facts_of_picture
from pipeline.data.grey_levels import NO_RANGE, Depth, Reading, scaled
from pipeline.data.images import Pixels, check_size
from pipeline.data.items import (
    NO_CLASS,
    Content,
    FileStat,
    Item,
    Listing,
    RememberedFile,
    Walk,
    is_folder,
    read_file,
)
from pipeline.errors import ImageError, StudyError
from pipeline.study import Domain
from pipeline.words import composed

_SUFFIXES = (".npy",)
_IMAGES, _LABELS = "_images", "_labels"
#: An array of a .npz file is decompressed as a whole, and kept while its rows are read.
_MAX_BYTES = 4 << 30
_ONE_AT_A_TIME = Lock()
_ALLOWED = "allowed are (n, H, W) and (n, H, W, 3), numbers of up to 64 bits"
_HEADERS: Mapping[tuple[int, int], Callable[..., Any]] = MappingProxyType(
    {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
)


@dataclass(frozen=True)
class _RowContent(Content):
    """An image of a stack in memory; see :class:`pipeline.data.items.Content`.

    Attributes:
        row: Shape ``(H, W)`` or ``(H, W, 3)``, any numbers, C order.
        reading: Of its domain.
    """

    row: NDArray[Any]
    reading: Reading

    @property
    def key(self) -> bytes:
        """SHA-256 over dtype, shape and bytes, and of what is declared for other than uint8."""
        digest = self._digest()
        return digest if self.row.dtype == np.uint8 else self.reading.key(digest)

    def remembered(self, salt: bytes | None = None) -> RememberedFile:  # noqa: ARG002 - rows have no header
        """See :class:`pipeline.data.items.Content`."""
        return RememberedFile(self._digest(), self._depth())

    def picture(self, at_least: int | None = None) -> Image.Image:  # noqa: ARG002 - as it is
        """See :class:`pipeline.data.items.Content`."""
        return Image.fromarray(self._levels())

    def facts(self) -> NDArray[Any]:
        """See :class:`pipeline.data.items.Content`; its bytes are those of 8 bits."""
        facts = facts_of_picture(self.picture())
        facts["file_bytes"], facts["jpeg_quality"] = self.row.size, np.nan
        return facts

    def _digest(self) -> bytes:
        """Moving a row to another file keeps it."""
        digest = hashlib.sha256(f"{self.row.dtype.str}|{self.row.shape}|".encode())
        digest.update(self.row.data)
        return digest.digest()

    def _depth(self) -> Depth:
        if self.row.dtype == np.uint8:
            return None
        return int(self.row.max()) if self.row.dtype == np.uint16 else NO_RANGE

    def _levels(self) -> Pixels:
        if self.row.dtype == np.uint8:
            return self.row
        whole = (0.0, 65535.0) if self.row.dtype == np.uint16 else None
        window = self.reading.window or whole
        if window is None:
            raise ImageError(
                f"values of {self.row.dtype} have no range; write window = [BLACK, WHITE]"
            )
        return scaled(self.row, window)


@dataclass(frozen=True)
class _Header:
    """Where the rows of a stack are: their number, shape, type, and the first one's offset."""

    rows: int
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    offset: int


# Stacks: files of a folder.


def is_stack(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry of the root shows that it holds stacks."""
    return entry.name.lower().endswith(_SUFFIXES) and not is_folder(entry)


def scan_stacks(domain: Domain) -> Listing:
    """Find the rows of each stack; ``test_normal.npy`` and ``normal.npy`` are one class.

    Raises:
        StudyError: A stack that is damaged, or of another shape or dtype than allowed.
    """
    walk = Walk(os.path.realpath(domain.path), _SUFFIXES, domain.ignore or ())
    stacks, _ = walk.entries()
    if not stacks:
        raise StudyError(f"{domain.path} holds no .npy stack ({walk.listing().left_out})")
    return walk.listing(
        item for stack in stacks for item in _rows(stack, *_part_and_class(stack.path, domain))
    )


def read_row(item: Item) -> _RowContent:
    """Read one row of a stack.

    Raises:
        ImageError: It cannot be read, or the file has changed since it was found.
    """
    return _RowContent(read_file(item.file, lambda stream: _row(stream, item)), item.reading)


def _check_unchanged(stream: FileIO, stat: FileStat) -> None:
    """Refuse a file that is not what it was when it was found."""
    now = FileStat.of(os.fstat(stream.fileno()))
    # Not the ctime: a new name or mode leaves every row where it was.
    if (now.size, now.mtime_ns, now.inode) != (stat.size, stat.mtime_ns, stat.inode):
        raise ImageError("its stack changed after it was listed; run again")


def _check_rows(file: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
    """Refuse an array that is no stack of images."""
    if dtype.hasobject:
        raise StudyError(f"{file} holds Python objects, which are never loaded; {_ALLOWED}")
    is_stack = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if dtype.kind not in "uif" or dtype.itemsize > 8 or not is_stack:
        raise StudyError(f"{file} has shape {shape}, {dtype}; {_ALLOWED}")
    if shape[0] < 1:
        raise StudyError(f"{file} has shape {shape}: it holds no image")
    try:
        check_size(shape[2], shape[1])
    except ImageError as cause:
        raise StudyError(f"{file} has shape {shape}: its images are {cause}; {_ALLOWED}") from cause


def _part_and_class(name: str, domain: Domain) -> tuple[str, str]:
    """``train_normal.npy`` and ``test_normal.npy`` hold the class normal."""
    stem = Path(name).stem
    part = next((p for p in ("train", "val", "test") if stem.startswith(f"{p}_")), "")
    if part == "val" and not domain.split:  # a class may be called val_x; a division is asked for
        part = ""
    label = composed(stem.removeprefix(f"{part}_") or stem) if domain.labelled else NO_CLASS
    return part if domain.split else "", label


def _rows(stack: Item, split: str, label: str) -> list[Item]:
    header = _header(stack.file, stack.stat)
    return [
        replace(stack, path=f"{stack.path}#{row}", label=label, row=row, split=split)
        for row in range(header.rows)
    ]


def _row(stream: FileIO, item: Item) -> NDArray[Any]:
    _check_unchanged(stream, item.stat)
    header = _header(item.file, item.stat)
    length = math.prod(header.shape) * header.dtype.itemsize
    stream.seek(header.offset + (item.row or 0) * length)
    data = stream.read(length)
    if len(data) < length:
        raise ImageError("truncated")
    return np.frombuffer(data, header.dtype).reshape(header.shape)


@lru_cache(maxsize=64)  # by stat too, so a changed file is never read by an old header
def _header(file: str, stat: FileStat) -> _Header:
    try:
        shape, is_fortran, dtype, offset = read_file(file, _parse_header)
    except ImageError as cause:
        raise StudyError(f"{file}: {cause}") from cause
    except Exception as cause:  # numpy evaluates what the file says: anything can go wrong
        raise StudyError(f"{file} is not a .npy file, or a damaged one ({cause})") from cause
    _check_rows(file, shape, dtype)
    if is_fortran:
        raise StudyError(
            f"{file} is in Fortran order, which spreads an image over the whole file. Save it "
            "again with np.save(file, np.ascontiguousarray(array))"
        )
    if (declared := offset + math.prod(shape) * dtype.itemsize) > stat.size:
        raise StudyError(
            f"{file} is truncated: shape {shape} needs {declared} bytes, the file has {stat.size}"
        )
    return _Header(shape[0], shape[1:], dtype, offset)


def _parse_header(stream: FileIO) -> tuple[tuple[int, ...], bool, "np.dtype[Any]", int]:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format")
    return *_HEADERS[version](stream), stream.tell()


# Archives: several arrays in one file.


def is_archive(path: Path) -> bool:
    """Whether a domain's path is such a file."""
    return path.suffix.lower() == ".npz"


def scan_archive(domain: Domain) -> Listing:
    """List the images of every split, or without labels all images.

    Raises:
        StudyError: It is damaged or holds something else, or an image has several labels.
    """
    file = os.path.realpath(domain.path)
    stat = FileStat.of(domain.path.stat())
    splits = [n.removesuffix(_IMAGES) for n in _names(file, domain) if n.endswith(_IMAGES)]
    if not splits:
        raise StudyError(
            f"{domain.path} holds no array called NAME{_IMAGES}, such as train{_IMAGES}"
        )
    items = [item for split in splits for item in _of_part(domain, file, stat, split)]
    return Listing(items=tuple(sorted(items, key=lambda item: item.path)), ignored={})


def read_archived(item: Item) -> _RowContent:
    """Read one image.

    Raises:
        ImageError: It cannot be read, or the file has changed since it was found.
    """
    read_file(item.file, lambda stream: _check_unchanged(stream, item.stat))
    name = item.path.rpartition("#")[0] + _IMAGES
    with _ONE_AT_A_TIME:  # threads would decompress the same array side by side
        images = _array(item.file, item.stat, name)
    return _RowContent(np.ascontiguousarray(images[item.row or 0]), item.reading)


def _of_part(domain: Domain, file: str, stat: FileStat, split: str) -> Iterator[Item]:
    images = _array(file, stat, split + _IMAGES)
    _check_rows(f"{domain.path}, {split}{_IMAGES}", images.shape, images.dtype)
    labels = _labels(domain, file, stat, split) if domain.labelled else [NO_CLASS] * len(images)
    if len(labels) != len(images):
        raise StudyError(f"{domain.path}: {len(images)} images but {len(labels)} labels of {split}")
    for row, label in enumerate(labels):
        yield Item(f"{split}#{row}", label, file, row, stat, split=split)


def _labels(domain: Domain, file: str, stat: FileStat, split: str) -> list[str]:
    labels = _array(file, stat, split + _LABELS)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise StudyError(
            f"{domain.path}: {split}{_LABELS} has shape {labels.shape}, {labels.dtype}; allowed is "
            "one whole number an image. Of several findings an image, save one as the labels"
        )
    return [str(label) for label in labels.tolist()]


def _names(file: str, domain: Domain) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as cause:
        raise StudyError(f"{domain.path} is not a .npz file, or a damaged one ({cause})") from cause


@lru_cache(maxsize=2)  # by stat too: images and labels of the split that is being read
def _array(file: str, stat: FileStat, name: str) -> NDArray[Any]:  # noqa: ARG001 - part of the key
    try:
        with zipfile.ZipFile(file) as archive:
            size = archive.getinfo(f"{name}.npy").file_size
            if size > _MAX_BYTES:
                raise StudyError(
                    f"{file}: {name} has {size >> 30} GB, more than the {_MAX_BYTES >> 30} GB that "
                    "are read from a .npz file: save each class as a stack CLASS.npy"
                )
            with archive.open(f"{name}.npy") as stream:
                return npy.read_array(stream, allow_pickle=False)
    except KeyError as cause:
        raise StudyError(f"{file} has no array {name}") from cause
    except OSError as cause:
        raise ImageError(f"cannot be read: {cause}") from cause
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as cause:
        raise StudyError(f"{file}: {name} is damaged, or no plain array ({cause})") from cause
