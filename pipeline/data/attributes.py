"""Attributes of images or patients, such as sex and age: a CSV file to groups by key.

They are patient data: what is read here stays in memory, and nothing but the names of
groups and their counts is written anywhere.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from pipeline.checked_tables import CheckedTables
from pipeline.data.items import system_reason
from pipeline.errors import StudyError
from pipeline.words import printable

#: What the first column may hold: an image's path below its domain's folder, or the
#: patient's id as the domain's ``group`` pattern finds it.
KEYS = ("path", "patient")
#: The group of images without a row, or with an empty cell.
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute that a study looks at.

    Attributes:
        name: Of its column.
        edges: Where bins of its numbers meet, increasing; an edge belongs to the bin above
            it. None: each text that stands there is a group.
    """

    name: str
    edges: tuple[float, ...] | None = None

    def bins(self) -> tuple[str, ...]:
        """``< 18``, ``18 to < 40``, ``40 or more``: names of the bins, lowest first."""
        if self.edges is None:
            return ()
        edges = [_digits(edge) for edge in self.edges]
        middle = (f"{low} to < {high}" for low, high in pairwise(edges))
        return (f"< {edges[0]}", *middle, f"{edges[-1]} or more")

    def bin_of(self, value: float) -> str:
        """Name of the bin that holds a finite number."""
        edges = self.edges or ()
        return self.bins()[sum(value >= edge for edge in edges)]


def _digits(edge: float) -> str:
    """As many as tell it from every other number: a date such as 20200101 has eight."""
    return repr(edge).removesuffix(".0")


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


def attribute_settings(tables: CheckedTables, table: Mapping[str, Any]) -> tuple[Attribute, ...]:
    """The table ``[subgroups]`` of a study file.

    Args:
        tables: Knows the file, for messages.
        table: ``sex = true`` makes each text a group, ``age = [18, 65]`` makes bins; an
            attribute that is ``false`` is left out.

    Raises:
        StudyError: A value is none of these.
    """
    return tuple(
        Attribute(name=name, edges=None if value is True else _edges(tables, name, value))
        for name, value in table.items()
        if value is not False
    )


def _edges(tables: CheckedTables, name: str, value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and all(
        isinstance(edge, int | float) and not isinstance(edge, bool) and math.isfinite(edge)
        for edge in value
    )
    if not numbers or not value or any(a >= b for a, b in pairwise(map(float, value))):
        tables.fail(
            f"[subgroups] {name} = {value!r}: allowed is true, for one group for each text, or "
            "increasing numbers between which bins lie, such as [18, 40, 65]"
        )
    return tuple(float(edge) for edge in value)


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
