"""The kinds of input there are: which images a domain has, and the content of each.

Class folders have their images at any depth; a division that came with the data lies above them,
as ``train`` and others. To add a kind: one entry in ``KINDS``, and what it is known by in
``_kinds_of`` and ``read_image``.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from pipeline.data import arrays
from pipeline.data.items import (
    NO_CLASS,
    SUFFIXES,
    Each,
    Item,
    Listing,
    images_below,
    in_turn,
    is_folder,
    is_hidden,
    is_written_here,
    list_folder,
    read_image_file,
)
from pipeline.data.patients import FIT, SPLIT_NAMES, VALIDATION
from pipeline.data.tables import read_lines, scan_table
from pipeline.errors import ImageError, StudyError
from pipeline.study import GIVEN, LIST, Domain, SourceDomain
from pipeline.words import are, composed, counted, printable

_LOG = logging.getLogger(__name__)
#: Why an image is refused whose content is not what it was; the next run may take it.
CHANGED = "changed while the run was under way; run again"


# Class folders: each with its images at any depth.


def _scan_folders(domain: Domain, each: Each = in_turn) -> Listing:
    """Find the images of each class; without labels all images, whatever their folders.

    Files are known by their ending, whatever its case, and without one by their first bytes.
    Links are followed to what is inside the root.
    """
    listing = images_below(domain.path, ignore=domain.ignore or (), each=each)
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
    """Images with the label and the split that the folders they lie in are called."""
    items = []
    for item in listing.items:
        *folders, _ = item.path.split("/")
        split = folders.pop(0) if _is_folder_split(domain) and folders else ""
        if folders or not domain.labelled:
            label = composed(folders[0]) if domain.labelled else NO_CLASS
            items.append(replace(item, label=label, split=split))
    for folder, left_out in listing.empty.items():
        raise StudyError(
            f"{domain.path}/{folder}: the class folder holds no image ({left_out}). Put its "
            "images there, or remove the folder"
        )
    ignored = Counter(listing.ignored) + Counter(
        {"not in a class folder": len(listing.items) - len(items)}
    )
    return replace(listing, items=tuple(items), ignored=ignored)


# Every kind.


#: What lists the images of each kind of input.
KINDS: Mapping[str, Callable[[Domain, Each], Listing]] = MappingProxyType(
    {
        "a table": scan_table,
        "a .npz file": lambda domain, _: arrays.scan_archive(domain),
        "class folders": _scan_folders,
        ".npy stacks": lambda domain, _: arrays.scan_stacks(domain),
    }
)


def scan(domain: Domain, each: Each = in_turn) -> Listing:
    """List the images of one domain, by the kind of input that it is.

    Of a source that is divided as it came, each image has the split ``fit`` or ``validation``;
    otherwise none has.

    Raises:
        StudyError: No such folder, no kind of input or several in it, or one that cannot be used.
    """
    if isinstance(domain, SourceDomain) and isinstance(domain.validation, Path):
        return _with_validation(domain, domain.validation, each)
    for path in (domain.path, domain.table.file if domain.table else domain.path):
        if not os.path.exists(path):  # noqa: PTH110 - of what no path can be, Path raises
            raise StudyError(f"{printable(str(path))} is not there: is its disk connected?")
    kinds = _kinds_of(domain)
    if len(kinds) == 1:
        return _of_split(domain, KINDS[kinds[0]](domain, each))
    folders, hint = "images at any depth", ""
    if domain.labelled:
        folders = "a folder for each class with images at any depth"
        hint = '. Images without labels may lie in a target as they are, with labels = "absent"'
    raise StudyError(
        f"{domain.path} holds {' and '.join(kinds) or 'no input'}; allowed is one of: "
        f"{folders}, .npy stacks (n, H, W) or (n, H, W, 3), one class a file, a .npz file, or a "
        f"table = FILE of images{hint}"
    )


def _kinds_of(domain: Domain) -> list[str]:
    """The kinds of input that a domain is."""
    if arrays.is_archive(domain.path):
        return ["a .npz file"]
    if domain.table is not None:
        return ["a table"]
    listed = list_folder(domain.path)
    entries = [entry for entry in listed if not is_hidden(entry) and not is_written_here(entry)]
    folders = any(map(is_folder, entries))
    images = any(e.name.lower().endswith(SUFFIXES) or "." not in e.name for e in entries)
    kinds = {
        "class folders": folders or (images and not domain.labelled),
        ".npy stacks": any(map(arrays.is_stack, entries)),
    }
    return [kind for kind, is_there in kinds.items() if is_there]


def _with_validation(domain: SourceDomain, held_out: Path, each: Each) -> Listing:
    """The source, and the images of a second folder or file that are held out."""
    whole = replace(domain, validation=SourceDomain.validation)
    is_table = domain.table is not None and not arrays.is_archive(domain.path)
    table = domain.table and replace(domain.table, file=held_out)
    other = replace(whole, table=table, path=domain.path if is_table else held_out)
    fit, validation = scan(whole, each), scan(other, each)
    # Where it lies as seen from the source, so that no two images have one name.
    prefix = "" if is_table else Path(os.path.relpath(held_out, domain.path)).as_posix() + "/"
    items = [replace(item, split=FIT) for item in fit.items]
    items += [replace(item, split=VALIDATION, path=prefix + item.path) for item in validation.items]
    return Listing(
        items=tuple(sorted(items, key=lambda item: item.path)),
        ignored=Counter(fit.ignored) + Counter(validation.ignored),
        unread=fit.unread + validation.unread,
    )


def _of_split(domain: Domain, listing: Listing) -> Listing:
    """The images of the part that the domain asks for, with the splits of ours."""
    parts = list(dict.fromkeys(item.split for item in listing.items if item.split))
    if domain.split.endswith(LIST):
        items = _named_in_list(domain, listing)
    elif domain.split:
        split_of = _splits_of_parts(domain, parts)
        items = [replace(i, split=split_of[i.split]) for i in listing.items if i.split in split_of]
    else:
        items = [replace(i, split="") if i.split else i for i in listing.items]
        if len(parts) > 1:
            _LOG.warning(
                "%s: the data are divided into %s; all are taken. To take a part, write split = "
                '"%s", or "given" for the source',
                *(domain.name, ", ".join(map(printable, parts)), parts[0]),
            )
    other = Counter({"of another split": len(listing.items) - len(items)})
    return replace(listing, items=tuple(items), ignored=Counter(listing.ignored) + other)


def _splits_of_parts(domain: Domain, parts: Sequence[str]) -> dict[str, str]:
    """The split of ours that each part is which the domain asks for; empty of a single part."""
    if domain.split == GIVEN:
        ours = {name: split for split, names in SPLIT_NAMES.items() for name in names}
        split_of = {part: ours.get(part.casefold(), "") for part in parts}
        split_of = {part: split for part, split in split_of.items() if split in (FIT, VALIDATION)}
    else:
        split_of = {part: "" for part in parts if part.casefold() == domain.split.casefold()}
    if len(set(split_of.values())) < 1 + (domain.split == GIVEN):
        raise StudyError(
            f'{domain.name}: split = "{domain.split}" finds no such parts; the data have '
            f'{", ".join(map(printable, parts)) or "none"}. For "given" there must be one of '
            f"{', '.join(SPLIT_NAMES[FIT])} and one of {', '.join(SPLIT_NAMES[VALIDATION])}"
        )
    return split_of


def _named_in_list(domain: Domain, listing: Listing) -> list[Item]:
    """The images that a text file names, by their paths or the names of their files."""
    names = set(read_lines(Path(domain.split)))
    names_of = {i: {composed(i.path), composed(Path(i.path).name)} & names for i in listing.items}
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


def read_image(item: Item, key: bytes | None = None) -> arrays.Content:
    """Read an image, once: its key and its pixels come from the same bytes.

    Raises:
        ImageError: It cannot be read, or has another content key than the one given.
    """
    content: arrays.Content = read_image_file(item) if item.row is None else arrays.read(item)
    if key is not None and content.key != key:
        raise ImageError(CHANGED)
    return content
