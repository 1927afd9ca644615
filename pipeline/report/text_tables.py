"""Tables of text for a terminal, numbers to the right."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.words import in_cell, in_markdown, zero_noise

#: Columns of a terminal that every table fits.
WIDTH = 120


def new_table(columns: Sequence[str], *, left: int) -> Table:
    """An empty table; the first ``left`` columns hold words, the others numbers.

    Where the terminal is too narrow words are broken into lines, for a number that lacks
    digits is another number.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        if number < left:
            table.add_column(column, justify="left", overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def render(table: Table) -> str:
    """The table as lines, without colour; ``[bold]`` and ``:smile:`` are names like others."""
    console = Console(width=WIDTH, no_color=True, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def number(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    return "-" if value is None else f"{zero_noise(value):.3f}"


def percent(share: float) -> str:
    """A share in per cent, to a tenth."""
    return f"{100 * share:.1f} %"


def p_text(p: float | None) -> str:
    """Three digits, and never the claim that it is zero; a dash for what is not known."""
    return "<.001" if p is not None and p < 0.001 else number(p)


# Sentences and tables of the stage's report as Markdown, with names shown as they stand.


#: Commands that sentences of ours name.
_COMMAND = re.compile(r"(`headrace [^`]*`)")
#: How rows and tests name a class that they are about.
_CLASS = re.compile(r"(\|class=|\bclass )(\d+)$")


def prose(sentence: str) -> str:
    """A sentence with names in it; commands of ours stay code."""
    parts = _COMMAND.split(sentence)
    return "".join(part if k % 2 else in_markdown(part) for k, part in enumerate(parts))


def table(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    """Lines of a table; columns that are empty in every row are left out.

    Args:
        rows: Values by column.
        classes: In label order; a row that is about a class by number is given its name.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    if not columns:
        return ["none"]
    return grid(columns, [[_cell(row.get(name), classes) for name in columns] for row in rows])


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table whose cells are Markdown already."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def _cell(value: Any, classes: Sequence[str]) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{zero_noise(value):.4g}"
    return in_cell(_CLASS.sub(lambda found: _class_of(found, classes), str(value)))


def _class_of(found: re.Match[str], classes: Sequence[str]) -> str:
    before, number = found.groups()
    if int(number) >= len(classes):
        return found[0]
    return f"{' in ' if before.startswith('|') else ''}class {classes[int(number)]}"


# Tables as comma-separated values, for people who open them in a spreadsheet.


#: A spreadsheet takes text that starts so for a formula and runs it (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A header and rows below it.

    Names of groups, classes and files are the user's: text that would be a formula gets an
    apostrophe in front, which spreadsheets do not show. Numbers stay numbers.

    Args:
        header: Of each column.
        rows: As many values each; None is an empty cell.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_inert(value) for value in row] for row in (header, *rows))
    return file.getvalue()


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
