"""Tables as files: CSV, TSV and Parquet become a header and rows of texts."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cache import disk
from pipeline.data.items import SUFFIXES as IMAGES
from pipeline.data.items import system_reason
from pipeline.errors import StudyError
from pipeline.words import composed, printable

_SEPARATORS = {".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")
_NO_TABLES = (".xlsx", ".xls", ".ods", ".json", ".xml", ".zip", ".gz", ".tar", *IMAGES)
SUFFIXES = (".csv", *_SEPARATORS, *_PARQUET)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: Where it stands in the file, counted from 1; the header is the first.
        cells: Without outer spaces, in composed Unicode form.
    """

    line: int
    cells: list[str]


def read_rows(file: Path) -> Iterator[Row]:
    """The header, then every row that is not blank.

    Args:
        file: UTF-8 CSV with commas (or semicolons, where the header has no comma), ``.tsv``,
            or ``.parquet``.

    Raises:
        StudyError: It cannot be read, is not UTF-8 or no such table, or a row has another
            number of cells than the header.
    """
    if file.suffix.lower() in _NO_TABLES:
        raise StudyError(
            f"{file} is not read: a table is a CSV, TSV or Parquet file. Save a sheet of Excel as "
            '"CSV UTF-8"; unpack an archive; of an image give the folder above its class folder'
        )
    rows = _parquet(file) if file.suffix.lower() in _PARQUET else _text_rows(file)
    width = 0
    for row in rows:
        width = width or len(row.cells)
        if len(row.cells) != width:
            fail(file, row.line, f"{len(row.cells)} cells, but the header has {width}")
        yield row


def read_lines(file: Path) -> tuple[str, ...]:
    """The lines of a text file in composed Unicode form, without comments and blank ones.

    Raises:
        StudyError: It cannot be read, or is not UTF-8.
    """
    lines = _text(file).splitlines()
    return tuple(composed(line) for line in lines if line.strip() and not line.startswith("#"))


def check_header(file: Path, header: Row) -> None:
    """Refuse a table in which two columns have one name."""
    names = header.cells
    if twice := [name for name in names if name and names.count(name) > 1]:
        fail(file, header.line, f"two columns are called {printable(twice[0])!r}: rename one")


def fail(file: Path, line: int, message: str) -> NoReturn:
    """Raise a StudyError about one line of a table."""
    raise StudyError(f"{file} line {line}: {message}")


def _text_rows(file: Path) -> Iterator[Row]:
    text = _text(file)
    header = text.partition("\n")[0]
    usual = ";" if ";" in header and "," not in header else ","
    separator = _SEPARATORS.get(file.suffix.lower(), usual)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield Row(reader.line_num, [composed(cell.strip()) for cell in cells])
    except csv.Error as cause:
        fail(file, reader.line_num, f"not CSV ({cause}): put quotes around cells with commas")


def _text(file: Path) -> str:
    try:
        content = disk.read_all(file.resolve())
    except OSError as cause:
        raise StudyError(f"{file} cannot be read: {system_reason(cause)}") from cause
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise StudyError(
            f"{file} line {line} is not UTF-8 (byte {content[cause.start]:#x}): save the "
            'table as "CSV UTF-8"'
        ) from cause


def _parquet(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as cause:
        raise StudyError(
            f'{file}: Parquet needs pyarrow: pip install "headrace[parquet]"'
        ) from cause
    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as cause:
        raise StudyError(f"{file} is no Parquet file, or a damaged one ({cause})") from cause
    yield Row(1, [composed(name) for name in table.column_names])
    columns = [column.to_pylist() for column in table.columns]
    for line, values in enumerate(zip(*columns, strict=True), start=2):
        yield Row(line, [composed("" if v is None else str(v).strip()) for v in values])
