"""Sentences and tables of the stage's report as Markdown, with names shown as they stand."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.text.names import in_cell, in_markdown
from pipeline.text.rounding import settled

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
        return f"{settled(value):.4g}"
    return in_cell(_CLASS.sub(lambda found: _class_of(found, classes), str(value)))


def _class_of(found: re.Match[str], classes: Sequence[str]) -> str:
    before, number = found.groups()
    if int(number) >= len(classes):
        return found[0]
    return f"{' in ' if before.startswith('|') else ''}class {classes[int(number)]}"
