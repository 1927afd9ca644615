"""A table with a row for each image: its path, class, patient, hospital and split.

Columns are those that the study names, or are known by their names; what was found is said.
Paths are looked up among the files that are really below the folder of images.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.data.class_folders import images_below
from pipeline.data.items import NO_CLASS, Item, Listing
from pipeline.data.tables import Row, check_header, fail, read_rows
from pipeline.errors import StudyError
from pipeline.study import COLUMNS, Domain, ImageTable
from pipeline.words import are, counted, printable

_LOG = logging.getLogger(__name__)
#: Names by which a column is known, without spaces, lines and capitals.
_USUAL = {
    "path": ("path", "filepath", "imagepath", "filename", "file", "image", "imageindex", "imageid",
             "imagename", "dicompath", "isicid", "id"),
    "label": ("label", "class", "target", "diagnosis", "finding", "findinglabels", "category"),
    "patient": ("patient", "patientid", "subject", "subjectid", "patientnumber"),
    "domain": ("domain", "site", "hospital", "center", "centre", "institution"),
    "split": ("split", "fold", "subset", "partition"),
}  # fmt: skip
_ONE = {"1", "true", "yes"}


def scan(domain: Domain) -> Listing:
    """The images that rows of the domain name and that are there.

    Raises:
        StudyError: A column is missing or unclear, no row is of the domain, no image is
            found, or two rows contradict each other.
    """
    table = domain.table
    if table is None:
        raise ValueError("the domain has no table")
    rows = read_rows(table.file)
    header = next(rows, Row(1, []))
    columns = find_columns(table, header, labelled=domain.labelled)
    cells_of = _picker(columns, header)
    found = images_below(domain.path, ignore=domain.ignore or ())
    look_up = _Lookup(found.items)
    left_out: Counter[str] = Counter()
    items: dict[str, Item] = {}
    absent: list[str] = []
    for row in _rows_of_domain(domain, table, columns, rows, cells_of):
        cells = cells_of(row)
        path = cells["path"]
        label = _label(table, row, columns, cells, header) if domain.labelled else NO_CLASS
        if label is None:
            left_out["without a class of the study"] += 1
        elif (image := look_up.find(path)) is None:
            absent.append(path)
        else:
            item = replace(
                image, path=path, label=label, patient=cells["patient"], split=cells["split"]
            )
            if items.setdefault(image.file, item) != item:
                fail(table.file, row.line, f"{printable(path)} has another row that differs")
    _check_found(domain, items, absent, left_out)
    ignored = Counter(found.ignored) + Counter({"not in the table": len(found.items) - len(items)})
    ordered = sorted(items.values(), key=lambda item: item.path)
    return Listing(items=tuple(ordered), ignored=ignored + left_out, unread=found.unread)


def find_columns(
    table: ImageTable, header: Row, *, labelled: bool = True
) -> dict[str, tuple[str, ...]]:
    """What each column is for: as the study says, else by its name.

    Args:
        table: Of the study.
        header: Its first row.
        labelled: Whether a label is needed.

    Returns:
        Names of columns, by what they are for; what is not there is missing.

    Raises:
        StudyError: A column is missing, or two fit.
    """
    check_header(table.file, header)
    shown = ", ".join(map(printable, header.cells)) or "nothing"
    columns = dict(table.columns)
    for names in columns.values():
        if missing := [name for name in names if name not in header.cells]:
            fail(table.file, header.line, f"no column {missing[0]!r}; the columns are {shown}")
    for use in COLUMNS:
        fits = [name for name in header.cells if _plain(name) in _USUAL[use]]
        if use in columns or (use == "label" and not labelled):
            continue
        if len(fits) > 1:
            fail(
                table.file,
                header.line,
                f"{', '.join(map(printable, fits))}: which is the {use}? Write "
                f"columns = {{{use} = {fits[0]!r}}} in the study",
            )
        if fits:
            columns[use] = (fits[0],)
    for use in ("path", "label") if labelled else ("path",):
        if use not in columns:
            fail(
                table.file,
                header.line,
                f"it is unclear which column is the {use}; the columns are {shown}. Write "
                f'columns = {{{use} = "NAME"}} in the study',
            )
    return columns


class _Lookup:
    """Finds the file that a table means.

    Tables often leave out the ending, begin their paths above the folder (then all with the
    same folders), or give a bare name wherever the file lies. A name of two files is neither.
    """

    def __init__(self, images: Sequence[Item]) -> None:
        self._by_path = {image.path: image for image in images}
        self._by_name: dict[str, Item | None] = {}
        for image in images:
            path = PurePosixPath(image.path)
            for name in {path.name, path.stem, str(path.with_suffix(""))}:
                self._by_name[name] = None if name in self._by_name else image
        self._above: int | None = None
        self._prefix: list[str] = []

    def find(self, path: str) -> Item | None:
        """The image, or None where none fits, or several do."""
        if image := self._by_path.get(path) or self._by_name.get(path):
            return image
        parts = path.replace("\\", "/").split("/")
        starts = range(1, len(parts)) if self._above is None else [self._above]
        for start in starts:
            image = self._by_path.get("/".join(parts[start:]))
            if image and (self._above is None or parts[:start] == self._prefix):
                self._above, self._prefix = start, parts[:start]
                return image
        return None


def _picker(columns: Mapping[str, tuple[str, ...]], header: Row) -> Callable[[Row], dict[str, str]]:
    """From a row to its cells by what they are for; empty where there is no column."""
    index = {use: header.cells.index(names[0]) for use, names in columns.items()}
    return lambda row: {use: row.cells[index[use]] if use in index else "" for use in COLUMNS}


def _rows_of_domain(
    domain: Domain,
    table: ImageTable,
    columns: Mapping[str, tuple[str, ...]],
    rows: Iterator[Row],
    cells_of: Callable[[Row], dict[str, str]],
) -> Iterator[Row]:
    if not table.domain:
        if "domain" in table.columns:
            raise StudyError(
                f'{domain.name}: a domain column is named; write domain = "TEXT", of its rows'
            )
        yield from rows
        return
    if "domain" not in columns:
        raise StudyError(f'{table.file} has no domain column; write columns = {{domain = "NAME"}}')
    others: set[str] = set()
    count = 0
    for row in rows:
        name = cells_of(row)["domain"]
        if name == table.domain:
            count += 1
            yield row
        others.add(name)
    if not count:
        known = ", ".join(sorted(map(printable, others))[:10])
        raise StudyError(f"{table.file} has no row of domain {table.domain!r}; it has {known}")


def _label(
    table: ImageTable,
    row: Row,
    columns: Mapping[str, tuple[str, ...]],
    cells: Mapping[str, str],
    header: Row,
) -> str | None:
    """The class of a row; None where it has none of those that are asked for."""
    names = columns["label"]
    if len(names) > 1:
        ones = [n for n in names if _whole(row.cells[header.cells.index(n)]).lower() in _ONE]
        if len(ones) > 1:
            fail(table.file, row.line, f"several classes are 1: {', '.join(ones)}; allowed is one")
        return ones[0] if ones else None
    cell = _whole(cells["label"])
    if not table.values:
        return cell or None
    fits = [k for k, texts in table.values.items() if any(fnmatchcase(cell, t) for t in texts)]
    if len(fits) > 1:
        fail(
            table.file,
            row.line,
            f"the label {printable(cell)!r} is of {' and '.join(fits)} by `values`; allowed is one",
        )
    return fits[0] if fits else None


def _check_found(
    domain: Domain, items: Mapping[str, Item], absent: Sequence[str], left_out: Counter[str]
) -> None:
    table = domain.table and domain.table.file
    if not items:
        first = (
            f"; first: {printable(absent[0])}" if absent else f" ({sum(left_out.values())} rows)"
        )
        raise StudyError(
            f"{domain.name}: no image of {table} is below {domain.path}{first}. Write "
            "images = FOLDER, where its paths start"
        )
    if absent:
        _LOG.warning(
            "%s: %s of %s %s not below %s, or their names are there twice; first: %s",
            *(domain.name, counted(len(absent), "image"), table, are(len(absent))),
            *(domain.path, printable(absent[0])),
        )
    for reason, count in left_out.items():
        _LOG.warning("%s: %s of %s left out: %s", domain.name, counted(count, "row"), table, reason)


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name).casefold()


def _whole(cell: str) -> str:
    """``1.0`` is 1: programs write whole numbers as decimals where some are missing."""
    return cell[:-2] if re.fullmatch(r"-?\d+\.0", cell) else cell
