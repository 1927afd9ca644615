"""One ``.npz`` file with images and labels of each split, as MedMNIST ships them.

Arrays ``train_images`` and ``train_labels``, the same with ``val`` and ``test``; any name
before ``_images`` will do. Labels are whole numbers, one an image; they name the classes.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.items import NO_CLASS, FileStat, Item, Listing, read_file
from pipeline.data.npy_stacks import RowContent, check_rows, check_unchanged
from pipeline.errors import ImageError, StudyError
from pipeline.study import Domain

_IMAGES, _LABELS = "_images", "_labels"
#: An array is decompressed as a whole and stays in memory while its rows are read.
_MAX_BYTES = 4 << 30
_ONE_AT_A_TIME = Lock()


def is_archive(path: Path) -> bool:
    """Whether a domain's path is such a file."""
    return path.suffix.lower() == ".npz"


def scan(domain: Domain) -> Listing:
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
    items = [item for split in splits for item in _items(domain, file, stat, split)]
    return Listing(items=tuple(sorted(items, key=lambda item: item.path)), ignored={})


def read(item: Item) -> RowContent:
    """Read one image.

    Raises:
        ImageError: It cannot be read, or the file has changed since it was found.
    """
    read_file(item.file, lambda stream: check_unchanged(stream, item.stat))
    name = item.path.rpartition("#")[0] + _IMAGES
    with _ONE_AT_A_TIME:  # threads would decompress the same array side by side
        images = _array(item.file, item.stat, name)
    return RowContent(np.ascontiguousarray(images[item.row or 0]), item.reading)


def _items(domain: Domain, file: str, stat: FileStat, split: str) -> Iterator[Item]:
    images = _array(file, stat, split + _IMAGES)
    check_rows(f"{domain.path}, {split}{_IMAGES}", images.shape, images.dtype)
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
                return np.lib.format.read_array(stream, allow_pickle=False)
    except KeyError as cause:
        raise StudyError(f"{file} has no array {name}") from cause
    except OSError as cause:
        raise ImageError(f"cannot be read: {cause}") from cause
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as cause:
        raise StudyError(f"{file}: {name} is damaged, or no plain array ({cause})") from cause
