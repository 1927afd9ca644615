"""Tables as comma-separated values, for people who open them in a spreadsheet."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

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
