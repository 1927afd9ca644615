"""Small tables for a terminal: text to the left, numbers to the right."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 120


def table(columns: Sequence[str], *, left: int) -> Table:
    """An empty table; the first ``left`` columns hold text."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return made


def rendered(table: Table) -> str:
    """The table as plain text, ``WIDTH`` columns wide at most."""
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def number(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    return "-" if value is None else f"{value:.3f}"
