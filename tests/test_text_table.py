"""Tables for a terminal show what they are given."""

import io

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.report.text_tables import new_table, render

#: Names that rich would take for markup: an end without a start is an error there.
NAMES = ["[/old]", "[bold]", "[red]ill[/red]", ":smile:", "a\\[b]", "[link=http://x]y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_cell_or_a_header_is_printed_as_it_is(name):
    """Square brackets are no markup, words between colons no picture."""
    table = new_table(["group", name], left=1)
    table.add_row(name, "1")
    words = [line.split() for line in render(table).splitlines()]
    assert ["group", name] in words
    assert [name, "1"] in words


def test_a_name_beside_a_bar_is_printed_as_it_is():
    """What is worked on may be called ``[/old]``."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    bar = progress._bar(console)
    bar.add_task("[/old]", total=2)
    console.print(bar.get_renderable())
    assert "[/old]" in console.file.getvalue()
