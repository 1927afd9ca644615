"""Layouts of folders that would be read wrongly without a word, and the line that corrects them.

Class folders are one level below a domain's folder. What people have is often one level
higher, divided into splits, accompanied by masks, or there twice.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.items import Item
from pipeline.data.patients import SPLIT_NAMES
from pipeline.errors import StudyError
from pipeline.study import Domain
from pipeline.words import printable

_LOG = logging.getLogger(__name__)
#: Names of folders that hold splits; the first that is there is proposed.
_SPLITS = [name for names in SPLIT_NAMES.values() for name in names]
#: A folder with more folders than this holds patients, not classes.
_MOST_CLASSES = 30
_MASKS = {"mask", "masks", "segmentation", "segmentations", "annotation", "annotations"}


@dataclass(frozen=True, kw_only=True)
class WrongLayout:
    """What is wrong with the layout of a domain's folder.

    Attributes:
        text: What is there, a sentence without its full stop.
        path: The folder below the domain's that has the classes; empty where it is the same.
        ignore: Patterns of paths to leave out.
        silent: Whether it would be read without an error.
    """

    text: str
    path: str = ""
    ignore: tuple[str, ...] = ()
    silent: bool = True

    def setting(self, root: Path) -> str:
        """The line of the study file that corrects it, for a domain of this folder."""
        if self.path:
            return f"path = {json.dumps(str(root / self.path), ensure_ascii=False)}"
        return f"ignore = {json.dumps(self.ignore, ensure_ascii=False)}"


def wrong_layout(items: Sequence[Item]) -> WrongLayout | None:
    """What is wrong with the layout of class folders; None where nothing is seen.

    Args:
        items: Images of a domain; rows of stacks have no folders.
    """
    folders = _folders([item.path for item in items if item.row is None])
    return _splits(folders) or _classes_again(folders) or _masks(folders) or _too_high(folders)


def check_layout(domain: Domain, items: Sequence[Item]) -> None:
    """Refuse class folders that would be read as other classes or other images than are meant.

    Splits in the class folders are a warning.

    Raises:
        StudyError: With the line of the study file that corrects it.
    """
    layout = wrong_layout(items)
    if layout is not None and layout.silent:
        raise StudyError(
            f"{domain.name}: in {domain.path} {layout.text}. Write {layout.setting(domain.path)}, "
            "or ignore = [] if it is meant as it is"
        )
    if splits := _splits_below_classes(items):
        _LOG.warning(
            "%s: the class folders are divided into %s; all of their images are taken. To leave "
            'one out, write for example ignore = ["*/%s/*"]',
            *(domain.name, ", ".join(splits), splits[-1]),
        )


def layout_hint(domain: Domain, items: Sequence[Item]) -> str:
    """What the layout of a domain's folder says about an error in its classes, or nothing."""
    layout = wrong_layout(items)
    if layout is None:
        return ""
    return f". In {domain.path} {layout.text}: perhaps {layout.setting(domain.path)} is meant"


def _splits_below_classes(items: Sequence[Item]) -> list[str]:
    """Names of splits that lie in class folders; their images all count, whatever the split."""
    folders = _folders([item.path for item in items if item.row is None])
    below = dict.fromkeys(name for names in folders.values() for name in names)
    splits = [name for name in below if name.casefold() in _SPLITS]
    return splits if len(splits) > 1 else []


def _folders(paths: Sequence[str]) -> dict[str, list[str]]:
    """Names of the folders below each class folder; an empty name for images directly in it."""
    below: dict[str, dict[str, None]] = {}
    for path in paths:
        first, *rest = path.split("/")
        below.setdefault(first, {})[rest[0] if len(rest) > 1 else ""] = None
    return {name: list(names) for name, names in below.items()}


def _splits(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """``train`` and ``test``, each with the classes in it."""
    splits = [name for name in folders if name.casefold() in _SPLITS]
    if len(splits) < 2 or any(len(folders[name]) < 2 or "" in folders[name] for name in splits):
        return None
    first = min(splits, key=lambda name: _SPLITS.index(name.casefold()))
    return WrongLayout(
        text=f"the folders {_listed(splits)} are splits, and the classes {_listed(folders[first])} "
        'lie in them; split = "given" keeps train and validation as they are, and [test.NAME] with '
        'split = "test" adds a test part',
        path=first,
    )


def _classes_again(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """A class folder that holds folders called like the other classes."""
    for name, below in folders.items():
        others = [other for other in below if other in folders and other != name]
        if len(others) > 1:
            return WrongLayout(
                text=f"the folder {printable(name)!r} holds the classes {_listed(others)} again",
                ignore=(f"{_escaped(name)}/*",),
            )
    return None


def _masks(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """Masks beside the images of a class."""
    masks = {
        name: None
        for below in folders.values()
        for name in below
        if name.casefold() in _MASKS and len(below) > 1
    }
    if not masks:
        return None
    return WrongLayout(
        text=f"the class folders have images in folders called {_listed([*masks])}, as if they "
        "were pictures of their own",
        ignore=tuple(f"*/{_escaped(name)}/*" for name in masks),
    )


def _too_high(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """One folder, in which the classes lie."""
    if len(folders) != 1:
        return None
    ((name, below),) = folders.items()
    if not 2 <= len(below) <= _MOST_CLASSES or "" in below:
        return None
    return WrongLayout(
        text=f"its only folder {printable(name)!r} holds the folders {_listed(below)}",
        path=name,
        silent=False,
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(printable, names[:4])) + more


def _escaped(name: str) -> str:
    """A name as a pattern that it alone matches."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
