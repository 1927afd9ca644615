"""Tables as files, and tables with a row for each image: its path, class, patient, hospital, split.

CSV, TSV and Parquet become a header and rows of texts. The study names the columns, or they are
recognised by their headers. Paths are looked up among the files that are really in the folder.
"""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from pipeline.data.items import NO_CLASS, Item, Listing, images_in, read_text
from pipeline.data.items import SUFFIXES as IMAGES
from pipeline.errors import StudyError
from pipeline.parallel import Mapper, in_turn
from pipeline.study import COLUMNS, Domain, ImageTable, classes_of
from pipeline.words import are, composed, counted, printable

_LOG = logging.getLogger(__name__)
#: Headers by which a column is recognised, without spaces, underscores and capitals.
_USUAL = {
    "path": ("path", "filepath", "imagepath", "filename", "file", "image", "imageindex", "imageid",
             "imagename", "dicompath", "isicid", "id", "idcode"),
    "label": ("label", "labels", "class", "classname", "target", "diagnosis", "diagnostic",
              "finding", "findinglabels", "category", "pathology", "level", "dx"),
    "patient": ("patient", "patientid", "subject", "subjectid", "patientnumber"),
    "domain": ("domain", "site", "hospital", "center", "centre", "institution"),
    "split": ("split", "fold", "subset", "partition"),
}  # fmt: skip
_WHERE = "in the study, or name it so in the table"
_HOW_TO_FIND = "Write images = FOLDER, where its paths start"
_YES = ("1", "true", "yes")
#: Meaning of the cell of a finding; None is without a label. CheXpert writes -1 for uncertain.
_MARKS = {
    **dict.fromkeys(_YES, True),
    **dict.fromkeys(("0", "false", "no"), False),
    **dict.fromkeys(("", "-1", "nan"), None),
}
#: A table has several classes for an image if it has more different rows for each than this.
_MOST_SLIPS = 1.05
_SEPARATORS = {".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")
_NO_TABLES = (
    ".xlsx", ".xls", ".ods", ".json", ".xml", ".zip", ".gz", ".tar", ".h5", ".hdf5", ".mat",
    *IMAGES,
)  # fmt: skip


class Row(NamedTuple):
    """A row of texts, without outer spaces and in composed Unicode form.

    Attributes:
        line: Its line in the file, from 1; in an array its row, from 0.
        cells: One text for each column.
    """

    line: int
    cells: list[str]


def read_table(file: Path) -> tuple[Row, Iterator[Row]]:
    """The header, and every row that is not blank.

    Args:
        file: UTF-8 CSV with commas (or semicolons, where the header has no comma), ``.tsv``, or
            ``.parquet``.

    Raises:
        StudyError: It is not such a table, or its columns or rows do not fit its header.
    """
    if file.suffix.lower() in _NO_TABLES:
        raise StudyError(
            f"{file} is not read: a table is a CSV, TSV or Parquet file. Save a sheet of Excel as "
            '"CSV UTF-8"; unpack an archive; save arrays as .npz with train_images and '
            "train_labels; of an image give the folder above its class folder"
        )
    rows = _parquet(file) if file.suffix.lower() in _PARQUET else _text_rows(file, read_text(file))
    header = next(rows, Row(1, []))
    names = header.cells
    if twice := [name for name in names if name and names.count(name) > 1]:
        fail(file, header.line, f"two columns are called {printable(twice[0])!r}: rename one")

    def check(row: Row) -> Row:
        if len(row.cells) != len(names):
            fail(file, row.line, f"{len(row.cells)} cells, but the header has {len(names)}")
        return row

    return header, map(check, rows)


def read_header(file: Path) -> list[str]:
    """The names of the columns; of a text file its first line is read, if that is the header."""
    if file.is_file() and file.suffix.lower() not in (*_NO_TABLES, *_PARQUET):
        with suppress(OSError, ValueError), file.open("rb") as stream:
            for row in _text_rows(file, stream.readline().decode("utf-8-sig")):
                return row.cells
    return read_table(file)[0].cells  # or the error that says what is wrong


def fail(file: Path, line: int, message: str, *, unit: str = "line") -> NoReturn:
    """Raise a StudyError about one line of a table."""
    raise StudyError(f"{file} {unit} {line}: {message}")


def _text_rows(file: Path, text: str) -> Iterator[Row]:
    header = text.lstrip().partition("\n")[0]
    usual = ";" if ";" in header and "," not in header else ","
    separator = _SEPARATORS.get(file.suffix.lower(), usual)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield Row(reader.line_num, [composed(cell.strip()) for cell in cells])
    except csv.Error as cause:
        fail(file, reader.line_num, f"not CSV ({cause}): put quotes around cells with commas")


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


# A row for each image.


def scan_table(domain: Domain, mapper: Mapper = in_turn) -> Listing:
    """The existing images that rows of the domain name; a StudyError for faults of the table."""
    images = images_in(domain.path, ignore=domain.ignore or (), mapper=mapper)
    look_up, table = _Lookup(images.items), Table.of(domain)
    without_class, absent = 0, []
    items: dict[str, Item] = {}
    for row in table.rows():
        path, patient, split = (table.cell(row, use) for use in ("path", "patient", "split"))
        label = table.label(row) if domain.labelled else NO_CLASS
        without_class += label is None
        if label is None and not table.finding:
            continue
        if (image := look_up.find(path)) is None:
            absent.append(path)
            continue
        item = replace(image, path=path, label=label or NO_CLASS, patient=patient, split=split)
        items[image.file] = table.joined(row, items.get(image.file, item), item)
    if not items:
        why = f"; first: {printable(absent[0])}" if absent else ", or no row has a class"
        raise StudyError(
            f"{domain.name}: no image of {table.file} is below {domain.path}, or their names are "
            f"there twice{why}. {_HOW_TO_FIND}"
        )
    table.check_finding(item.label for item in items.values())
    if absent:
        _LOG.warning(
            "%s: %s of %s %s not below %s, or their names are there twice; first: %s. %s",
            *(domain.name, counted(len(absent), "image"), table.file, are(len(absent))),
            *(domain.path, printable(absent[0]), _HOW_TO_FIND),
        )
    if without_class:
        why = f"{table.finding} is empty or -1" if table.finding else "without a class of the study"
        _LOG.warning(
            "%s: %s of %s left out: %s",
            *(domain.name, counted(without_class, "row"), table.file, why),
        )
    # Images of other hospitals in the same table are no news.
    elsewhere = {image.file for path in table.of_others if (image := look_up.find(path))}
    unlisted = len(images.items) - len(elsewhere | items.keys())
    others = Counter({"in no row that is taken": unlisted})
    ordered = tuple(sorted(items.values(), key=lambda item: item.path))
    return replace(images, items=ordered, ignored=Counter(images.ignored) + others)


def find_columns(
    table: ImageTable, header: Row, *, labelled: bool = True
) -> dict[str, tuple[str, ...]]:
    """Names of the columns by their use, as the study says or as they are usually called."""
    shown = ", ".join(map(printable, header.cells)) or "nothing"
    columns = dict(table.columns)
    for names in columns.values():
        if missing := [name for name in names if name not in header.cells]:
            fail(table.file, header.line, f"no column {missing[0]!r}; the columns are {shown}")
    for use in COLUMNS:
        fits = [name for name in header.cells if _normalised(name) in _USUAL[use]]
        if use in columns or not fits or (use == "label" and not labelled):
            continue
        if len(fits) > 1:
            question = f"{', '.join(map(printable, fits))}: which is the {use}?"
            hint = f"Write columns = {{{use} = {fits[0]!r}}} {_WHERE}"
            fail(table.file, header.line, f"{question} {hint}")
        columns[use] = (fits[0],)
    if unclear := [use for use in ("path", *["label"] * labelled) if use not in columns]:
        what, hint = unclear[0], f'columns = {{{unclear[0]} = "NAME"}}'
        if what == "label" and table.finding:
            what, hint = repr(table.finding), f'values = {{{table.finding!r} = "NAME"}}'
        question = f"it is unclear which column is the {what}; the columns are {shown}"
        if any(name.count("/") > 1 or name.lower().endswith(IMAGES) for name in header.cells):
            row = "this seems to be a row already: write a line above it with names of the columns"
            fail(table.file, header.line, f"{row}, such as path,label")
        none = "; if none names images, add such a column" if what == "path" else ""
        fail(table.file, header.line, f"{question}. Write {hint} {_WHERE}{none}")
    return columns


def check_finding(domain: Domain) -> None:
    """Refuse a table that lacks the domain's finding; images are not looked up."""
    table = Table.of(domain)
    table.check_finding(map(table.label, table.rows()))


def several_findings(header: Row, rows: Sequence[Row]) -> list[str]:
    """Findings of a table whose images can have several; empty if each image has one class.

    They are several texts in a cell of the label or in several rows, or columns that hold only
    marks.
    """
    columns = dict(zip(header.cells, zip(*(row.cells for row in rows), strict=True), strict=False))
    images = [c for name, c in columns.items() if _normalised(name) in _USUAL["path"]]
    for name, cells in columns.items():
        if _normalised(name) in _USUAL["label"]:
            several = [_texts_in(cell) for cell in cells]
            texts = {text for texts in several for text in texts if text.lower() != "no finding"}
            # A few images in rows of two classes are slips.
            again = any(
                len({*zip(c, cells, strict=True)}) > _MOST_SLIPS * len({*c}) for c in images
            )
            return sorted(texts - {""}) if again or max(map(len, several)) > 1 else []
    others = {name for use, names in _USUAL.items() if use != "label" for name in names}
    columns = {name: cells for name, cells in columns.items() if _normalised(name) not in others}
    marks = {name: [_whole(cell).lower() for cell in cells] for name, cells in columns.items()}
    marks = {n: m for n, m in marks.items() if set(m) <= {*_MARKS} and set(m) & {*_YES}}
    is_class = all(
        sum(mark in _YES for mark in row) == 1 for row in zip(*marks.values(), strict=True)
    )
    return [] if is_class else [*marks]


class _Lookup:
    """Finds the file that a table means.

    Tables often leave out the ending, begin their paths above the folder (then all with the
    same folders), or give only the file's name. A name that two files have finds neither.
    """

    def __init__(self, images: Sequence[Item]) -> None:
        self._by_path = {image.name: image for image in images}
        self._by_name: dict[str, Item | None] = {}
        for image in images:
            path = PurePosixPath(image.name)
            for name in {path.name, path.stem, str(path.with_suffix(""))}:
                self._by_name[name] = None if name in self._by_name else image
        self._above: int | None = None
        self._prefix: list[str] = []

    def find(self, path: str) -> Item | None:
        """The image; None if no image fits, or several do."""
        # Windows writes a\b for a/b.
        slashed = path.replace("\\", "/")
        for name in (path, slashed):
            if image := self._by_path.get(name) or self._by_name.get(name):
                return image
        parts = slashed.split("/")
        starts = range(1, len(parts)) if self._above is None else [self._above]
        for start in starts:
            image = self._by_path.get("/".join(parts[start:]))
            if image and (self._above is None or parts[:start] == self._prefix):
                self._above, self._prefix = start, parts[:start]
                return image
        return None


class Table:
    """The table of a domain: its rows, and the meaning of their cells.

    Errors call a row a ``unit``: a line of a file, or a row of an array.
    """

    def __init__(
        self,
        domain: Domain,
        file: Path,
        header: Row,
        rows: Iterable[Row] = (),
        *,
        unit: str = "line",
    ) -> None:
        self._domain, self._table = domain, domain.table or ImageTable(file=file)
        self.file, self._rows, self._unit = file, rows, unit
        self.finding = self._table.finding or ""
        #: Paths in the rows of other domains, once all rows were read.
        self.of_others: set[str] = set()
        self._names = self._table.values.get(self.finding, (self.finding,))
        marks = [at for at, name in enumerate(header.cells) if name in self._names]
        self._marks = marks if self.finding else []
        columns = find_columns(self._table, header, labelled=domain.labelled and not self._marks)
        self._at = {use: header.cells.index(names[0]) for use, names in columns.items()}
        self._classes = {n: header.cells.index(n) for n in columns.get("label", ())}

    @classmethod
    def of(cls, domain: Domain) -> "Table":
        """The table in the file that the study names."""
        assert domain.table is not None  # noqa: S101 - the kind of input says so
        return cls(domain, domain.table.file, *read_table(domain.table.file))

    def rows(self) -> Iterator[Row]:
        """Rows of the domain."""
        wanted = self._table.domain
        if not wanted:
            if "domain" in self._table.columns:
                name = self._domain.name
                raise StudyError(f'{name}: a domain column is named; write domain = "TEXT"')
            yield from self._rows
            return
        if "domain" not in self._at:
            raise StudyError(f'{self.file} has no domain column; write columns = {{domain = "X"}}')
        others: set[str] = set()
        for row in self._rows:
            others.add(name := self.cell(row, "domain"))
            if name == wanted:
                yield row
            else:
                self.of_others.add(self.cell(row, "path"))
        if wanted not in others:
            names = ", ".join(sorted(map(printable, others))[:10])
            raise StudyError(f"{self.file} has no row of domain {wanted!r}; it has {names}")

    def cell(self, row: Row, use: str) -> str:
        """The cell of a row for one use; empty if there is no such column."""
        return row.cells[self._at[use]] if use in self._at else ""

    def label(self, row: Row) -> str | None:
        """The class of a row; None if it has none of the wanted classes."""
        if self.finding:
            present = self._has_finding(row)
            return None if present is None else classes_of(self.finding)[present]
        values = self._table.values
        if len(self._classes) > 1:
            fits = [k for k, at in self._classes.items() if _whole(row.cells[at]).lower() in _YES]
        elif values:
            cell = _whole(self.cell(row, "label"))
            fits = [k for k, texts in values.items() if any(fnmatchcase(cell, t) for t in texts)]
        else:
            fits = [cell] if (cell := _whole(self.cell(row, "label"))) else []
        if len(fits) > 1:
            why = f"it is of {' and '.join(fits)}; allowed is one class a row"
            fail(self.file, row.line, why, unit=self._unit)
        return fits[0] if fits else None

    def joined(self, row: Row, one: Item, other: Item) -> Item:
        """An image of several rows; it has a finding that one of them names."""
        if one == other:
            return one
        hint = ""
        if replace(one, label=other.label) == other:
            if self.finding and not self._marks:
                order = (NO_CLASS, *classes_of(self.finding))
                return max(one, other, key=lambda item: order.index(item.label))
            hint = f" ({one.label or 'no label'}, {other.label or 'no label'})"
            if not self.finding:
                hint += ", or, if images can have several classes, write findings = [...]"
        why = f"{printable(other.path)} has another row that differs: give it one row{hint}"
        fail(self.file, row.line, why)

    def check_finding(self, labels: Iterable[str | None]) -> None:
        """Refuse a table that never names the finding; reading stops at the first row that does.

        Otherwise all images of such a table would count as without the finding.
        """
        wanted = classes_of(self.finding) if self._marks else (self.finding,)
        if self.finding and not any(label in wanted for label in labels):
            raise StudyError(
                f"{self._domain.name}: no row of {self.file} names {self.finding!r}. Write values "
                f'= {{{self.finding!r} = "NAME"}} with what it is called there; of a target, '
                "findings = [...] may list those that it has"
            )

    def _has_finding(self, row: Row) -> bool | None:
        """Whether the finding is marked in its columns, or is one of the texts of the label."""
        if not self._marks:
            texts = _texts_in(self.cell(row, "label"))
            named = any(fnmatchcase(text, n) for text in texts for n in self._names)
            return named if any(texts) else None
        marks = [self._mark(row, at) for at in self._marks]
        return True if True in marks else None if None in marks else False

    def _mark(self, row: Row, at: int) -> bool | None:
        cell = _whole(row.cells[at]).lower()
        if cell not in _MARKS:
            allowed = "allowed are 1, 0, and empty or -1 where it is not labelled"
            why = f"{self.finding} is {printable(cell)!r}; {allowed}"
            fail(self.file, row.line, why, unit=self._unit)
        return _MARKS[cell]


def _texts_in(cell: str) -> list[str]:
    """The texts between ``|``, or in a list as Python prints it."""
    if cell.startswith("[") and cell.endswith("]"):
        return [text.strip(" '\"") for text in cell[1:-1].split(",")]
    return [text.strip() for text in cell.split("|")]


def _normalised(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name).casefold()


def _whole(cell: str) -> str:
    """``1.0`` is 1: programs write whole numbers as decimals where some are missing."""
    return cell[:-2] if re.fullmatch(r"-?\d+\.0", cell) else cell
