"""Layouts of folders that would be read wrongly without a word, and the line that corrects them.

Class folders are one level below a domain's folder. What people have is often one level
higher, divided into splits, accompanied by masks, or there twice.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.items import Item
from pipeline.data.patients import SPLIT_NAMES
from pipeline.errors import StudyError
from pipeline.study import LIST, Domain
from pipeline.words import printable

_LOG = logging.getLogger(__name__)
#: Names of folders that hold splits; the first that is there is proposed.
_SPLITS = [name for names in SPLIT_NAMES.values() for name in names]
#: A folder with more folders than this holds patients, not classes.
_MOST_CLASSES = 30
_MASKS = {"mask", "masks", "segmentation", "segmentations", "annotation", "annotations"}
_MASK_FILE = re.compile(r"(.+)([ _-](?:mask|seg|segmentation|annotation))[ _-]?\d*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class WrongLayout:
    """What is wrong with the layout of a domain's folder.

    Attributes:
        text: What is there, a sentence without its full stop.
        path: The folder below the domain's that has the classes; empty where it is the same.
        ignore: Patterns of paths to leave out.
        splits: Folders of a divided data set, as they are called.
        silent: Whether it would be read without an error.
    """

    text: str
    path: str = ""
    ignore: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    silent: bool = True

    def setting(self, root: Path) -> str:
        """The line of the study file that corrects it, for a domain of this folder."""
        if not (self.path or self.ignore):
            return "table = FILE, a CSV with the columns path, label and patient"
        if self.path:
            return f"path = {json.dumps(str(root / self.path), ensure_ascii=False)}"
        return f"ignore = {json.dumps(self.ignore, ensure_ascii=False)}"


def wrong_layout(items: Sequence[Item], *, in_splits: bool = False) -> WrongLayout | None:
    """What is wrong with the layout of class folders; None where nothing is seen.

    Args:
        items: Images of a domain; rows of stacks have no folders.
        in_splits: Whether the class folders lie in those of splits.
    """
    paths = [item.path for item in items if item.row is None]
    if in_splits:
        paths = [path.partition("/")[2] for path in paths]
        folders = _folders(paths)
        layout = _classes_again(folders) or _masks(folders) or _mask_files(paths)
        return layout and replace(
            layout, ignore=tuple(f"*/{pattern.removeprefix('*/')}" for pattern in layout.ignore)
        )
    folders = _folders(paths)
    return (
        _splits(folders)
        or _classes_again(folders)
        or _masks(folders)
        or _mask_files(paths)
        or _patients(folders)
        or _too_high(paths)
    )


def check_layout(domain: Domain, items: Sequence[Item]) -> None:
    """Refuse class folders that would be read as other classes or other images than are meant.

    The StudyError has the line that corrects it; splits within class folders are a warning.
    """
    in_splits = bool(domain.split) and not domain.split.endswith(LIST)
    layout = wrong_layout(items, in_splits=in_splits)
    if layout is not None and layout.silent:
        raise StudyError(
            f"{domain.name}: in {domain.path} {layout.text}. Write {layout.setting(domain.path)}, "
            "or ignore = [] if it is meant as it is"
        )
    if not in_splits and (text := folders_in_classes(items)):
        _LOG.warning("%s: %s", domain.name, text)


def folders_in_classes(items: Sequence[Item]) -> str:
    """What to say of splits, or of other folders that are the same, in all classes; or nothing."""
    folders = _folders([item.path for item in items if item.row is None])
    below = dict.fromkeys(name for names in folders.values() for name in names)
    splits = [name for name in below if name.casefold() in _SPLITS]
    if len(splits) > 1:
        return (
            f"the class folders are divided into {', '.join(splits)}; all of their images are "
            f'taken. To leave one out, write for example ignore = ["*/{splits[-1]}/*"]'
        )
    same = all(set(names) == set(below) for names in folders.values()) and "" not in below
    if len(folders) > 1 and same and 1 < len(below) <= _MOST_CLASSES:
        return (
            f"each of the class folders {_listed([*folders])} holds the folders {_listed([*below])}"
            f". If these are the classes, the path is one level too high: add "
            f"/{next(iter(folders))} to it, and make the others targets"
        )
    return ""


def layout_hint(domain: Domain, items: Sequence[Item]) -> str:
    """What the layout of a domain's folder says about an error in its classes, or nothing."""
    layout = wrong_layout(items)
    if layout is None:
        return ""
    return f". In {domain.path} {layout.text}: perhaps {layout.setting(domain.path)} is meant"


def _folders(paths: Sequence[str]) -> dict[str, list[str]]:
    """Names of the folders below each class folder; an empty name for images directly in it."""
    below: dict[str, dict[str, None]] = {}
    for path in paths:
        first, *rest = path.split("/")
        below.setdefault(first, {})[rest[0] if len(rest) > 1 else ""] = None
    return {name: list(names) for name, names in below.items()}


def _splits(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """``train`` and others with the classes in them; some may hold images without a class."""
    named = [name for name in folders if name.casefold() in _SPLITS]
    divided = [name for name in named if len(folders[name]) > 1 and "" not in folders[name]]
    alone = all(folders[name] == [""] for name in folders if name not in divided)
    if not divided or len(folders) == 1 or not (len(named) > 1 or alone):
        return None
    first = min(divided, key=lambda name: _SPLITS.index(name.casefold()))
    return WrongLayout(
        text=f"the folders called {_listed(named)} are splits, and the classes "
        f'{_listed(folders[first])} lie in them; split = "given" keeps train and validation as '
        'they are, and [test.NAME] with split = "test" adds a test part',
        path=first,
        splits=tuple(named),
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
    """Masks beside the images of a class, or beside all classes."""
    masks = {
        f"*/{_escaped(name)}/*": name
        for below in folders.values()
        for name in below
        if name.casefold() in _MASKS and len(below) > 1
    }
    if len(folders) > 1:
        masks |= {f"{_escaped(n)}/*": n for n in folders if n.casefold() in _MASKS}
    if not masks:
        return None
    return WrongLayout(
        text=f"images in folders called {_listed([*masks.values()])} would be taken as if they "
        "were pictures of their own",
        ignore=tuple(masks),
    )


def _mask_files(paths: Sequence[str]) -> WrongLayout | None:
    """``1.png`` with ``1_mask.png`` beside it."""
    stems = {path.rpartition(".")[0] for path in paths}
    matches = (_MASK_FILE.fullmatch(stem) for stem in stems)
    endings = Counter(match[2] for match in matches if match and match[1] in stems)
    if endings.total() < 2:
        return None
    return WrongLayout(
        text=f"{endings.total()} files called as another with {_listed([*endings])} would be taken "
        "as if they were pictures of their own",
        ignore=tuple(f"*{ending}*" for ending in sorted(endings)),
    )


def _patients(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """Folders of patients, with the classes in them or in their names."""
    if not _numbered(folders):
        return None
    return WrongLayout(
        text=f"the folders {_listed([*folders])} are numbered as patients are, and each would be "
        "a class"
    )


def _numbered(names: Collection[str]) -> bool:
    """Whether names are a number of three digits or more, with the same text around it."""
    texts = {re.sub(r"\d{3,}", "", name, count=1) for name in names}
    return len(names) > 2 and len(texts) == 1 and not texts & set(names)


def _too_high(paths: Sequence[str]) -> WrongLayout | None:
    """One folder, or one in another, in which the classes lie."""
    above, folders = list[str](), _folders(paths)
    while len(folders) == 1 and "" not in next(iter(folders.values())):
        above += folders
        paths = [path.partition("/")[2] for path in paths]
        folders = _folders(paths)
    if not above or not 2 <= len(folders) <= _MOST_CLASSES or _numbered(folders):
        return None
    name = "/".join(above)
    return WrongLayout(
        text=f"its only folder {printable(name)!r} holds the folders {_listed([*folders])}",
        path=name,
        silent=False,
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(printable, names[:4])) + more


def _escaped(name: str) -> str:
    """A name as a pattern that it alone matches."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
