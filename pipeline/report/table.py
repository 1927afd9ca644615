"""A table of results, and how it is shown: on a terminal, as CSV and on the page.

A function of each stage, in a module beside this one, turns its JSON record into parts: tables
and sentences. All outputs are made from these; ``templates/page.html`` makes the HTML.
"""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from pipeline.words import printable, zero_noise

#: JSON values of a stage, or of a row in them.
Record = Mapping[str, Any]

_UNKNOWN = "-"


def _share(value: float) -> str:
    """``.960``; a leading zero says nothing."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text[:4]


#: How the numbers of each kind of column are written. ``percent`` and ``points`` take shares;
#: ``change`` is a signed number. Columns of any other kind hold text.
_NUMBERS: Mapping[str, Callable[[float], str]] = {
    "share": _share,
    "percent": lambda value: f"{100 * value:.1f}",
    "points": lambda value: f"{100 * value:+.1f}",
    "change": lambda value: f"{value:+.2f}",
    "p": lambda value: "<.001" if value < 0.001 else _share(value),
    "number": lambda value: f"{value:.3f}",
    "ratio": lambda value: f"{value:.2f}" if value < 100 else f"{value:,.0f}",
    "count": lambda value: f"{value:,.0f}",
    "seconds": lambda value: f"{value:.1f}",
}


@dataclass(frozen=True)
class Column:
    """What the values of one column are.

    Attributes:
        name: The header; in a CSV file in lower case, with underscores.
        kind: A key of :data:`_NUMBERS`, ``text``, or ``mark`` (a star where the value is true).
        help: One sentence for readers; the page shows it below the table.
        interval: Whether the values are (estimate, low, high).
        csv_only: Whether the column is in the CSV file alone.
        field: Key of the value in a row of the record. Empty: the name; for an interval, the
            row's own ``estimate``, ``low`` and ``high``.
    """

    name: str
    kind: str = "text"
    help: str = ""
    interval: bool = False
    csv_only: bool = False
    field: str = ""

    @property
    def header(self) -> str:
        """The text above the values."""
        return "" if self.kind == "mark" else printable(self.name)

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers, which are aligned to the right."""
        return self.kind in _NUMBERS

    def of(self, row: Record) -> Any:
        """The value of this column in a row of a record; None where the row has none."""
        if not self.interval:
            return row.get(self.field or self.name)
        value = row.get(self.field) if self.field else row
        if value is None or value.get("estimate") is None:
            return None
        return value["estimate"], value.get("low"), value.get("high")


@dataclass(frozen=True)
class Table:
    """Rows of a record below named columns.

    Attributes:
        title: Says what the rows are.
        columns: Left to right; the first names the row. Each picks its values from the records.
        records: JSON values of each row.
        notes: Sentences below the table.
        key: Stem of the CSV file; tables with the same key share it. Empty: no file.
        about: What all rows have in common, such as the target; columns of the CSV file.
        detail: Whether a terminal leaves the table out; all other outputs have it.
    """

    title: str
    columns: Sequence[Column]
    records: Sequence[Record]
    notes: tuple[str, ...] = ()
    key: str = ""
    about: Record = field(default_factory=dict)
    detail: bool = False

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """A value for each column: text, a number, a bool, (estimate, low, high), or None.

        Bounds may be None. None is shown as a dash.
        """
        return [tuple(column.of(record) for column in self.columns) for record in self.records]

    def values(self, name: str) -> list[Any]:
        """The values of one column, row by row."""
        (column,) = [column for column in self.columns if column.name == name]
        return [column.of(record) for record in self.records]

    def shown(self) -> tuple[list[Column], list[list[str]]]:
        """The columns that hold a value in some row and are not ``csv_only``; the rows as text."""
        texts = [
            [format_value(v, column.kind) for v, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]
        shown = [
            k
            for k, column in enumerate(self.columns)
            if not column.csv_only and (k == 0 or {row[k] for row in texts} - {"", _UNKNOWN})
        ]
        return [self.columns[k] for k in shown], [[row[k] for k in shown] for row in texts]

    def legend(self) -> list[str]:
        """The notes, then the help of each shown column that has one."""
        columns, _ = self.shown()
        return [*self.notes, *(f"{c.name}: {c.help}" for c in columns if c.help)]


class Heading(str):
    """The heading of a section of a report, such as one target."""

    __slots__ = ()


class Detail(str):
    """A sentence that a terminal leaves out."""

    __slots__ = ()


#: One part of a report. A plain string is a paragraph.
Part = Table | str


def about(parts: Iterable[Part], **names: str) -> Iterator[Part]:
    """The same parts, with ``names`` added in front of what their tables are ``about``."""
    for part in parts:
        if isinstance(part, Table):
            yield replace(part, about={**names, **part.about})
        else:
            yield part


def format_value(value: Any, kind: str) -> str:
    """A value of a column as people read it; see :attr:`Table.rows` and :attr:`Column.kind`."""
    if kind == "mark":
        return "*" if value else ""
    if value is None:
        return _UNKNOWN if kind in _NUMBERS else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or kind not in _NUMBERS:
        return printable(str(value))
    values = value if isinstance(value, tuple) else (value,)
    texts = (_UNKNOWN if v is None else _NUMBERS[kind](zero_noise(v)) for v in values)
    estimate, *bounds = texts
    return estimate if {*bounds} <= {_UNKNOWN} else f"{estimate} [{', '.join(bounds)}]"


def terminal_text(parts: Iterable[Part]) -> str:
    """The text for a terminal: all parts but the details, with an empty line between."""
    texts = (
        _to_terminal(part) if isinstance(part, Table) else _wrapped(part)
        for part in parts
        if not (isinstance(part, Detail) or (isinstance(part, Table) and part.detail))
    )
    return "\n\n".join(text for text in texts if text)


def _to_terminal(table: Table) -> str:
    """Lines without colour; in lines that are too long, words may be broken, numbers may not."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    columns, rows = table.shown()
    lines = [printable(table.title)] if table.title else []
    if rows:
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            justify: Any = "right" if column.is_number else "left"
            grid.add_column(
                column.header, justify=justify, no_wrap=column.is_number, overflow="fold"
            )
        for row in rows:
            grid.add_row(*row)
        # ``[bold]`` and ``:smile:`` are names like others.
        console = Console(width=120, no_color=True, markup=False, emoji=False, highlight=False)
        with console.capture() as capture:
            console.print(grid)
        lines += [line.rstrip() for line in capture.get().splitlines() if line.strip()]
    return "\n".join([*lines, *(_wrapped(note) for note in table.notes)])


def _wrapped(sentence: str) -> str:
    """A sentence as lines of a terminal; a number and its % stay together."""
    text = printable(sentence).replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.fill(text, 100, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def to_csv(*tables: Table) -> str:
    """A header and the rows of all tables below it; numbers have all their digits.

    Text that would be a formula gets an apostrophe in front, which spreadsheets do not show.
    """
    columns = [
        [*table.about, *(name for column in table.columns for name in _csv_names(column))]
        for table in tables
    ]
    names = list(dict.fromkeys(chain(*columns)))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            values = dict(table.about)
            for column, value in zip(table.columns, row, strict=True):
                cells = value if isinstance(value, tuple) else (value,)
                values |= zip(_csv_names(column), cells, strict=False)
            writer.writerow({name: _csv_safe(value) for name, value in values.items()})
    return file.getvalue()


def _csv_names(column: Column) -> list[str]:
    name = re.sub(r"[^a-z0-9]+", "_", column.name.lower()).strip("_")
    return [name, f"{name}_low", f"{name}_high"] if column.interval else [name]


#: A spreadsheet takes text that starts so for a formula and runs it (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@")


def _csv_safe(value: Any) -> Any:
    if isinstance(value, float):
        return zero_noise(value)
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
