"""Folders of .npy stacks: each file holds images of one class along its first axis.

Rows are read, not mapped: of a mapped file that gets shorter, or whose disk fails, the
system kills the process instead of raising an error. Nothing is unpickled.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.data.facts import facts_of_array
from pipeline.data.grey_levels import NO_RANGE, Depth, Reading, scaled
from pipeline.data.images import PixelPolicy, Pixels, check_size, resize_pixels
from pipeline.data.items import (
    NO_CLASS,
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
_ALLOWED = "allowed are (n, H, W) and (n, H, W, 3), numbers of up to 64 bits"
_HEADERS: Mapping[tuple[int, int], Callable[..., Any]] = MappingProxyType(
    {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
)


@dataclass(frozen=True)
class RowContent:
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

    def pixels(self, policy: PixelPolicy) -> Pixels:
        """See :func:`pipeline.data.images.resize_pixels`."""
        return resize_pixels(self._levels(), policy)

    def facts(self) -> NDArray[Any]:
        """See :func:`pipeline.data.facts.facts_of_array`."""
        return facts_of_array(self._levels())

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


def is_sign(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry of the root shows that it holds stacks."""
    return entry.name.lower().endswith(_SUFFIXES) and not is_folder(entry)


def scan(domain: Domain) -> Listing:
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


def read(item: Item) -> RowContent:
    """Read one row of a stack.

    Raises:
        ImageError: It cannot be read, or the file has changed since it was found.
    """
    return RowContent(read_file(item.file, lambda stream: _row(stream, item)), item.reading)


def check_unchanged(stream: FileIO, stat: FileStat) -> None:
    """Refuse a file that is not what it was when it was found.

    Raises:
        ImageError: It has changed.
    """
    now = FileStat.of(os.fstat(stream.fileno()))
    # Not the ctime: a new name or mode leaves every row where it was.
    if (now.size, now.mtime_ns, now.inode) != (stat.size, stat.mtime_ns, stat.inode):
        raise ImageError("its stack changed after it was listed; run again")


def check_rows(file: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
    """Refuse an array that is no stack of images.

    Raises:
        StudyError: With what it is, and what is allowed.
    """
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
    check_unchanged(stream, item.stat)
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
    check_rows(file, shape, dtype)
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
