"""The kinds of input: which images a domain has, and the content of each image.

Class folders hold their images at any depth; a split that came with the data lies above them, as
``train`` and others. To add a kind: one entry in ``KINDS``, and how it is recognised in
``_kinds_of`` and ``read_image``.
"""

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import MappingProxyType

from pipeline.data import arrays, tables
from pipeline.data.images import Content
from pipeline.data.items import (
    NO_CLASS,
    OF_STUDY,
    SUFFIXES,
    Item,
    Listing,
    images_in,
    is_folder,
    is_hidden,
    is_output,
    list_folder,
    read_file,
    read_lines,
)
from pipeline.data.patients import FIT, SPLIT_NAMES, SPLIT_OF, VALIDATION, split_of, text_in_path
from pipeline.data.tables import scan_table
from pipeline.errors import ImageError, StudyError
from pipeline.parallel import Mapper, in_turn
from pipeline.study import GIVEN, LIST, Domain, SourceDomain, Study
from pipeline.words import are, counted, printable

_LOG = logging.getLogger(__name__)
#: Why an image with changed content is refused; the next run may take it.
CHANGED = "changed while the run was under way; run again"
#: What to do where folders do not name the classes.
NO_FOLDERS = (
    "If folders are not the classes, write table = FILE, or label = 'PATTERN' for the class in the "
    r"path, such as label = '_([01])\.png$'"
)
#: An uncompressed image has at most 8 bytes per pixel.
_MAX_BYTES_PER_PIXEL = 10
#: A folder with more folders than this holds patients, not classes.
_MOST_CLASSES = 30
_MASKS = re.compile(r".*(?:mask|segmentation|annotation|ground[ _-]?truth)s?", re.IGNORECASE)
_MASK_FILE = re.compile(r"(.+)([ _-](?:mask|seg|segmentation|annotation))[ _-]?\d*", re.IGNORECASE)


# Class folders: each with its images at any depth.


def _scan_folders(domain: Domain, mapper: Mapper = in_turn) -> Listing:
    """Find the images of each class; without labels, all images.

    Files are recognised by their ending in any case; without an ending, by their first bytes.
    Links are followed if they lead to something inside the root.
    """
    listing = images_in(domain.path, ignore=domain.ignore or (), mapper=mapper)
    if domain.labelled or _is_folder_split(domain):
        listing = _by_folder(domain, listing)
    if not listing.items:
        what = "class folder" if domain.labelled else "image"
        raise StudyError(f"{domain.path} holds no {what} ({listing.left_out})")
    return listing


def _is_folder_split(domain: Domain) -> bool:
    """Whether the split is a folder above those of the classes."""
    return bool(domain.split) and not domain.split.endswith(LIST)


def _by_folder(domain: Domain, listing: Listing) -> Listing:
    """Images with the names of their folders as label and split."""
    items = []
    for item in listing.items:
        *folders, _ = item.name.split("/")
        split = folders.pop(0) if _is_folder_split(domain) and folders else ""
        label = text_in_path(item.name, domain.label) if domain.label else next(iter(folders), None)
        if label or not domain.labelled:
            label = (domain.labelled and label) or NO_CLASS
            items.append(replace(item, label=label, split=split))
    for folder, left_out in listing.empty.items() if not domain.label else ():
        raise StudyError(
            f"{domain.path}/{folder}: the class folder holds no image ({left_out}). Put its "
            f"images there, or remove the folder. {NO_FOLDERS}"
        )
    if domain.label and listing.items and not items:
        first = printable(listing.items[0].path)
        raise StudyError(f"{domain.name}: label = {domain.label!r} finds no class; first: {first}")
    why = "without a class" if domain.label else "not in a class folder"
    ignored = Counter(listing.ignored) + Counter({why: len(listing.items) - len(items)})
    return replace(listing, items=tuple(items), ignored=ignored)


# Layouts of class folders that would be read wrongly without an error: one level too high, divided
# into splits, with masks beside the images, or classes twice; and the line that corrects them.


@dataclass(frozen=True, kw_only=True)
class WrongLayout:
    """What is wrong with the layout of a domain's folder.

    Attributes:
        text: What was found, a sentence without its full stop.
        path: The subfolder that has the classes; empty if it is the domain's folder itself.
        ignore: Patterns of paths to leave out.
        splits: Names of the folders of a divided data set.
    """

    text: str
    path: str = ""
    ignore: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def setting(self, root: Path) -> str:
        """The line of the study file that corrects it, for a domain of this folder."""
        if not (self.path or self.ignore):
            return "table = FILE, a CSV with the columns path, label and patient"
        if self.path:
            return f"path = {json.dumps(str(root / self.path), ensure_ascii=False)}"
        return f"ignore = {json.dumps(self.ignore, ensure_ascii=False)}"


def wrong_layout(domain: Domain, items: Sequence[Item]) -> WrongLayout | None:
    """What is wrong with the layout of the class folders of a domain; None if nothing is."""
    paths = [item.path for item in items if item.row is None]
    if in_splits := _is_folder_split(domain):
        paths = [path.partition("/")[2] for path in paths]
    folders = _folders(paths)
    layout = _classes_again(folders) or _masks(paths)
    if in_splits:
        return layout and replace(
            layout, ignore=tuple(f"*/{pattern.removeprefix('*/')}" for pattern in layout.ignore)
        )
    if not (layout := _splits(folders) or layout) and _numbered(folders):
        names = _listed([*folders])
        text = f"the folders {names} are numbered like patients, and each would be a class"
        return WrongLayout(text=text)
    return layout or _too_high(paths)


def check_layout(domain: Domain, items: Sequence[Item]) -> None:
    """Refuse class folders that would be read as wrong classes or wrong images.

    The StudyError gives the line that corrects it. Equal subfolders in every class folder cause
    a warning.
    """
    layout = wrong_layout(domain, items)
    # One level too high is one class only, which is refused where classes are named.
    if layout and (layout.splits or layout.ignore or not (layout.path or domain.label)):
        raise StudyError(
            f"{domain.name}: in {domain.path} {layout.text}. Write {layout.setting(domain.path)}, "
            "or ignore = [] if it is meant as it is"
        )
    if not (_is_folder_split(domain) or domain.label) and (text := folders_in_classes(items)):
        _LOG.warning("%s: %s", domain.name, text)


def folders_in_classes(items: Sequence[Item]) -> str:
    """A message about equal subfolders in all classes, such as splits; empty if there are none."""
    paths = [item.path for item in items if item.row is None]
    folders = _folders(paths)
    below = dict.fromkeys(name for names in folders.values() for name in names)
    deeper = dict.fromkeys(name for path in paths for name in path.split("/")[1:-1])
    splits = [name for name in deeper if name.casefold() in SPLIT_OF]
    same = len(folders) > 1 and all(set(names) == set(below) for names in folders.values())
    if len(splits) < 2 and not (same and "" not in below and 1 < len(below) <= _MOST_CLASSES):
        return ""
    names = splits if len(splits) > 1 else [*below]
    return (
        f"the class folders {_listed([*folders])} hold the folders {_listed(names)}; all of their "
        "images are taken. To leave one out, write for example ignore = "
        f'["*/{_escaped(names[-1])}/*"]. If the classes are these, or lie in them, the path is one '
        f"level too high: add /{next(iter(folders))} to it, and make the others targets"
    )


def layout_hint(domain: Domain, items: Sequence[Item]) -> str:
    """A hint at the layout of a domain's folder, for an error in its classes; or nothing."""
    if layout := wrong_layout(domain, items):
        return f". In {domain.path} {layout.text}: perhaps {layout.setting(domain.path)} is meant"
    return ""


def _folders(paths: Sequence[str]) -> dict[str, list[str]]:
    """Names of the subfolders of each class folder; an empty name for images directly in it."""
    below: dict[str, dict[str, None]] = {}
    for path in paths:
        first, *rest = path.split("/")
        below.setdefault(first, {})[rest[0] if len(rest) > 1 else ""] = None
    return {name: list(names) for name, names in below.items()}


def _splits(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """Folders such as ``train`` that hold the classes; some may hold images without a class.

    Names such as ``Test_Set`` count if all folders have such a name.
    """
    named = {name: split_of(name) for name in folders}
    all_parts = "" not in named.values() and len({*named.values()}) > 1
    parts = [name for name in folders if all_parts or name.casefold() in SPLIT_OF]
    divided = [name for name in parts if len(folders[name]) > 1 and "" not in folders[name]]
    alone = all(folders[name] == [""] for name in folders if name not in divided)
    first, text = "", "and no classes lie in them"
    if divided and len(folders) > 1 and (len(parts) > 1 or alone):
        first = min(divided, key=lambda name: [*SPLIT_NAMES].index(named[name]))
        text = (
            f'and the classes {_listed(folders[first])} lie in them; split = "given" keeps train '
            'and validation as they are, and [test.NAME] with split = "test" adds a test part'
        )
    elif not all_parts:
        return None
    return WrongLayout(
        text=f"the folders called {_listed(parts)} are splits, {text}",
        path=first,
        splits=tuple(parts),
    )


def _classes_again(folders: Mapping[str, Sequence[str]]) -> WrongLayout | None:
    """A class folder whose subfolders have the names of the other classes."""
    for name, below in folders.items():
        others = [other for other in below if other in folders and other != name]
        if len(others) > 1:
            return WrongLayout(
                text=f"the folder {printable(name)!r} holds the classes {_listed(others)} again",
                ignore=(f"{_escaped(name)}/*",),
            )
    return None


def _masks(paths: Sequence[str]) -> WrongLayout | None:
    """Folders of masks beside images, or files such as ``1_mask.png`` beside ``1.png``."""
    below: dict[str, set[str]] = defaultdict(set)
    for folder in {path.rpartition("/")[0] for path in paths}:
        below[folder].add("")
        names = folder.split("/")
        for depth, name in enumerate(names):
            below["/".join(names[:depth])].add(name)
    ignore = {
        f"{'*/' if above else ''}{_escaped(name)}/*": name
        for above, names in sorted(below.items())
        for name in sorted(names)
        if _MASKS.fullmatch(name) and not all(map(_MASKS.fullmatch, names))
    }
    what = f"images in folders called {_listed([*ignore.values()])}"
    if not ignore:
        stems = {path.rpartition(".")[0] for path in paths}
        matches = (_MASK_FILE.fullmatch(stem) for stem in stems)
        endings = Counter(match[2] for match in matches if match and match[1] in stems)
        if endings.total() < 2:
            return None
        ignore = {f"*{ending}*": ending for ending in sorted(endings)}
        what = f"{endings.total()} files with {_listed([*endings])} in their names"
    return WrongLayout(text=f"{what} would be taken as images of their own", ignore=tuple(ignore))


def _numbered(names: Collection[str]) -> bool:
    """Whether names are those of patients: all have a long number, or a hash, and the same text."""
    texts = {re.sub(r"[0-9a-f]{16,}|\d+", "", name) for name in names}
    numbers = all(re.search(r"\d{3,}|[0-9a-f]{16,}", name) for name in names)
    return len(names) > 2 and len(texts) == 1 and numbers


def _too_high(paths: Sequence[str]) -> WrongLayout | None:
    """A single folder, or one inside another, that holds the classes."""
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
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(printable, names[:4])) + more


def _escaped(name: str) -> str:
    """A pattern that matches only this name."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


# Every kind.


#: The function that lists the images of each kind of input.
KINDS: Mapping[str, Callable[[Domain, Mapper], Listing]] = MappingProxyType(
    {
        "a table": scan_table,
        "a .npz file": lambda domain, _: arrays.scan_archive(domain),
        "class folders": _scan_folders,
        ".npy stacks": lambda domain, _: arrays.scan_stacks(domain),
    }
)


def scan(domain: Domain, mapper: Mapper = in_turn) -> Listing:
    """List the images of one domain, by its kind of input.

    If the source keeps the split of its data, each image has the split ``fit`` or
    ``validation``; otherwise no image has one.

    Raises:
        StudyError: No such folder, no kind of input or several in it, or one that cannot be used.
    """
    if isinstance(domain, SourceDomain) and isinstance(domain.validation, Path):
        return _with_validation(domain, domain.validation, mapper)
    return _of_split(domain, list_images(domain, mapper))


def list_images(domain: Domain, mapper: Mapper = in_turn) -> Listing:
    """As :func:`scan`, but all parts of the data, with the data's own names of the splits."""
    for path in (domain.path, domain.table.file if domain.table else domain.path):
        if not os.path.exists(path):  # noqa: PTH110 - of what no path can be, Path raises
            raise StudyError(f"{printable(str(path))} is not there: is its disk connected?")
    kinds = _kinds_of(domain)
    if len(kinds) == 1:
        return KINDS[kinds[0]](domain, mapper)
    folders, hint = "images at any depth", ""
    if domain.labelled:
        folders = "a folder for each class with images at any depth"
        hint = f'. {NO_FOLDERS}. Without labels (of a target) write labels = "absent"'
    raise StudyError(
        f"{domain.path} holds {' and '.join(kinds) or 'no input'}; allowed is one of: "
        f"{folders}, .npy stacks (n, H, W) or (n, H, W, 3), one class a file, a .npz file, or a "
        f"table = FILE of images{hint}"
    )


def warn_of_unnamed_findings(study: Study) -> None:
    """Warn about findings that a table does not name, before a network has run for an hour."""
    for finding in study.findings:
        for domain in study.of_finding(finding).domains:
            if domain.table is not None and domain.labelled:
                try:
                    (arrays if arrays.is_archive(domain.path) else tables).check_finding(domain)
                except (StudyError, ImageError) as unnamed:
                    _LOG.warning("%s", unnamed)


def _kinds_of(domain: Domain) -> list[str]:
    """The kinds of input that a domain could be."""
    if arrays.is_archive(domain.path):
        return ["a .npz file"]
    if domain.table is not None:
        return ["a table"]
    listed = list_folder(domain.path)
    entries = [entry for entry in listed if not is_hidden(entry) and not is_output(entry)]
    folders = any(map(is_folder, entries))
    images = any(e.name.lower().endswith(SUFFIXES) or "." not in e.name for e in entries)
    kinds = {
        "class folders": folders or (images and (domain.label or not domain.labelled)),
        ".npy stacks": not domain.label and any(map(arrays.is_stack, entries)),
    }
    return [kind for kind, applies in kinds.items() if applies]


def _with_validation(domain: SourceDomain, held_out: Path, mapper: Mapper) -> Listing:
    """The images of the source, and those of a second folder or file that are held out."""
    whole = replace(domain, validation=SourceDomain.validation)
    is_table = domain.table is not None and not arrays.is_archive(domain.path)
    table = domain.table and replace(domain.table, file=held_out)
    other = replace(whole, table=table, path=domain.path if is_table else held_out)
    fit, validation = scan(whole, mapper), scan(other, mapper)
    # Where it lies as seen from the source, so that no two images have one name.
    prefix = "" if is_table else Path(os.path.relpath(held_out, domain.path)).as_posix() + "/"
    items = (replace(item, split=FIT) for item in fit.items)
    others = (replace(i, split=VALIDATION, path=prefix + i.path) for i in validation.items)
    return Listing.joined(
        [replace(fit, items=tuple(items)), replace(validation, items=tuple(others))]
    )


def _of_split(domain: Domain, listing: Listing) -> Listing:
    """The images of the part that the domain asks for, with our names of the splits."""
    parts = list(dict.fromkeys(item.split for item in listing.items if item.split))
    if domain.split.endswith(LIST):
        items = _named_in_list(domain, listing)
    elif domain.split:
        splits = _splits_of_parts(domain, parts)
        items = [replace(i, split=splits[i.split]) for i in listing.items if i.split in splits]
    else:
        items = [replace(i, split="") if i.split else i for i in listing.items]
        if len(parts) > 1:
            _LOG.warning(
                "%s: the data are divided into %s; all are taken. To take a part, write split = "
                '"%s", or "given" for the source',
                *(domain.name, ", ".join(map(printable, parts)), parts[0]),
            )
    other = Counter({"of another split": len(listing.items) - len(items)})
    ignored = Counter(listing.ignored) + other
    del ignored[OF_STUDY]
    return replace(listing, items=tuple(items), ignored=ignored)


def _splits_of_parts(domain: Domain, parts: Sequence[str]) -> dict[str, str]:
    """Our name of the split for each part that the domain asks for; empty for a single part."""
    if domain.split == GIVEN:
        splits = {part: split_of(part) for part in parts}
        splits = {part: split for part, split in splits.items() if split in (FIT, VALIDATION)}
    else:
        splits = {part: "" for part in parts if part.casefold() == domain.split.casefold()}
    if len(set(splits.values())) < 1 + (domain.split == GIVEN):
        raise StudyError(
            f'{domain.name}: split = "{domain.split}" finds no such parts; the data have '
            f'{", ".join(map(printable, parts)) or "none"}. For "given" there must be one of '
            f"{', '.join(SPLIT_NAMES[FIT])} and one of {', '.join(SPLIT_NAMES[VALIDATION])}"
        )
    return splits


def _named_in_list(domain: Domain, listing: Listing) -> list[Item]:
    """The images that a text file names, by path or file name."""
    names = set(read_lines(Path(domain.split)))
    names_of = {i: {i.name, Path(i.name).name} & names for i in listing.items}
    items = [replace(item, split="") for item, its_names in names_of.items() if its_names]
    if not items:
        raise StudyError(f"{domain.name}: {domain.split} names no image of {domain.path}")
    if absent := sorted(names.difference(*names_of.values())):
        _LOG.warning(
            "%s: %s of %s not below %s; first: %s",
            *(domain.name, counted(len(absent), "name"), f"{domain.split} {are(len(absent))}"),
            *(domain.path, printable(absent[0])),
        )
    return items


def read_image(item: Item, key: bytes | None = None) -> Content:
    """Read an image, once: its key and its pixels come from the same bytes.

    Raises:
        ImageError: It cannot be read, or has another content key than the one given.
    """
    limit = _MAX_BYTES_PER_PIXEL * item.options.max_pixels
    if item.row is None and item.stat.size > limit:
        raise ImageError(f"too large ({item.stat.size} bytes, limit {limit})")
    data = read_file(item.file, FileIO.readall) if item.row is None else arrays.read_row(item)
    content = Content(data, item.options)
    if key is not None and content.key != key:
        raise ImageError(CHANGED)
    return content
