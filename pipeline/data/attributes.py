"""Attributes of images or patients, such as sex and age: a CSV file to groups by key.

They are patient data: what is read here stays in memory, and nothing but the names of
groups and their counts is written anywhere.
"""

import csv
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.data.items import system_reason
from pipeline.data.patients import patient_of
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.study import Attribute, Domain, Study
from pipeline.words import counted, have, printable

#: What the first column may hold: an image's path below its domain's folder, or the
#: patient's id as the domain's ``group`` pattern finds it.
KEYS = ("path", "patient")
_LOG = logging.getLogger(__name__)
#: The group of images without a row, or with an empty cell.
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class AttributeFile:
    """What one file says of the attributes that were asked for.

    Attributes:
        file: Where it was read.
        key: One of :data:`KEYS`.
        groups: Key to the name of its group, one for each attribute, in their order.
    """

    file: Path
    key: str
    groups: Mapping[str, tuple[str, ...]]


def read_attributes(file: Path, wanted: Sequence[Attribute]) -> AttributeFile:
    """Read the groups of every key.

    Args:
        file: UTF-8 CSV with a header, whose first column is one of :data:`KEYS`; an empty
            cell is unknown. Columns that nobody wants are not looked at.
        wanted: At least one.

    Raises:
        StudyError: It cannot be read, is not UTF-8 or not CSV, lacks a column, has a key
            twice with different values, or text where a number should be.
    """
    return _Reading(file=file, wanted=tuple(wanted)).result()


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Reads one file; knows it for its messages."""

    file: Path
    wanted: tuple[Attribute, ...]

    def result(self) -> AttributeFile:
        lines = self.lines()
        line, header = next(lines, (1, []))
        columns = self.columns(header, line)
        seen: dict[str, tuple[int, tuple[str, ...]]] = {}
        for line, cells in lines:
            if len(cells) != len(header):
                self.fail(line, f"{len(cells)} cells, but the header has {len(header)}")
            if not cells[0]:
                self.fail(line, f"the {header[0]} is empty: give it, or remove the line")
            values = tuple(cells[column] for column in columns)
            first, before = seen.setdefault(cells[0], (line, values))
            if before != values:
                self.twice(header[0], (first, before), (line, values))
        groups = {
            key: tuple(
                self.group(attribute, value, line)
                for attribute, value in zip(self.wanted, values, strict=True)
            )
            for key, (line, values) in seen.items()
        }
        return AttributeFile(file=self.file, key=header[0], groups=groups)

    def lines(self) -> Iterator[tuple[int, list[str]]]:
        """Number and cells of each line that is not blank, without outer spaces."""
        reader = csv.reader(io.StringIO(self.text(), newline=""), strict=True)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
        except csv.Error as cause:
            self.fail(reader.line_num, f"not CSV ({cause}): put quotes around cells with commas")

    def text(self) -> str:
        try:
            content = self.file.read_bytes()
        except OSError as cause:
            raise StudyError(f"{self.file} cannot be read: {system_reason(cause)}") from cause
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as cause:
            line = content.count(b"\n", 0, cause.start) + 1
            raise StudyError(
                f"{self.file} line {line} is not UTF-8 (byte {content[cause.start]:#x}): save the "
                'table as "CSV UTF-8"'
            ) from cause

    def columns(self, header: list[str], line: int) -> list[int]:
        """Where the wanted attributes stand."""
        shown = ", ".join(map(printable, header)) or "nothing"
        if not header or header[0] not in KEYS:
            self.fail(
                line,
                f"the columns are {shown}; allowed as the first is {' or '.join(KEYS)}, and "
                "columns are separated by commas: name the column that says whose the row is",
            )
        if twice := [name for name in header if header.count(name) > 1]:
            self.fail(line, f"two columns are called {printable(twice[0])!r}: rename one")
        for attribute in self.wanted:
            if attribute.name not in header[1:]:
                self.fail(
                    line,
                    f"there is no column {attribute.name!r} for [subgroups]; the columns are "
                    f"{shown}. Add it, with empty cells where nothing is known, or take it out of "
                    "[subgroups]",
                )
        return [header.index(attribute.name) for attribute in self.wanted]

    def twice(
        self,
        key: str,
        first: tuple[int, tuple[str, ...]],
        second: tuple[int, tuple[str, ...]],
    ) -> NoReturn:
        pairs = zip(self.wanted, first[1], second[1], strict=True)
        name = next(attribute.name for attribute, a, b in pairs if a != b)
        by_image = "" if key == "path" else ", or give a row for each image, by its path"
        self.fail(
            second[0],
            f"the same {key} as in line {first[0]} with another {name}: keep one{by_image}",
        )

    def group(self, attribute: Attribute, value: str, line: int) -> str:
        if not value:
            return UNKNOWN
        if attribute.edges is None:
            return printable(value)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(
                line,
                f"{attribute.name} is {printable(value)!r}, but [subgroups] {attribute.name} has "
                "bins: allowed are numbers, and an empty cell for what is not known",
            )
        return attribute.bin_of(number)

    def fail(self, line: int, message: str) -> NoReturn:
        raise StudyError(f"{self.file} line {line}: {message}")


#: More groups than these are names or numbers, not groups.
MOST_GROUPS = 12


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The images of one domain, divided by one attribute.

    Attributes:
        attribute: Its name.
        names: Groups, the same and in the same order for all domains: bins from below,
            texts sorted, ``unknown`` at the end where some image is.
        member: Shape ``(n,)``, index into ``names`` of each image of the domain.
    """

    attribute: str
    names: tuple[str, ...]
    member: NDArray[np.int64]


def groupings(study: Study, samples: Samples) -> Mapping[str, tuple[Grouping, ...]]:
    """Divide the images of each domain that has a file of attributes.

    Args:
        study: Its ``subgroups`` say by what.
        samples: Of the study.

    Returns:
        By domain, one for each attribute of the study; a domain without a file is missing.

    Raises:
        StudyError: A file is not what it should be, none of its rows names an image, or an
            attribute has too many groups.
    """
    if not study.subgroups:
        return {}
    found = {
        domain.name: _groups_of_images(domain, study.subgroups, samples)
        for domain in study.domains
        if domain.attributes is not None
    }
    names = [
        _names(study, attribute, {rows[number] for table in found.values() for rows in table})
        for number, attribute in enumerate(study.subgroups)
    ]
    return {
        domain: tuple(
            Grouping(
                attribute=attribute.name,
                names=names[number],
                member=np.array([names[number].index(rows[number]) for rows in table], np.int64),
            )
            for number, attribute in enumerate(study.subgroups)
        )
        for domain, table in found.items()
    }


def _names(study: Study, attribute: Attribute, present: set[str]) -> tuple[str, ...]:
    last = (UNKNOWN,) if UNKNOWN in present else ()
    if attribute.edges is not None:
        return (*attribute.bins(), *last)
    known = sorted(present - {UNKNOWN})
    if len(known) > MOST_GROUPS:
        files = ", ".join(str(d.attributes) for d in study.domains if d.attributes is not None)
        raise StudyError(
            f"{attribute.name} has {len(known)} different texts in {files}; allowed are "
            f"{MOST_GROUPS} groups. If they are numbers, give bins in the study file, such as "
            f"[subgroups] {attribute.name} = [18, 40, 65]; else join some of them"
        )
    return (*known, *last)


def _groups_of_images(
    domain: Domain, wanted: Sequence[Attribute], samples: Samples
) -> list[tuple[str, ...]]:
    """For each image of the domain its group by each attribute; said where there is no row."""
    file = domain.attributes
    if file is None:
        return []
    read = read_attributes(file, wanted)
    keys = _keys(domain, read, samples)
    without = sum(key not in read.groups for key in keys)
    if without == len(keys):
        raise StudyError(
            f"{file}: none of its {len(read.groups)} rows names an image of "
            f"{domain.name}; its first {read.key} is {_first(list(read.groups))}, the first in "
            f"{domain.path} is {_first(keys)}: write them alike"
        )
    if without:
        _LOG.warning(
            "%s: %d of %s %s no row in %s and count as %s",
            *(domain.name, without, counted(len(keys), "image"), have(without), file, UNKNOWN),
        )
    nothing = (UNKNOWN,) * len(wanted)
    return [read.groups.get(key, nothing) for key in keys]


def _keys(domain: Domain, read: AttributeFile, samples: Samples) -> list[str]:
    """What each image is called in the file; patients by name, before copies join them."""
    rows = np.flatnonzero(samples.domain == domain.name)
    paths = [samples.items[i].path for i in rows]
    if read.key == "path":
        return paths
    if domain.group is None:
        raise StudyError(
            f"{read.file} has rows by patient, but {domain.name} has no `group` pattern that finds "
            "a patient in a file's name: give one in the study file, or rows by path"
        )
    return [patient_of(path, domain.group) or path for path in paths]


def _first(keys: Sequence[str]) -> str:
    return printable(keys[0]) if keys else "missing"
