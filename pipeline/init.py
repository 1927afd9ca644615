"""Write a study file for given folders, with guesses that the user can correct."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipeline.data.items import Item, Listing
from pipeline.data.layouts import wrong_layout
from pipeline.data.sources import scan
from pipeline.errors import StudyError, WeightsError
from pipeline.features.backbones import NO_DOWNLOAD, check_backbone_name, weights_file
from pipeline.study import Domain
from pipeline.words import counted, printable

#: Names of common public chest X-ray sets and of the demo; a guess must fit most names.
_PATIENT_PATTERNS = (
    r"^(patient\d+)",
    r"^(person\d+|(?:NORMAL2-)?IM-\d+)",
    r"^(\d{8})_\d{3}",
)
_MOST = 0.95
#: Names of files that are shown of each class.
_SHOWN = 3
_PREFERRED = "densenet121"


def write_study(data: Sequence[Path], output: Path, backbones: Iterable[str]) -> list[str]:
    """Write a study file whose source is the first folder and whose targets are the rest.

    Returns:
        What the user should look at: guesses, and what could not be guessed.

    Raises:
        StudyError: A folder holds no images, or the file is already there.
        UnknownNameError: No such backbone.
    """
    if output.exists():
        raise StudyError(f"{output} is already there: remove it, or choose --output FILE")
    notes: list[str] = []
    for name in backbones:
        check_backbone_name(name)
    lines = [f"name = {_quoted(_study_name(output))}", "seed = 0", ""]
    for folder, table in zip(data, _tables(data), strict=True):
        lines += _domain_lines(folder, output, notes, table)
    lines += [f"[backbone.{_key(name)}]" for name in dict.fromkeys(backbones)]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return notes


def default_backbone() -> tuple[str, str]:
    """DenseNet121 where its weights can be had, else the one that needs no download.

    Returns:
        Name, and the reason for a person.
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
    """``chest.toml`` is called chest; ``study.toml`` is called as its folder."""
    file = output.resolve()
    return _folder_name(file.parent.name if file.stem == "study" else file.stem)


def _folder_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-") or "study"


def _tables(data: Sequence[Path]) -> list[str]:
    """``source``, then ``target.NAME``; equal folder names get a number."""
    names: list[str] = ["source"]
    for folder in data[1:]:
        name = wanted = _folder_name(folder.resolve().name)
        while name in names:
            name = f"{wanted}_{len(names)}"
        names.append(name)
    return ["source", *(f"target.{_key(name)}" for name in names[1:])]


def _domain_lines(folder: Path, output: Path, notes: list[str], table: str) -> list[str]:
    ignore: tuple[str, ...] = ()
    listing = scan(Domain(path=folder))
    while layout := wrong_layout(listing.items):
        notes.append(f"[{table}] {layout.text}; written: {layout.setting(folder)}")
        folder, ignore = folder / layout.path, (*ignore, *layout.ignore)
        listing = scan(Domain(path=folder, ignore=ignore))
    notes += _tree(table, listing)
    # As seen from the study file, so that both can move together.
    path = Path(os.path.relpath(folder.resolve(), output.resolve().parent)).as_posix()
    lines = [f"[{table}]", f"path = {_quoted(path)}", _group_line(listing.items, table, notes)]
    if ignore:
        lines.append(f"ignore = {json.dumps(ignore, ensure_ascii=False)}")
    if table == "source":
        lines.append("validation = 0.2              # held out by patient, stratified by class")
    return [*lines, ""]


def _tree(table: str, listing: Listing) -> Iterator[str]:
    """The classes with their numbers of images and first names of files."""
    names: dict[str, list[str]] = {}
    for item in listing.items:
        names.setdefault(printable(item.label), []).append(PurePosixPath(item.path).name)
    yield f"[{table}] {counted(len(listing.items), 'image')}, classes: {', '.join(names)}"
    width = max(len(name) for name in names)
    for name, files in names.items():
        shown = [*map(printable, files[:_SHOWN]), *(["..."] if len(files) > _SHOWN else [])]
        yield f"  {name:<{width}} {len(files):>6}  {', '.join(shown)}"
    if listing.items and (listing.ignored or listing.unread):
        yield f"  {listing.left_out}"


def _group_line(items: Sequence[Item], table: str, notes: list[str]) -> str:
    names = [PurePosixPath(item.path).name for item in items]
    for pattern in _PATIENT_PATTERNS:
        if sum(bool(re.search(pattern, name)) for name in names) >= _MOST * len(names):
            return f"group = '{pattern}'"
    notes.append(
        f"[{table}] give the patient's id as `group`, a regular expression for names such as "
        f"{names[0]}; without it two images of one patient may stand on both sides of a split"
    )
    return "# group = '^([^_]+)'           # patient id in the file name"


def _key(name: str) -> str:
    return name if name.isidentifier() else _quoted(name)


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return json.dumps(text, ensure_ascii=False)
