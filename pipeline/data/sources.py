"""The kinds of input there are: which images a domain has, and the content of each.

To add a kind: a module with ``scan`` and ``read``, one entry in ``KINDS``, and what it is known
by in ``_kinds_of`` and ``read_image``.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from pipeline.data import arrays, class_folders, image_tables
from pipeline.data.items import (
    Content,
    Each,
    Item,
    Listing,
    in_turn,
    is_hidden,
    is_written_here,
    list_folder,
)
from pipeline.data.patients import FIT, SPLIT_NAMES, VALIDATION
from pipeline.data.tables import read_lines
from pipeline.errors import ImageError, StudyError
from pipeline.study import GIVEN, LIST, Domain, SourceDomain, Study
from pipeline.words import are, composed, counted, printable

_LOG = logging.getLogger(__name__)
#: Why an image is refused whose content is not what it was; the next run may take it.
CHANGED = "changed while the run was under way; run again"


#: What lists the images of each kind of input.
KINDS: Mapping[str, Callable[[Domain, Each], Listing]] = MappingProxyType(
    {
        "a table": image_tables.scan,
        "a .npz file": lambda domain, _: arrays.scan_archive(domain),
        "class folders": class_folders.scan,
        ".npy stacks": lambda domain, _: arrays.scan_stacks(domain),
    }
)


def scan(domain: Domain, each: Each = in_turn) -> Listing:
    """List the images of one domain, by the kind of input that it is.

    Of a source that is divided as it came, each image has the split ``fit`` or
    ``validation``; otherwise none has.

    Args:
        domain: Where they are.
        each: How the folders in it are walked.

    Raises:
        StudyError: No such folder; no kind of input or several in it; a class without
            an image; a stack or table that cannot be used; no image of the split asked for.
    """
    if isinstance(domain, SourceDomain) and isinstance(domain.validation, Path):
        return _with_validation(domain, domain.validation, each)
    kinds, entries = _kinds_of(domain)
    if len(kinds) == 1:
        return _of_split(domain, KINDS[kinds[0]](domain, each))
    if domain.labelled:
        raise StudyError(
            f"{domain.path} holds {' and '.join(kinds) or _described(entries)}; allowed is one of: "
            "a folder for each class with images at any depth, .npy stacks (n, H, W) or "
            "(n, H, W, 3), one class a file, a .npz file, or a table = FILE of images. Images of "
            'a target that nobody has labelled may lie in it as they are, with labels = "absent"'
        )
    raise StudyError(
        f"{domain.path} holds {'images and .npy stacks' if kinds else _described(entries)}; "
        "allowed for a target without labels is one of: images at any depth, .npy stacks "
        "(n, H, W) or (n, H, W, 3), a .npz file, or a table = FILE of images"
    )


def _kinds_of(domain: Domain) -> tuple[list[str], list["os.DirEntry[str]"]]:
    """The kinds of input that a domain is, and the visible entries of its folder."""
    if arrays.is_archive(domain.path):
        return ["a .npz file"], []
    if domain.table is not None:
        return ["a table"], []
    listed = list_folder(domain.path)
    entries = [entry for entry in listed if not is_hidden(entry) and not is_written_here(entry)]
    signs = {
        "class folders": [class_folders.is_sign(e, labelled=domain.labelled) for e in entries],
        ".npy stacks": map(arrays.is_stack, entries),
    }
    return [kind for kind, signs_of_kind in signs.items() if any(signs_of_kind)], entries


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
    if domain.split.endswith(LIST):
        return _of_list(domain, listing)
    found = Counter(item.split for item in listing.items)
    if not domain.split and set(found) <= {""}:
        return listing
    if not domain.split:
        if len(parts := [part for part in found if part]) > 1:
            _LOG.warning(
                "%s: the data are divided into %s; all are taken. To take a part, write split = "
                '"%s", or "given" for the source',
                *(domain.name, ", ".join(map(printable, parts)), parts[0]),
            )
        return replace(listing, items=tuple(replace(i, split="") for i in listing.items))
    ours = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    if domain.split == GIVEN:
        wanted = {name: ours.get(name.casefold(), "") for name in found}
        wanted = {name: split for name, split in wanted.items() if split in (FIT, VALIDATION)}
    else:
        wanted = {name: "" for name in found if name.casefold() == domain.split.casefold()}
    if len(set(wanted.values())) < 1 + (domain.split == GIVEN):
        raise StudyError(
            f'{domain.name}: split = "{domain.split}" finds no such parts; the data have '
            f'{", ".join(map(printable, found))}. For "given" there must be one of '
            f"{', '.join(SPLIT_NAMES[FIT])} and one of {', '.join(SPLIT_NAMES[VALIDATION])}"
        )
    items = [replace(i, split=wanted[i.split]) for i in listing.items if i.split in wanted]
    other = len(listing.items) - len(items)
    ignored = Counter(listing.ignored) + Counter({"of another split": other})
    return replace(listing, items=tuple(items), ignored=ignored)


def _of_list(domain: Domain, listing: Listing) -> Listing:
    """The images that a text file names, by their paths or the names of their files."""
    names = set(read_lines(Path(domain.split)))
    named = [{composed(i.path), composed(Path(i.path).name)} & names for i in listing.items]
    items = [item for item, its_names in zip(listing.items, named, strict=True) if its_names]
    if not items:
        raise StudyError(f"{domain.name}: {domain.split} names no image of {domain.path}")
    if absent := sorted(names.difference(*named)):
        _LOG.warning(
            "%s: %s of %s not below %s; first: %s",
            *(domain.name, counted(len(absent), "name"), f"{domain.split} {are(len(absent))}"),
            *(domain.path, printable(absent[0])),
        )
    other = len(listing.items) - len(items)
    ignored = Counter(listing.ignored) + Counter({"of another split": other})
    return replace(listing, items=tuple(replace(item, split="") for item in items), ignored=ignored)


def read_image(item: Item, key: bytes | None = None) -> Content:
    """Read an image, once: its key and its pixels come from the same bytes.

    Args:
        item: Where it is.
        key: The content key that it must still have; None takes any.

    Raises:
        ImageError: It cannot be read, an input/output error only after three more tries;
            or its content has changed (:data:`CHANGED`).
    """
    content: Content = class_folders.read(item) if item.row is None else arrays.read(item)
    if key is not None and content.key != key:
        raise ImageError(CHANGED)
    return content


def warn_of_unnamed_findings(study: Study) -> None:
    """Say which findings a table does not name, before a network has run for an hour."""
    for finding in study.findings:
        for domain in study.of_finding(finding).domains:
            if domain.table is None or not domain.labelled:
                continue
            kind = arrays if arrays.is_archive(domain.path) else image_tables
            try:
                kind.check_finding(domain)
            except StudyError as unnamed:
                _LOG.warning("%s", unnamed)


def _described(entries: list["os.DirEntry[str]"]) -> str:
    endings = Counter(Path(entry.name).suffix.lower() or "other" for entry in entries)
    return (
        ", ".join(counted(n, f"{ending} file") for ending, n in endings.most_common(4)) or "nothing"
    )
