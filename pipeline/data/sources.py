"""The kinds of input there are: which images a folder holds, and the content of each.

To add a kind: a module with what :class:`InputKind` lists, and one entry in ``KINDS``.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from pipeline.data import class_folders, npy_stacks
from pipeline.data.items import Content, Item, Listing, is_hidden, list_folder
from pipeline.errors import ImageError, StudyError
from pipeline.words import counted

#: Why an image is refused whose content is not what it was; the next run may take it.
CHANGED = "changed while the run was under way; run again"


class InputKind(Protocol):
    """What the module of one kind of input offers.

    ``labelled`` says whether classes are asked for; without it the label of every item
    is empty.
    """

    @property
    def HAS_ROWS(self) -> bool:  # noqa: N802 - a constant of the module
        """Whether an item is a row of its file."""

    def is_sign(self, entry: "os.DirEntry[str]", *, labelled: bool) -> bool:
        """Whether a visible entry of the root shows that it is of this kind."""

    def scan(self, root: Path, *, labelled: bool, ignore: tuple[str, ...]) -> Listing:
        """List the images below the root, without those that a pattern matches."""

    def read(self, item: Item) -> Content:
        """Read one of them."""


KINDS: Mapping[str, InputKind] = MappingProxyType(
    {"class folders": class_folders, ".npy stacks": npy_stacks}
)


def scan(root: Path, *, labelled: bool = True, ignore: tuple[str, ...] = ()) -> Listing:
    """List the images of one domain, by the kind of input that its folder holds.

    Args:
        root: Folder of class folders, or of ``.npy`` stacks; without labels also of images
            that lie in it as they are.
        labelled: Whether folders and stacks name classes.
        ignore: Patterns of paths below the root to leave out, such as ``*/masks/*``.

    Raises:
        StudyError: No such folder; no kind of input or several in it; a class without
            an image; a stack that cannot be used.
    """
    entries = [entry for entry in list_folder(root) if not is_hidden(entry)]
    kinds = {
        name: kind
        for name, kind in KINDS.items()
        if any(kind.is_sign(entry, labelled=labelled) for entry in entries)
    }
    if len(kinds) == 1:
        return next(iter(kinds.values())).scan(root, labelled=labelled, ignore=ignore)
    if labelled:
        raise StudyError(
            f"{root} holds {' and '.join(kinds) or _described(entries)}; allowed is one of: "
            "a folder for each class with .jpg, .jpeg or .png files at any depth, or .npy "
            "stacks (n, H, W) or (n, H, W, 3), uint8, one class a file. Images of a target "
            'that nobody has labelled may lie in it as they are, with labels = "absent"'
        )
    raise StudyError(
        f"{root} holds {'images and .npy stacks' if kinds else _described(entries)}; allowed for "
        "a target without labels is one of: .jpg, .jpeg or .png files at any depth, or .npy "
        "stacks (n, H, W) or (n, H, W, 3), uint8"
    )


def read_image(item: Item, key: bytes | None = None) -> Content:
    """Read an image, once: its key and its pixels come from the same bytes.

    Args:
        item: Where it is.
        key: The content key that it must still have; None takes any.

    Raises:
        ImageError: It cannot be read, an input/output error only after three more tries;
            or its content has changed (:data:`CHANGED`).
    """
    kind = next(kind for kind in KINDS.values() if (item.row is not None) == kind.HAS_ROWS)
    content = kind.read(item)
    if key is not None and content.key != key:
        raise ImageError(CHANGED)
    return content


def _described(entries: list["os.DirEntry[str]"]) -> str:
    endings = Counter(Path(entry.name).suffix.lower() or "other" for entry in entries)
    return (
        ", ".join(counted(n, f"{ending} file") for ending, n in endings.most_common(4)) or "nothing"
    )
