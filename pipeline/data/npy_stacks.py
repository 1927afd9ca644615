"""Folders of .npy stacks: each file holds images of one class along its first axis.

Rows are read, not mapped: of a mapped file that gets shorter, or whose disk fails, the
system kills the process instead of raising an error. Nothing is unpickled.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.data.facts import facts_of_array
from pipeline.data.images import PixelPolicy, Pixels, check_size, resize_pixels
from pipeline.data.items import (
    NO_CLASS,
    FileStat,
    Item,
    Listing,
    Walk,
    is_folder,
    read_file,
)
from pipeline.errors import ImageError, StudyError
from pipeline.words import composed

HAS_ROWS = True
_SUFFIXES = (".npy",)
_ALLOWED = "allowed are (n, H, W) and (n, H, W, 3), uint8"
_HEADERS: Mapping[tuple[int, int], Callable[..., Any]] = MappingProxyType(
    {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
)


@dataclass(frozen=True)
class _RowContent:
    """An image of a stack in memory; see :class:`pipeline.data.items.Content`.

    Attributes:
        row: Shape ``(H, W)`` or ``(H, W, 3)``, uint8, C order.
    """

    row: Pixels

    @property
    def key(self) -> bytes:
        """SHA-256 over dtype, shape and bytes: moving a row to another file keeps it."""
        digest = hashlib.sha256(f"{self.row.dtype.str}|{self.row.shape}|".encode())
        digest.update(self.row.data)
        return digest.digest()

    def pixels(self, policy: PixelPolicy) -> Pixels:
        """See :func:`pipeline.data.images.resize_pixels`."""
        return resize_pixels(self.row, policy)

    def facts(self) -> NDArray[Any]:
        """See :func:`pipeline.data.facts.facts_of_array`."""
        return facts_of_array(self.row)


@dataclass(frozen=True)
class _Header:
    """Where the rows of a stack are: their number, shape, and the first one's offset."""

    rows: int
    shape: tuple[int, ...]
    offset: int


def is_sign(entry: "os.DirEntry[str]", *, labelled: bool) -> bool:  # noqa: ARG001 - one form
    """Whether an entry of the root shows that it holds stacks."""
    return entry.name.lower().endswith(_SUFFIXES) and not is_folder(entry)


def scan(root: Path, *, labelled: bool, ignore: tuple[str, ...] = ()) -> Listing:
    """Find the rows of each stack; ``test_normal.npy`` and ``normal.npy`` are one class.

    Raises:
        StudyError: A stack that is damaged, or of another shape or dtype than allowed.
    """
    walk = Walk(os.path.realpath(root), _SUFFIXES, ignore)
    stacks, _ = walk.entries()
    if not stacks:
        raise StudyError(f"{root} holds no .npy stack ({walk.listing().left_out})")
    return walk.listing(
        item
        for stack in stacks
        for item in _rows(stack, _class_of(stack.path) if labelled else NO_CLASS)
    )


def read(item: Item) -> _RowContent:
    """Read one row of a stack.

    Raises:
        ImageError: It cannot be read, or the file has changed since it was found.
    """
    return _RowContent(read_file(item.file, lambda stream: _row(stream, item)))


def _class_of(name: str) -> str:
    """``train_normal.npy`` and ``test_normal.npy`` hold the class normal."""
    stem = Path(name).stem
    return composed(stem.removeprefix("train_" if stem.startswith("train_") else "test_") or stem)


def _rows(stack: Item, label: str) -> list[Item]:
    header = _header(stack.file, stack.stat)
    return [
        Item(f"{stack.path}#{row}", label, stack.file, row, stack.stat)
        for row in range(header.rows)
    ]


def _row(stream: FileIO, item: Item) -> Pixels:
    now = FileStat.of(os.fstat(stream.fileno()))
    # Not the ctime: a new name or mode leaves every row where it was.
    if (now.size, now.mtime_ns, now.inode) != (item.stat.size, item.stat.mtime_ns, item.stat.inode):
        raise ImageError("its stack changed after it was listed; run again")
    header = _header(item.file, item.stat)
    length = math.prod(header.shape)
    stream.seek(header.offset + (item.row or 0) * length)
    data = stream.read(length)
    if len(data) < length:
        raise ImageError("truncated")
    return np.frombuffer(data, np.uint8).reshape(header.shape)


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
    if (declared := offset + math.prod(shape)) > stat.size:
        raise StudyError(
            f"{file} is truncated: shape {shape} needs {declared} bytes, the file has {stat.size}"
        )
    return _Header(shape[0], shape[1:], offset)


def _parse_header(stream: FileIO) -> tuple[tuple[int, ...], bool, "np.dtype[Any]", int]:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format")
    return *_HEADERS[version](stream), stream.tell()


def _check_rows(file: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
    if dtype.hasobject:
        raise StudyError(f"{file} holds Python objects, which are never loaded; {_ALLOWED}")
    is_stack = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if dtype != np.uint8 or not is_stack:
        raise StudyError(f"{file} has shape {shape}, {dtype}; {_ALLOWED}")
    if shape[0] < 1:
        raise StudyError(f"{file} has shape {shape}: it holds no image")
    try:
        check_size(shape[2], shape[1])
    except ImageError as cause:
        raise StudyError(f"{file} has shape {shape}: its images are {cause}; {_ALLOWED}") from cause
