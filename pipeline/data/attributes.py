"""Attributes of images or patients, such as sex and age: from a CSV file to groups of images.

They are patient data: they stay in memory, and only names and counts of groups are written.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import patients_of_items
from pipeline.data.samples import Samples
from pipeline.data.tables import Row, fail, find_columns, read_table
from pipeline.errors import StudyError, record_failure
from pipeline.study import HEADER, Attribute, Domain, ImageTable, SourceDomain, Study
from pipeline.words import counted, have, printable

_LOG = logging.getLogger(__name__)
#: The group of images without a row, or with an empty cell.
UNKNOWN = "unknown"
#: More groups than these are names or numbers, not groups.
_MOST_GROUPS = 12
#: What the first column may hold: an image's path below its domain's folder, or the
#: patient's id as the domain's ``group`` pattern finds it.
_KEYS = ("path", "patient")


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The images of one domain, divided by one attribute.

    Attributes:
        attribute: Its name.
        names: Groups, the same and in the same order for all domains: bins in ascending order,
            texts sorted, ``unknown`` at the end if an image has no value.
        member: Index into ``names`` for each image of the domain, shape ``(n,)``.
    """

    attribute: str
    names: tuple[str, ...]
    member: NDArray[np.int64]


def groupings(
    study: Study, samples: Samples, failures: dict[str, Exception]
) -> Mapping[str, Sequence[Grouping]]:
    """Group the images of each domain that has a file of attributes.

    A fault in the file of a target is added to ``failures``; in the source's it is a StudyError.

    Returns:
        By domain, one grouping for each attribute; domains without a file are missing.
    """
    if not study.subgroups:
        return {}
    groups: dict[str, list[tuple[str, ...]]] = {}
    for domain in study.domains:
        if domain.attributes is not None and domain.name not in failures:
            with record_failure(domain.name, failures, alone=domain is study.source):
                groups[domain.name] = _groups_of_images(
                    domain, domain.attributes, study.subgroups, samples
                )
    divided: dict[str, list[Grouping]] = {name: [] for name in groups}
    for i, attribute in enumerate(study.subgroups):
        present = {row[i] for rows in groups.values() for row in rows}
        names = sorted(present - {UNKNOWN}) if attribute.edges is None else _bins(attribute.edges)
        names += [UNKNOWN] if UNKNOWN in present else []
        for name, rows in groups.items():
            member = np.array([names.index(row[i]) for row in rows], np.int64)
            grouping = Grouping(attribute=attribute.name, names=tuple(names), member=member)
            divided[name].append(grouping)
    return divided


def _groups_of_images(
    domain: Domain, file: Path, attributes: Sequence[Attribute], samples: Samples
) -> list[tuple[str, ...]]:
    """The group of each image by each attribute; warns about images without a row."""
    table = domain.table if domain.table and domain.table.file == file else None
    key, groups = read_attributes(file, attributes, table)
    if table and isinstance(domain, SourceDomain) and isinstance(domain.validation, Path):
        groups |= read_attributes(domain.validation, attributes, table)[1]
    names = _names_of_images(domain, file, key, samples)
    missing = sum(name not in groups for name in names)
    if missing == len(names):
        first = printable(next(iter(groups), "missing"))
        raise StudyError(
            f"{file}: none of its {len(groups)} rows names an image of {domain.name}; its first "
            f"{key} is {first}, that of the images {printable(names[0])}: write them alike"
        )
    if missing:
        _LOG.warning(
            "%s: %d of %s %s no row in %s and count as %s",
            *(domain.name, missing, counted(len(names), "image"), have(missing), file, UNKNOWN),
        )
    rows = [groups.get(name, (UNKNOWN,) * len(attributes)) for name in names]
    for attribute, texts in zip(attributes, map(set, zip(*rows, strict=True)), strict=True):
        count = len(texts - {UNKNOWN})
        if attribute.edges is None and count > _MOST_GROUPS:
            raise StudyError(
                f"{attribute.name} has {count} different texts in {file}; allowed are "
                f"{_MOST_GROUPS} groups. If they are numbers, give bins in the study file, such as "
                f"[subgroups] {attribute.name} = [18, 40, 65]; else join some of them"
            )
    return rows


def _names_of_images(domain: Domain, file: Path, key: str, samples: Samples) -> list[str]:
    """The name of each image in the file: its path, or its patient before copies were joined."""
    items = [samples.items[row] for row in np.flatnonzero(samples.domain == domain.name)]
    if key == "path":
        return [item.name for item in items]
    patients = patients_of_items(domain, items)
    if domain.group == HEADER or not any(patients):
        raise StudyError(
            f"{file} has rows by patient, but patients of {domain.name} are found by no `group` "
            "pattern (those of DICOM headers are hashes): give one, or rows by path"
        )
    return [patient or item.path for patient, item in zip(patients, items, strict=True)]


def read_attributes(
    file: Path, attributes: Sequence[Attribute], table: ImageTable | None = None
) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Read the groups of every image or patient from a table.

    Args:
        file: A file whose first column is ``path`` or ``patient``; an empty cell is unknown.
        attributes: One or more; other columns are ignored.
        table: The domain's table, if this is its file: then its column of paths is the key.

    Returns:
        ``path`` or ``patient``; then the groups of each path or patient, one per attribute.
    """
    header, rows = read_table(file)
    key_name = _key_column(file, header, attributes, table)
    key_at, *columns = map(header.cells.index, (key_name, *(a.name for a in attributes)))
    groups: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if not (key := row.cells[key_at]):
            fail(file, row.line, f"the {key_name} is empty: give it, or remove the line")
        pairs = zip(attributes, columns, strict=True)
        group = tuple(_group(file, row.line, a, row.cells[column]) for a, column in pairs)
        if groups.setdefault(key, group) != group:
            other = "" if key_name == "path" else ", or give a row for each image, by its path"
            what = f"an earlier line says other things of the same {key_name}"
            fail(file, row.line, f"{what}: keep one{other}")
    return "path" if table else key_name, groups


def _key_column(
    file: Path, header: Row, attributes: Sequence[Attribute], table: ImageTable | None
) -> str:
    """The column that identifies a row; refuses a header that lacks it or an attribute."""
    names = header.cells
    shown = ", ".join(map(printable, names)) or "nothing"
    key = find_columns(table, header, labelled=False)["path"][0] if table else "".join(names[:1])
    if not table and key not in _KEYS:
        why = f"allowed as the first is {' or '.join(_KEYS)}, which says whose the row is"
        fail(file, header.line, f"the columns, separated by commas, are {shown}; {why}")
    for attribute in attributes:
        if attribute.name not in names or attribute.name == key:
            what = f"no column {attribute.name!r} for [subgroups]; the columns are {shown}"
            fail(file, header.line, f"{what}. Add it, or take it out of [subgroups]")
    return key


def _group(file: Path, line: int, attribute: Attribute, value: str) -> str:
    """The group of one cell."""
    if not value:
        return UNKNOWN
    if attribute.edges is None:
        return printable(value)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = f"{attribute.name} is {printable(value)!r}, but has bins in [subgroups]"
        fail(file, line, f"{what}: allowed are numbers, and an empty cell for what is not recorded")
    return _bins(attribute.edges)[sum(number >= edge for edge in attribute.edges)]


def _bins(edges: Sequence[float]) -> list[str]:
    """``< 18``, ``18 to < 40``, ``40 or more``: names of the bins, lowest first."""
    # All digits are kept: a date such as 20200101 has eight.
    texts = [repr(edge).removesuffix(".0") for edge in edges]
    middle = (f"{low} to < {high}" for low, high in pairwise(texts))
    return [f"< {texts[0]}", *middle, f"{texts[-1]} or more"]
