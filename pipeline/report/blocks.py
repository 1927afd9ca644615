"""What a page is made of. The template knows these kinds and nothing of a study."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from rich.table import Table as RichTable

Row = TypeVar("Row")


@dataclass(frozen=True)
class Heading:
    """Of a part of a chapter; ``level`` is 3, or 4 for a part of a part."""

    text: str
    level: int = 3
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Words:
    """A paragraph; ``tone`` is ``plain``, ``lead``, ``note`` (small) or ``warning``."""

    text: str
    tone: str = "plain"
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple[str, ...]
    kind: ClassVar[str] = "items"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of texts.

    Attributes:
        caption: Says what it shows.
        columns: Title of each, and whether it holds numbers, which stand to the right.
        rows: A cell for each column; the first names the row.
    """

    caption: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure.

    Attributes:
        source: A ``data:`` address.
        width: In pixels of a screen, 96 to the inch of what was drawn for print and larger.
        alt: What it shows.
        caption: The same, and how it is to be read.
    """

    source: str
    width: int
    alt: str
    caption: str
    kind: ClassVar[str] = "picture"


Block = Heading | Words | Items | Grid | Picture


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One part of the page; ``name`` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


def grid_of(
    caption: str, rows: Iterable[Row], columns: Mapping[str, Callable[[Row], Any]], left: int = 1
) -> Grid:
    """A table with a function of the row for each column.

    Args:
        caption: Says what it shows.
        rows: One for each line.
        columns: By title; what they return is shown as it is.
        left: Columns of words, before those of numbers.
    """
    return Grid(
        caption=caption,
        columns=tuple((title, number >= left) for number, title in enumerate(columns)),
        rows=tuple(tuple(str(cell(row)) for cell in columns.values()) for row in rows),
    )


def grid_of_text(caption: str, table: RichTable) -> Grid:
    """The table that a terminal is shown."""
    columns = tuple((str(c.header), c.justify == "right") for c in table.columns)
    cells: Sequence[list[str]] = [[str(cell) for cell in c.cells] for c in table.columns]
    return Grid(caption=caption, columns=columns, rows=tuple(zip(*cells, strict=True)))


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
