"""Tables of text for a terminal, numbers to the right."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

#: Columns of a terminal that every table fits.
WIDTH = 120


def new_table(columns: Sequence[str], *, left: int) -> Table:
    """An empty table; the first ``left`` columns hold words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def render(table: Table) -> str:
    """The table as lines, without colour."""
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def number(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    return "-" if value is None else f"{value:.3f}"
