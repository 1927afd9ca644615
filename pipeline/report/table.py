"""A table of results, and how it is shown: on a terminal, as Markdown, CSV and HTML.

Each stage has a module beside this one that turns its JSON record into a list of parts: tables
and sentences. All four outputs are made from that list, with one walk each. A number is
formatted by the kind of its column, here and nowhere else.
"""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any

from pipeline.words import printable, zero_noise

#: Columns of a terminal that every table fits, and those that sentences fill.
_WIDTH, _SENTENCE_WIDTH = 120, 100
_BEST, _UNKNOWN = "*", "-"
_EMPTY = ("", _UNKNOWN)


def _share(value: float) -> str:
    """``.960``; a leading zero says nothing."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text[:4]


def _p_value(value: float) -> str:
    return "<.001" if value < 0.001 else _share(value)


#: How the numbers of a kind of column are written. ``percent`` and ``points`` take shares;
#: ``change`` is a signed number. Columns of any other kind hold text.
NUMBERS: Mapping[str, Callable[[float], str]] = MappingProxyType(
    {
        "share": _share,
        "percent": lambda value: f"{100 * value:.1f}",
        "points": lambda value: f"{100 * value:+.1f}",
        "change": lambda value: f"{value:+.2f}",
        "p": _p_value,
        "number": lambda value: f"{value:.3f}",
        "count": lambda value: f"{value:,.0f}",
        "seconds": lambda value: f"{value:.1f}",
    }
)


@dataclass(frozen=True)
class Column:
    """What the values of one column are.

    Attributes:
        name: The header; in a CSV file in lower case, with underscores.
        kind: A key of :data:`NUMBERS`, ``text``, or ``mark`` (a star where the value is true).
        help: One sentence for readers; Markdown and the page show it below the table.
        interval: Whether the values are (estimate, low, high). CSV files have three columns.
        csv_only: Whether people are not shown it.
        field: Of the record's row, for :func:`table_of`; empty: the name, or, for an interval,
            the row's own ``estimate``, ``low`` and ``high``.
    """

    name: str
    kind: str = "text"
    help: str = ""
    interval: bool = False
    csv_only: bool = False
    field: str = ""

    def of(self, row: Mapping[str, Any]) -> Any:
        """The value of this column in a row of a record; None where the row has none."""
        if not self.interval:
            return row.get(self.field or self.name)
        value = row.get(self.field) if self.field else row
        if value is None or value.get("estimate") is None:
            return None
        return value["estimate"], value.get("low"), value.get("high")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values below named columns.

    Attributes:
        title: Says what the rows are.
        columns: Left to right; the first names the row.
        rows: A value for each column: text, a number, a bool, (estimate, low, high), or None.
        notes: Sentences below the table.
        key: Stem of the CSV file; tables with the same key share it. Empty: no file.
        about: What all rows are about, such as the target; columns of the CSV file.
        detail: Whether a terminal leaves it out; it is in every other output.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    key: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    detail: bool = False

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [column.name for column in self.columns]

    def values(self, name: str) -> list[Any]:
        """Those of one column, row by row."""
        at = self.names.index(name)
        return [row[at] for row in self.rows]


class Heading(str):
    """A part of a report that begins a section, such as one target."""

    __slots__ = ()


class Detail(str):
    """A sentence that a terminal leaves out."""

    __slots__ = ()


class Legend(str):
    """A sentence on how tables are read, which the page folds."""

    __slots__ = ()


#: What a stage's module makes of a record. A plain string is a paragraph.
Part = Table | str
#: JSON values of a stage, or of one row in them.
Record = Mapping[str, Any]


def table_of(
    title: str, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], **more: Any
) -> Table:
    """A table of rows of a record.

    Args:
        title: As in :class:`Table`.
        columns: Each picks its value from a row; see :meth:`Column.of`.
        rows: JSON values.
        more: Other attributes of :class:`Table`.
    """
    values = tuple(tuple(column.of(row) for column in columns) for row in rows)
    return Table(title=title, columns=tuple(columns), rows=values, **more)


def format_value(value: Any, kind: str) -> str:
    """A value of a column as people read it.

    Args:
        value: Text, a number, a bool, (estimate, low, high) with bounds that may be None, or
            None for what is not known.
        kind: As in :class:`Column`.
    """
    if kind == "mark":
        return _BEST if value else ""
    if value is None:
        return _UNKNOWN if kind in NUMBERS else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or kind not in NUMBERS:
        return printable(str(value))
    values = value if isinstance(value, tuple) else (value,)
    texts = (_UNKNOWN if v is None else NUMBERS[kind](zero_noise(v)) for v in values)
    estimate, *bounds = texts
    return estimate if {*bounds} <= {_UNKNOWN} else f"{estimate} [{', '.join(bounds)}]"


def _shown(table: Table) -> tuple[list[Column], list[list[str]]]:
    """Columns for people that hold a value in some row, and the texts of each row."""
    texts = [
        [format_value(value, column.kind) for value, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    kept = [
        at
        for at, column in enumerate(table.columns)
        if not column.csv_only and (at == 0 or any(row[at] not in _EMPTY for row in texts))
    ]
    return [table.columns[at] for at in kept], [[row[at] for at in kept] for row in texts]


def _header(column: Column) -> str:
    return "" if column.kind == "mark" else printable(column.name)


def to_terminal(table: Table) -> str:
    """Lines of a terminal, without colour; numbers stand to the right.

    Where the terminal is too narrow, words are broken into lines and numbers are not: a number
    that lacks digits is another number.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    columns, rows = _shown(table)
    lines = [printable(table.title)] if table.title else []
    if rows:
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            if column.kind in NUMBERS:
                grid.add_column(_header(column), justify="right", no_wrap=True)
            else:
                grid.add_column(_header(column), justify="left", overflow="fold")
        for row in rows:
            grid.add_row(*row)
        # ``[bold]`` and ``:smile:`` are names like others.
        console = Console(width=_WIDTH, no_color=True, markup=False, emoji=False, highlight=False)
        with console.capture() as capture:
            console.print(grid)
        lines += [line.rstrip() for line in capture.get().splitlines() if line.strip()]
    return "\n".join([*lines, *(wrapped(note) for note in table.notes)])


def wrapped(sentence: str) -> str:
    """A sentence as lines of a terminal; a number and its % stay together."""
    text = printable(sentence).replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.fill(text, _SENTENCE_WIDTH, break_on_hyphens=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


#: What Markdown may take for more than a character. A bracket that no address follows, an
#: underscore inside a word and a backslash before a letter are themselves already.
_MARKUP = re.compile(r"\](?=[(\[:])|[`*~$]|\\(?=[!-/:-@\[-`{-~])|(?<![^\W_])_|_(?=_*(?:\W|$))")
_ENTITY = re.compile(r"&(?=#?\w+;)")
#: Commands that our sentences name.
_COMMAND = re.compile(r"(`headrace [^`]*`)")


def _in_markdown(text: str) -> str:
    """A text with names in it as it stands: no links, code, emphasis, formulas or tags."""
    plain = _ENTITY.sub("&amp;", printable(text)).replace("<", "&lt;")
    return _MARKUP.sub(r"\\\g<0>", plain)


def _prose(sentence: str) -> str:
    """The same, but our own commands stay code."""
    parts = _COMMAND.split(sentence)
    return "".join(part if k % 2 else _in_markdown(part) for k, part in enumerate(parts))


def to_markdown(table: Table) -> str:
    """A title, a table of Markdown, and its notes as a list."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(_in_markdown(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    columns, rows = _shown(table)
    lines = [f"### {_in_markdown(table.title)}", ""] if table.title else []
    if rows:
        rule = "".join("--:|" if column.kind in NUMBERS else "---|" for column in columns)
        lines += [line(map(_header, columns)), f"|{rule}", *map(line, rows), ""]
    return "\n".join([*lines, *(f"- {_prose(note)}" for note in _legend(table, columns))]).rstrip()


def _legend(table: Table, columns: Sequence[Column]) -> list[str]:
    """Notes, then what columns mean where that needs a sentence."""
    return [*table.notes, *(f"{column.name}: {column.help}" for column in columns if column.help)]


#: A spreadsheet takes text that starts so for a formula and runs it (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@")


def to_csv(*tables: Table) -> str:
    """A header and the rows of all tables below it; numbers have all their digits.

    Names of groups, classes and files are the user's: text that would be a formula gets an
    apostrophe in front, which spreadsheets do not show.
    """
    rows = [row for table in tables for row in _csv_rows(table)]
    names = dict.fromkeys(name for table in tables for name in _csv_names(table))
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_inert(row.get(name)) for name in names] for row in rows)
    return file.getvalue()


def _csv_names(table: Table) -> Iterator[str]:
    yield from table.about
    for column in table.columns:
        yield from _csv_columns(column)


def _csv_columns(column: Column) -> list[str]:
    name = re.sub(r"[^a-z0-9]+", "_", column.name.lower()).strip("_")
    return [name, f"{name}_low", f"{name}_high"] if column.interval else [name]


def _csv_rows(table: Table) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        values = dict(table.about)
        for column, value in zip(table.columns, row, strict=True):
            names = _csv_columns(column)
            parts = value if isinstance(value, tuple) else (value,)
            values |= dict(zip(names, parts, strict=False))
        yield values


def _inert(value: Any) -> Any:
    if isinstance(value, float):
        return zero_noise(value)
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def to_html(table: Table) -> str:
    """A ``<table>`` that scrolls by itself, and its notes; every text is escaped."""
    columns, rows = _shown(table)
    classes = [' class="n"' if column.kind in NUMBERS else "" for column in columns]
    title = escape(printable(table.title))
    head = "".join(
        f'<th scope="col"{of}>{escape(_header(column))}</th>'
        for of, column in zip(classes, columns, strict=True)
    )
    body = "\n".join(f"<tr>{_html_row(row, classes)}</tr>" for row in rows)
    notes = "".join(f'\n<p class="note">{_html_text(n)}</p>' for n in _legend(table, columns))
    grid = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{title}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
    return f"{grid if rows else ''}{notes}"


def _html_row(cells: Sequence[str], classes: Sequence[str]) -> str:
    first, *others = (escape(cell) for cell in cells)
    rest = (f"<td{of}>{cell}</td>" for of, cell in zip(classes[1:], others, strict=True))
    return f'<th scope="row">{first}</th>{"".join(rest)}'


def _html_text(sentence: str) -> str:
    """A sentence with its commands as code."""
    parts = (escape(printable(part)) for part in _COMMAND.split(sentence))
    return "".join(f"<code>{p[1:-1]}</code>" if k % 2 else p for k, p in enumerate(parts))


def terminal_text(parts: Iterable[Part]) -> str:
    """What a terminal is shown: all parts but the details, with an empty line between."""
    texts = (
        to_terminal(part) if isinstance(part, Table) else wrapped(part)
        for part in parts
        if not (isinstance(part, Detail) or (isinstance(part, Table) and part.detail))
    )
    return "\n\n".join(text for text in texts if text)


def markdown_text(title: str, parts: Iterable[Part]) -> str:
    """A document with all parts, details too."""
    texts = [f"# {_in_markdown(title)}"]
    for part in parts:
        if isinstance(part, Table):
            texts.append(to_markdown(part))
        else:
            texts.append(f"## {_in_markdown(part)}" if isinstance(part, Heading) else _prose(part))
    return "\n\n".join(text for text in texts if text) + "\n"


def csv_files(parts: Iterable[Part]) -> dict[str, str]:
    """Contents of CSV files by their stems; tables of one key stand below one another."""
    by_key: dict[str, list[Table]] = {}
    for part in parts:
        if isinstance(part, Table) and part.key:
            by_key.setdefault(part.key, []).append(part)
    return {key: to_csv(*tables) for key, tables in by_key.items()}
