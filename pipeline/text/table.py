"""Tables of text for a terminal, numbers to the right."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.text.rounding import settled

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
    return "-" if value is None else f"{settled(value):.3f}"


def percent(share: float) -> str:
    """A share in per cent, to a tenth."""
    return f"{100 * share:.1f} %"


def p_text(p: float | None) -> str:
    """Three digits, and never the claim that it is zero; a dash for what is not known."""
    return "<.001" if p is not None and p < 0.001 else number(p)  # noqa: PLR2004
