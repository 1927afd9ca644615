"""The kinds of input there are: which images a folder holds, and the content of each.

To add a kind: a module with ``scan`` and ``read``, and one entry in ``KINDS``.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from pipeline.data import class_folders, npy_stacks
from pipeline.data.items import NO_CLASS, Content, Item, Listing, system_reason
from pipeline.errors import ImageError, StudyError
from pipeline.words import counted

#: Why an image is refused whose content is not what it was; the next run may take it.
CHANGED = "changed while the run was under way; run again"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input.

    Attributes:
        is_mark: Whether a visible entry of the root shows that it is of this kind.
        scan: Lists the images below the root, with their classes.
        is_loose_mark: The same as ``is_mark`` where no class is asked for.
        scan_loose: Lists the images below the root, whatever their classes.
        read: Reads one of them.
        has_rows: Whether its items have a row.
    """

    is_mark: Callable[["os.DirEntry[str]"], bool]
    scan: Callable[[Path], Listing]
    is_loose_mark: Callable[["os.DirEntry[str]"], bool]
    scan_loose: Callable[[Path], Listing]
    read: Callable[[Item], Content]
    has_rows: bool


def scan(root: Path) -> Listing:
    """List the images of one domain, by the kind of input that its folder holds.

    Args:
        root: Folder of class folders, or of ``.npy`` stacks.

    Raises:
        StudyError: No such folder; no kind of input or several in it; a class without
            an image; a stack that cannot be used.
    """
    entries = _visible_entries(root)
    kinds = [name for name, kind in KINDS.items() if any(map(kind.is_mark, entries))]
    if len(kinds) != 1:
        raise StudyError(
            f"{root} holds {' and '.join(kinds) or _described(entries)}; allowed is one of: "
            "a folder for each class with .jpg, .jpeg or .png files at any depth, or .npy "
            "stacks (n, H, W) or (n, H, W, 3), uint8, one class a file. Images of a target "
            'that nobody has labelled may lie in it as they are, with labels = "absent"'
        )
    return KINDS[kinds[0]].scan(root)


def read_image(item: Item, key: bytes | None = None) -> Content:
    """Read an image, once: its key and its pixels come from the same bytes.

    Args:
        item: Where it is.
        key: The content key that it must still have; None takes any.

    Raises:
        ImageError: It cannot be read, an input/output error only after three more tries;
            or its content has changed (:data:`CHANGED`).
    """
    kind = next(k for k in KINDS.values() if k.has_rows == (item.row is not None))
    content = kind.read(item)
    if key is not None and content.key != key:
        raise ImageError(CHANGED)
    return content


def scan_unlabelled(root: Path) -> Listing:
    """List the images of a domain whose classes nobody knows; the label of each is empty.

    Args:
        root: Folder of images, flat or with folders of any meaning, or of ``.npy`` stacks.

    Raises:
        StudyError: No such folder; nothing of use or two kinds of input in it.
    """
    entries = _visible_entries(root)
    kinds = [name for name, kind in KINDS.items() if any(map(kind.is_loose_mark, entries))]
    if len(kinds) != 1:
        what = "images and .npy stacks" if kinds else _described(entries)
        raise StudyError(
            f"{root} holds {what}; allowed for a target without labels is one of: .jpg, .jpeg or "
            ".png files at any depth, or .npy stacks (n, H, W) or (n, H, W, 3), uint8"
        )
    found = KINDS[kinds[0]].scan_loose(root)
    return replace(found, items=tuple(replace(item, label=NO_CLASS) for item in found.items))


def _visible_entries(root: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(root) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as cause:
        raise StudyError(f"{root} cannot be listed: {system_reason(cause)}") from cause


def _described(entries: list["os.DirEntry[str]"]) -> str:
    endings = Counter(Path(entry.name).suffix.lower() or "other" for entry in entries)
    return (
        ", ".join(counted(n, f"{ending} file") for ending, n in endings.most_common(4)) or "nothing"
    )


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return os.path.isdir(entry.path)  # noqa: PTH112 - False, and no error, for a link to itself


def _may_hold_images(entry: "os.DirEntry[str]") -> bool:
    return entry.name.lower().endswith(class_folders.SUFFIXES) or _is_folder(entry)


def _is_stack(entry: "os.DirEntry[str]") -> bool:
    return entry.name.lower().endswith(npy_stacks.SUFFIXES) and not _is_folder(entry)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "class folders": Kind(
            is_mark=_is_folder,
            scan=class_folders.scan,
            is_loose_mark=_may_hold_images,
            scan_loose=class_folders.scan_loose,
            read=class_folders.read,
            has_rows=False,
        ),
        ".npy stacks": Kind(
            is_mark=_is_stack,
            scan=npy_stacks.scan,
            is_loose_mark=_is_stack,
            scan_loose=npy_stacks.scan,
            read=npy_stacks.read,
            has_rows=True,
        ),
    }
)
