"""Write a study file for folders of images, with guesses that the user can correct."""

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path, PurePosixPath

from pipeline.data.arrays import findings_of_archive, is_archive
from pipeline.data.items import NO_CLASS, TABLES, Item, Listing, images_in
from pipeline.data.patients import FIT, VALIDATION, split_of
from pipeline.data.sources import (
    NO_FOLDERS,
    folders_in_classes,
    list_images,
    read_image,
    scan,
    wrong_layout,
)
from pipeline.data.tables import Row, find_columns, read_table, several_findings
from pipeline.errors import ImageError, StudyError, WeightsError
from pipeline.features.backbones import NO_DOWNLOAD, check_backbone_name, weights_file
from pipeline.study import GIVEN, HEADER, Domain, ImageTable
from pipeline.words import class_order, counted, printable

#: Patterns for common public chest X-ray sets and the demo; a guess must fit most names.
_PATIENT_PATTERNS = (
    r"^(patient\d+)",
    r"^(person\d+|(?:NORMAL2-)?IM-\d+)",
    r"^(\d{8})_\d{3}(?!\d)",
)
_MOST = 0.95
#: File names that are shown for each class.
_SHOWN = 3
#: Rows of a table in which names of images are searched.
_ROWS = 100
_PREFERRED = "densenet121"

#: Stands for the column of the classes where it is unclear.
_UNCLEAR = "NAME"


class _Seen:
    """Tables, and the paths of the images in folders; each is read once."""

    def __init__(self) -> None:
        self.table = cache(_header_and_rows)
        self.images = cache(_paths_of_images)


def write_study(data: Sequence[Path], output: Path, backbones: Iterable[str]) -> list[str]:
    """Write a study file whose source is the first folder or file, and whose targets are the rest.

    Returns:
        Lines for the user to check: guesses, and what could not be guessed.

    Raises:
        StudyError: A folder holds no images, or the file already exists.
        UnknownNameError: There is no such backbone.
    """
    if output.exists():
        raise StudyError(f"{output} is already there: remove it, or choose --output FILE")
    notes: list[str] = []
    for name in backbones:
        check_backbone_name(name)
    seen = _Seen()
    data = [_table_of_images(path, seen, notes) or path for path in data]
    lines = [f"name = {_quoted(_study_name(output))}", "seed = 0"]
    if findings := _findings(data[0], seen):
        notes.append("[source] images have several findings; each is a study of its own")
        if is_archive(data[0]):
            notes.append(f"[source] to name a finding write values = {{NAME = {findings[0]!r}}}")
        lines.append(f"findings = {json.dumps(findings, ensure_ascii=False)}")
    lines.append("")
    for table, domain, listing in _domains(data, "" if findings else None, seen, notes):
        unclear = not (domain.labelled or findings)
        lines += _domain_lines(table, domain, listing, output, notes, unclear=unclear)
    lines += [f"[backbone.{_key(name)}]" for name in dict.fromkeys(backbones)]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return notes


def _header_and_rows(file: Path) -> tuple[Row, list[Row]]:
    header, rows = read_table(file)
    return header, [*rows]


def _paths_of_images(folder: Path) -> list[PurePosixPath]:
    return [PurePosixPath(image.name) for image in images_in(folder).items]


def _table_of_images(path: Path, seen: _Seen, notes: list[str]) -> Path | None:
    """The table in a folder whose folders are no classes; None if there is none."""
    tables = [f for f in path.glob("*") if f.suffix.lower() in TABLES] if path.is_dir() else []
    found = {t: texts for t in sorted(tables) if (texts := _classes_in(t, seen)) is not None}
    if not found:
        return None
    tables = [table for table, texts in found.items() if texts] or [*found]
    names = ", ".join(printable(table.name) for table in tables)
    above = [image.parts[:-1] for image in seen.images(path)]
    classes = {*chain(*found.values())}
    several = len({folders[0] for folders in above if folders}) > 1
    if classes.intersection(chain(*above)) or (several and not classes):
        notes.append(
            f"the folders in {path} are taken as the classes; if these are in {names}, run "
            f"headrace init {path / tables[0].name}"
        )
        return None
    if len(tables) > 1:
        raise StudyError(
            f"{path} has no class folders, but several tables: {names}. Give the one that has the "
            f"classes: headrace init {path / 'NAME.csv'}. If the table of the classes names no "
            "image, join it with one of these"
        )
    notes.append(f"{path} has no class folders; the classes are taken from {names}")
    return tables[0]


def _classes_in(file: Path, seen: _Seen) -> set[str] | None:
    """Classes or findings in a table; empty if they are unclear, None if it names no image."""
    with suppress(StudyError):
        header, rows = seen.table(file)
        _, columns = _images_of(file, seen)
        classes = set(several_findings(header, rows))
        with suppress(StudyError):
            if not classes:
                (label,) = find_columns(ImageTable(file=file, columns=columns), header)["label"]
                classes = {row.cells[header.cells.index(label)] for row in rows}
        return classes if columns else None
    return None


def default_backbone() -> tuple[str, str]:
    """DenseNet121 if its weights are available, else the backbone that needs no download.

    Returns:
        Name, and the reason as text for the user.
    """
    try:
        weights_file(_PREFERRED, "imagenet")
    except WeightsError:
        return NO_DOWNLOAD, (
            f"the weights of {_PREFERRED} are not here and cannot be downloaded; "
            f"those of {NO_DOWNLOAD} came with its package"
        )
    return _PREFERRED, "its ImageNet weights are here"


def _study_name(output: Path) -> str:
    """The study in ``chest.toml`` is called chest; that in ``study.toml`` as its folder."""
    file = output.resolve()
    return _folder_name(file.parent.name if file.stem == "study" else file.stem)


def _folder_name(text: str) -> str:
    """A folder's name in a form that a study allows; letters lose their accents."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_text).strip("._-") or "study"


def _findings(path: Path, seen: _Seen) -> list[str]:
    if not path.is_file():
        return []
    return findings_of_archive(path) if is_archive(path) else several_findings(*seen.table(path))


def _domains(
    data: Sequence[Path], finding: str | None, seen: _Seen, notes: list[str]
) -> Iterator[tuple[str, Domain, Listing]]:
    """The tables of the study file: ``source``, perhaps ``test.test``, and ``target.NAME``.

    Equal names get a number.
    """
    names: list[str] = []
    each = (_domains_of(path, finding, seen, notes) for path in data)
    for wanted, whole in chain.from_iterable(each):
        name = wanted if names else "source"
        while name in names:
            name = f"{wanted}_{len(names)}"
        table = f"target.{_key(name)}" if names else "source"
        names.append(name)
        domain, parts, listing = _corrected(table, whole, notes)
        split = "" if names[1:] else parts.get(FIT, "")
        if split and VALIDATION in parts:
            split = GIVEN
        domain = replace(domain, split=split)
        yield table, domain, scan(domain) if split else listing
        if split and "test" in parts:
            names.append("test")
            test = replace(domain, split=parts["test"])
            yield "test.test", test, scan(test)


def _domains_of(
    path: Path, finding: str | None, seen: _Seen, notes: list[str]
) -> Iterator[tuple[str, Domain]]:
    """The domains of one argument: a folder, arrays, or the hospitals of a table."""
    if is_archive(path):
        table = ImageTable(file=path, finding=finding)
        yield _folder_name(path.stem), Domain(path=path, table=table)
    elif not path.is_file():
        yield _folder_name(path.resolve().name), Domain(path=path)
    else:
        header, rows = seen.table(path)
        folder, columns = _images_of(path, seen)
        table = ImageTable(file=path, columns=columns, finding=finding)
        try:
            columns = find_columns(table, header, labelled=finding is None)
        except StudyError:
            columns = find_columns(table, header, labelled=False)
            table = replace(table, finding="")
            notes.append(
                f"{path}: it is unclear which column has the classes. Write it in place of "
                f"{_UNCLEAR}; the columns are {', '.join(map(printable, header.cells))}"
            )
        table = replace(table, columns=columns)
        at = [header.cells.index(name) for name in table.columns.get("domain", ())]
        hospitals = dict.fromkeys(row.cells[at[0]] if at else "" for row in rows)
        for hospital in [name for name in hospitals if name or not at]:
            yield (
                _folder_name(hospital or path.stem),
                Domain(path=folder, table=replace(table, domain=hospital)),
            )


def _images_of(file: Path, seen: _Seen) -> tuple[Path, dict[str, tuple[str, ...]]]:
    """The folder of a table's images, its own or the one above, and the column that names them.

    This column has a usual header; else most of its cells, and most different ones, are names of
    images. If no image is found, no column is given.
    """
    header, rows = seen.table(file)
    columns = zip(*(row.cells for row in rows[:_ROWS]), strict=True)
    cells = {
        name: [PurePosixPath(cell.replace("\\", "/")).name for cell in column]
        for name, column in zip(header.cells, columns, strict=False)
    }
    shares = {file.parent: _MOST}
    with suppress(StudyError):
        (usual,) = find_columns(ImageTable(file=file), header, labelled=False)["path"]
        cells = {usual: cells.get(usual, [])}
        shares = {file.parent: 1 / _ROWS, file.resolve().parent.parent: _MOST}
    for folder, least in shares.items():
        images = {name for path in seen.images(folder) for name in (path.name, path.stem)}
        fits = [n for n, c in cells.items() if c and sum(x in images for x in c) >= least * len(c)]
        if fits:
            return folder, {"path": (max(fits, key=lambda name: len({*cells[name]})),)}
    return file.parent, {}


def _domain_lines(
    table: str, domain: Domain, listing: Listing, output: Path, notes: list[str], *, unclear: bool
) -> list[str]:
    # Relative to the study file, so that both can move together.
    def relative(path: Path) -> str:
        return _quoted(Path(os.path.relpath(path.resolve(), output.resolve().parent)).as_posix())

    notes += _tree(table, listing)
    if table == "source" and len({item.label for item in listing.items} - {NO_CLASS}) == 1:
        raise StudyError(
            f"{domain.path} has one class only ({listing.items[0].label}); a head needs two. Give "
            f"the folder that has the class folders in it. {NO_FOLDERS}"
        )
    lines = [f"[{table}]", f"path = {relative(domain.path)}"]
    if domain.table and not is_archive(domain.path):
        columns = {**domain.table.columns, **({"label": (_UNCLEAR,)} if unclear else {})}
        uses = ", ".join(f"{use} = {_quoted(names[0])}" for use, names in columns.items())
        lines = [f"[{table}]", f"table = {relative(domain.table.file)}", f"columns = {{{uses}}}"]
        if domain.path != domain.table.file.parent:
            lines.append(f"images = {relative(domain.path)}")
        lines += [f"domain = {_quoted(domain.table.domain)}"] if domain.table.domain else []
    if domain.split:
        lines.append(f"split = {_quoted(domain.split)}")
    has_patients = domain.table is not None and "patient" in domain.table.columns
    if not has_patients and listing.items[0].row is None:
        lines.append(_group_line(domain, listing.items, table, notes))
    if domain.ignore:
        lines.append(f"ignore = {json.dumps(domain.ignore, ensure_ascii=False)}")
    if table == "source" and domain.split != GIVEN:
        lines.append("validation = 0.2              # held out by patient, stratified by class")
    return [*lines, ""]


def _corrected(
    table: str, domain: Domain, notes: list[str]
) -> tuple[Domain, dict[str, str], Listing]:
    """The domain with the path and patterns that its layout needs; its parts; all its images."""
    listing = list_images(domain)
    parts = _parts(item.split for item in listing.items)
    while not domain.table and (layout := wrong_layout(domain, listing.items)):
        of_folders = _parts(layout.splits)
        if table == "source" and layout.path and FIT in of_folders:
            notes.append(f"[source] the data are divided into {', '.join(layout.splits)}")
            parts, domain = of_folders, replace(domain, split=of_folders[FIT])
        elif layout.path or layout.ignore:
            notes.append(f"[{table}] {layout.text}; written: {layout.setting(domain.path)}")
            ignore = (*(domain.ignore or ()), *layout.ignore)
            domain = replace(domain, path=domain.path / layout.path, ignore=ignore)
        else:
            raise StudyError(f"in {domain.path} {layout.text}. {NO_FOLDERS}")
        listing = list_images(domain)
    if not (parts or domain.table) and (text := folders_in_classes(listing.items)):
        notes.append(f"[{table}] {text}")
    return domain, parts, listing


def _parts(names: Iterable[str]) -> dict[str, str]:
    """The data set's names of its parts, by our name of the split."""
    return {split_of(name): name for name in sorted({*names}, reverse=True) if split_of(name)}


def _tree(table: str, listing: Listing) -> Iterator[str]:
    """The classes with their numbers of images and first file names."""
    names: dict[str, list[str]] = {
        printable(name): [] for name in class_order(item.label for item in listing.items)
    }
    for item in listing.items:
        names[printable(item.label)].append(PurePosixPath(item.path).name)
    classes = f", classes: {', '.join(names)}" if any(names) else ""
    yield f"[{table}] {counted(len(listing.items), 'image')}{classes}"
    width = max(len(name) for name in names)
    for name, files in names.items():
        shown = [*map(printable, files[:_SHOWN]), *(["..."] if len(files) > _SHOWN else [])]
        yield f"  {name:<{width}} {len(files):>6}  {', '.join(shown)}"
    if listing.items and (listing.ignored or listing.unread):
        yield f"  {listing.left_out}"


def _group_line(domain: Domain, items: Sequence[Item], table: str, notes: list[str]) -> str:
    in_path = r"/(patient\d+)/" if domain.split or domain.table else r"^[^/]+/([^/]*\d\d[^/]*)/"
    folders = [re.search(in_path, item.path) for item in items]
    if all(folders) and (first := folders[0]):
        notes.append(f"[{table}] folders such as {printable(first[1])} are taken as patients")
        return f"group = '{in_path}'"
    names = [PurePosixPath(item.path).name for item in items]
    for pattern in _PATIENT_PATTERNS:
        if sum(bool(re.search(pattern, name)) for name in names) >= _MOST * len(names):
            return f"group = '{pattern}'"
    in_header = ""
    with suppress(ImageError):
        in_header = read_image(items[0]).remembered(b"any").patient
    if in_header:
        return f'group = {{header = "{HEADER}"}}    # of the DICOM headers, kept as a hash'
    notes.append(
        f"[{table}] give the patient's id as `group`, a regular expression for names such as "
        f"{names[0]}; without it two images of one patient may be in both parts of a split"
    )
    return "# group = '^([^_]+)'           # patient id in the file name"


def _key(name: str) -> str:
    return name if name.isidentifier() else _quoted(name)


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return json.dumps(text, ensure_ascii=False)
