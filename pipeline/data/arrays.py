"""Images in NumPy arrays: folders of ``.npy`` stacks, and ``.npz`` files.

A stack holds images of one class. A ``.npz`` file is as MedMNIST ships it: ``train_images`` and
``train_labels``, the same with ``val`` and ``test`` or any other name. A column of labels holds
classes, several columns findings: 1, 0, or -1 without a label. Nothing is unpickled.

Rows of stacks are read, not mapped: if a mapped file gets shorter, or its disk fails, the system
kills the process instead of raising an error.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from io import FileIO
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.data.items import (
    NO_CLASS,
    FileStat,
    Item,
    Listing,
    ReadOptions,
    files_in,
    is_folder,
    read_file,
)
from pipeline.data.tables import Row, Table
from pipeline.errors import ImageError, StudyError
from pipeline.study import ARCHIVE, Domain, ImageTable
from pipeline.words import printable

_SUFFIXES = (".npy",)
_IMAGES, _LABELS = "_images", "_labels"
#: An array of a .npz file is decompressed as a whole, and kept while its rows are read.
_MAX_BYTES = 4 << 30
_UNPACKING = Lock()
_ALLOWED = "allowed are (n, H, W) and (n, H, W, 3 or 1), numbers of up to 64 bits"
_HEADERS: Mapping[tuple[int, int], Callable[..., Any]] = MappingProxyType(
    {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: "np.dtype[Any]"
    offset: int  # of its first value


def _parse_header(stream: IO[bytes]) -> _Header:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format")
    shape, is_fortran, dtype = _HEADERS[version](stream)
    return _Header(shape, is_fortran, dtype, stream.tell())


def _check_images(name: str, header: _Header) -> None:
    """Refuse an array that is not a stack of images."""
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise StudyError(f"{name} holds Python objects, which are never loaded; {_ALLOWED}")
    is_stack = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype.kind not in "uif" or dtype.itemsize > 8 or not is_stack:
        raise StudyError(f"{name} has shape {shape}, {dtype}; {_ALLOWED}")
    if shape[0] < 1:
        raise StudyError(f"{name} has shape {shape}: it holds no image")
    try:
        ReadOptions().check_size(shape[2], shape[1])
    except ImageError as cause:
        raise StudyError(f"{name} has shape {shape}: its images are {cause}; {_ALLOWED}") from cause


def read_row(item: Item) -> NDArray[Any]:
    """Read one image; an ImageError if the file has changed since it was listed."""
    return read_file(item.file, lambda stream: _row(stream, item))


def _row(stream: FileIO, item: Item) -> NDArray[Any]:
    now = FileStat.of(os.fstat(stream.fileno()))
    # Not the ctime: a new name or mode leaves every row where it was.
    if (now.size, now.mtime_ns, now.inode) != (item.stat.size, item.stat.mtime_ns, item.stat.inode):
        raise ImageError("its stack changed after it was listed; run again")
    number = item.row or 0
    if is_archive(Path(item.file)):
        name = item.path.rpartition("#")[0].rpartition("/")[2] + _IMAGES
        with _UNPACKING:  # threads would decompress the same array side by side
            row = np.ascontiguousarray(_array(item.file, item.stat, name)[number])
    else:
        row = _row_of_stack(stream, _header(item.file, item.stat), number)
    return row[..., 0] if row.shape[2:] == (1,) else row


# Stacks: files of a folder.


def is_stack(entry: "os.DirEntry[str]") -> bool:
    """Whether a file in the root folder is a stack."""
    return entry.name.lower().endswith(_SUFFIXES) and not is_folder(entry)


def scan_stacks(domain: Domain) -> Listing:
    """List the rows of each stack; ``test_normal.npy`` and ``normal.npy`` are one class."""
    root = os.path.realpath(domain.path)
    files, _ = files_in(root, suffixes=_SUFFIXES, ignore=domain.ignore or ())
    if not files.items:
        raise StudyError(f"{domain.path} holds no .npy stack ({files.left_out})")
    items = [item for stack in files.items for item in _rows(stack, domain)]
    return replace(files, items=tuple(sorted(items, key=lambda item: item.path)))


def _rows(stack: Item, domain: Domain) -> list[Item]:
    """The images of a stack; ``train_normal.npy`` and ``test_normal.npy`` hold the class normal."""
    stem = Path(stack.name).stem
    part = next((p for p in ("train", "val", "test") if stem.startswith(f"{p}_")), "")
    label = (stem.removeprefix(f"{part}_") or stem) if domain.labelled else NO_CLASS
    return [
        replace(stack, path=f"{stack.path}#{row}", label=label, row=row, split=part)
        for row in range(_header(stack.file, stack.stat).shape[0])
    ]


def _row_of_stack(stream: FileIO, header: _Header, number: int) -> NDArray[Any]:
    length = math.prod(header.shape[1:]) * header.dtype.itemsize
    stream.seek(header.offset + number * length)
    data = stream.read(length)
    if len(data) < length:
        raise ImageError("truncated")
    return np.frombuffer(data, header.dtype).reshape(header.shape[1:])


@lru_cache(maxsize=64)  # by stat too, so a changed file is never read by an old header
def _header(file: str, stat: FileStat) -> _Header:
    try:
        header = read_file(file, _parse_header)
    except ImageError as cause:
        raise StudyError(f"{file}: {cause}") from cause
    except Exception as cause:  # numpy evaluates what the file says: anything can go wrong
        raise StudyError(f"{file} is not a .npy file, or a damaged one ({cause})") from cause
    _check_images(file, header)
    if header.is_fortran:
        raise StudyError(
            f"{file} is in Fortran order, which spreads an image over the whole file. Save it "
            "again with np.save(file, np.ascontiguousarray(array))"
        )
    needed = header.offset + math.prod(header.shape) * header.dtype.itemsize
    if needed > stat.size:
        raise StudyError(
            f"{file} is truncated: shape {header.shape} needs {needed} bytes, the file has "
            f"{stat.size}"
        )
    return header


# Archives: several arrays in one file.


def is_archive(path: Path) -> bool:
    """Whether a domain's path is such a file."""
    return path.suffix.lower() == ARCHIVE


def scan_archive(domain: Domain) -> Listing:
    """List the images of every split; without labels, all images."""
    file, stat = os.path.realpath(domain.path), FileStat.of(domain.path.stat())
    items, without_class = [], 0
    for part in _parts(domain.path):
        with _opened(file, part + _IMAGES) as stream:
            images = _parse_header(stream)
        _check_images(f"{domain.path}, {part}{_IMAGES}", images)
        rows = range(images.shape[0])
        none: list[str | None] = [NO_CLASS] * len(rows)
        labels = _labels(domain, part) if domain.labelled else none
        if len(labels) != len(rows):
            raise StudyError(
                f"{domain.path}: {len(rows)} images but {len(labels)} labels of {part}"
            )
        without_class += labels.count(None)
        items += [
            Item(f"{part}#{row}", label, file, row, stat, split=part)
            for row, label in zip(rows, labels, strict=True)
            if label is not None
        ]
    ignored = {"without a class of `values`": without_class} if without_class else {}
    return Listing(items=tuple(sorted(items, key=lambda item: item.path)), ignored=ignored)


def findings_of_archive(path: Path) -> list[str]:
    """The column numbers of its labels; empty if there is only one column."""
    with _opened(str(path), _parts(path)[0] + _LABELS) as stream:
        shape = _parse_header(stream).shape
    return [str(k) for k in range(shape[1])] if len(shape) == 2 and shape[1] > 1 else []


def check_finding(domain: Domain) -> None:
    """Refuse an archive whose labels have no column for the domain's finding."""
    for part in _parts(domain.path):
        _labels(domain, part)


def _parts(path: Path) -> list[str]:
    """Names of the arrays of images, without their ending."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, NotImplementedError, zipfile.BadZipFile) as cause:
        raise StudyError(f"{path} is not a .npz file, or a damaged one ({cause})") from cause
    parts = [name.removesuffix(_IMAGES) for name in names if name.endswith(_IMAGES)]
    if not parts:
        raise StudyError(
            f"{path} holds no array called NAME{_IMAGES}, such as train{_IMAGES} beside "
            f"train{_LABELS}; it has {', '.join(map(printable, names[:10])) or 'none'}"
        )
    return parts


def _labels(domain: Domain, part: str) -> list[str | None]:
    """The class of each image; None if ``values`` does not name it.

    The labels are a table with a column for the class, or numbered columns for findings.
    """
    name = f"{domain.path}: {part}{_LABELS}"
    stat = FileStat.of(domain.path.stat())
    labels = _array(os.path.realpath(domain.path), stat, part + _LABELS)
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "uif":
        raise StudyError(
            f"{name} has shape {labels.shape}, {labels.dtype}; allowed are whole numbers, one or "
            "a row of them for each image"
        )
    columns = labels.reshape(len(labels), -1)
    numbers = [str(k) for k in range(columns.shape[1])]
    settings = domain.table or ImageTable(file=domain.path)
    finding = settings.finding
    if finding and not {*settings.values.get(finding, (finding,))} & {*numbers}:
        raise StudyError(
            f"{name} has columns 0 to {numbers[-1]}, and none is named {finding!r}. "
            f'Write values = {{{finding!r} = "0"}} with the number of its column'
        )
    if not finding and len(numbers) > 1:
        raise StudyError(
            f"{name} has shape {labels.shape}, several findings an image. Write above the first "
            'table findings = ["0", "1"], the numbers of columns, which go from 0 to '
            f"{numbers[-1]}"
        )
    header = Row(0, ["path", *(numbers if finding else ["label"])])
    table = Table(domain, Path(name), header, unit="row")
    rows = (Row(k, ["", *map(str, row)]) for k, row in enumerate(columns.tolist()))
    return [table.label(row) or (NO_CLASS if finding else None) for row in rows]


def _check_bytes(name: str, size: int) -> None:
    if size > _MAX_BYTES:
        raise StudyError(
            f"{name} has {size >> 30} GB, more than the {_MAX_BYTES >> 30} GB that are read from a "
            ".npz file: save each class as a stack CLASS.npy"
        )


@contextmanager
def _opened(file: str, name: str) -> Iterator[IO[bytes]]:
    """Open one array of an archive for reading; every fault of it is a StudyError."""
    try:
        with zipfile.ZipFile(file) as archive:
            _check_bytes(f"{file}: {name}", archive.getinfo(f"{name}.npy").file_size)
            with archive.open(f"{name}.npy") as stream:
                yield stream
    except KeyError as cause:
        raise StudyError(f"{file} has no array {name}") from cause
    except OSError as cause:
        raise ImageError(f"cannot be read: {cause}") from cause
    except StudyError:
        raise
    except Exception as cause:  # zipfile's and numpy's reading of it: anything can go wrong
        raise StudyError(f"{file}: {name} is damaged, or no plain array ({cause})") from cause


@lru_cache(maxsize=2)  # by stat too: arrays of train and validation, say
def _array(file: str, stat: FileStat, name: str) -> NDArray[Any]:  # noqa: ARG001 - part of the key
    with _opened(file, name) as stream:
        return npy.read_array(stream, allow_pickle=False)
