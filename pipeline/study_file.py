"""How study.toml is read: :func:`load_study`, then a function for each table of the file.

Each value is checked where it is read: what was got, what is allowed.
"""

import logging
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import StudyError
from pipeline.study import (
    ARCHIVE,
    AT,
    COLUMNS,
    GIVEN,
    HEADER,
    LABELS,
    LIST,
    PRECISIONS,
    SEALED,
    SOURCE,
    Attribute,
    BackboneChoice,
    CustomHead,
    ImageTable,
    SourceDomain,
    Study,
    TargetDomain,
    folder_of,
)
from pipeline.words import composed, printable

_LOG = logging.getLogger(__name__)
_RESIZES = ("stretch", "crop", "fast")
_DECODERS = ("cpu", "gpu")
_MOST_VIEWS = 32
_MAX_HUMAN_ERROR = 0.5  # a person who errs more often is worse than a coin
_MEGAPIXELS = (0.001, 1000)  # 3 GB decoded
_LAST_SEED = 2**31 - 1  # room for further seeds above the study's
_MOST_BITS = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Windows has no file of these names, whatever their ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.IGNORECASE)
_KEYS = {
    "name", "classes", "findings", "seed", "human_error", "exclude", "max_megapixels",
    "source", "target", "test", "backbone", "head", "store", "subgroups",
}  # fmt: skip
_DOMAIN_KEYS = {
    "path", "table", "images", "columns", "values", "domain", "split", "label", "group",
    "attributes", "ignore", "bits", "window", "frame",
}  # fmt: skip
_KINDS = {str: "text", int: "int", list: "a list", dict: "a table"}
_LONGEST = 120  # characters of a name in a message


def load_study(file: Path) -> Study:
    """Read and check a study file; relative paths start at the file's own folder.

    Raises:
        StudyError: It cannot be read, or a key or a path in it is wrong.
    """
    table = _Table(file, "the study", _parse(file))
    table.check_keys(_KEYS)
    backbones = _backbones(table)
    store, subgroups = table.below("store"), table.below("subgroups")
    store.check_keys({"path"})
    study = Study(
        name=table.check_name(table.values.get("name", file.stem)),
        source=_source(table),
        targets=_targets(table),
        backbones=backbones,
        concatenations=_concatenations(table, backbones),
        heads=tuple(_head(name, below) for name, below in table.each("head").items()),
        classes=table.names("classes", least=2),
        findings=_findings(table),
        seed=table.number("seed", 0, _LAST_SEED, kind=int) or 0,
        store=file.parent / str(store.get("path")) if store.values else None,
        human_error=table.number("human_error", 0, _MAX_HUMAN_ERROR),
        subgroups=tuple(_subgroup(subgroups, name) for name in subgroups.values),
        exclude=table.path("exclude", "headrace audit writes one"),
        max_megapixels=table.number("max_megapixels", *_MEGAPIXELS),
    )
    if study.subgroups:
        _check_subgroups(subgroups, study)
    for target in study.targets:
        if unknown := sorted(set(target.findings or ()) - set(study.findings)):
            table.fail(
                f"[target.{target.name}] findings: {unknown[0]!r} is no finding of the study"
            )
    if not study.findings:
        return study
    if without := [d.name for d in study.domains if d.labelled and d.table is None]:
        table.fail(f"has findings, so {without[0]} needs table = FILE, or path = FILE.npz")
    return study.with_label("")


def _parse(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        raise StudyError(f"{file} is not a file: give the study file, such as study.toml")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as cause:
        raise StudyError(
            f"no study file {file}: write one with `headrace init DATA...`, or try `headrace demo`"
        ) from cause
    except OSError as cause:
        raise StudyError(f"cannot read {file}: {cause.strerror}") from cause
    except RecursionError as cause:
        raise StudyError(f"{file}: its brackets are nested too deep") from cause
    except ValueError as cause:  # of tomllib, of the encoding, of huge numbers
        raise StudyError(f"{file} is not a TOML file: {str(cause)[:200]}") from cause


@dataclass(frozen=True)
class _Table:
    """One table of a study file, called ``where`` in messages, with checks of its values."""

    file: Path
    where: str
    values: Mapping[str, Any]

    def fail(self, message: str) -> NoReturn:
        raise StudyError(f"{self.file}: {self.where} {message}")

    def refuse(self, key: str, allowed: str) -> NoReturn:
        self.fail(f"{key} = {self.values[key]!r}: allowed {allowed}")

    def check_keys(self, allowed: set[str]) -> None:
        if unknown := sorted(set(self.values) - allowed):
            self.fail(f"has an unknown key {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}")

    def get(self, key: str, kind: Any = str, allowed: tuple[str, ...] = ()) -> Any:
        """The value of a key; None if it is missing. The same holds for the methods below."""
        value = self.values.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            self.refuse(key, f"is {_KINDS.get(kind, 'a number')}")
        if value is not None and allowed and value not in allowed:
            self.refuse(key, f"are {', '.join(allowed)}")
        return value

    def number(self, key: str, low: float, high: float, *, kind: Any = (int, float)) -> Any:
        value = self.get(key, kind)
        if value is not None and not low <= value <= high:
            self.refuse(key, f"is {low} to {high}")
        return value

    def texts(self, key: str, what: str) -> tuple[str, ...] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.refuse(key, f"is a list of {what}")
        return tuple(value)

    def names(self, key: str, *, least: int = 1) -> tuple[str, ...] | None:
        what = f"{'two' if least > 1 else 'one'} or more different names"
        given = self.texts(key, what)
        if given is not None and not least <= len(set(map(composed, given))) == len(given):
            self.refuse(key, f"is a list of {what}")
        return None if given is None else tuple(map(composed, given))

    def path(self, key: str, hint: str, *, later: bool = False) -> Path | None:
        """The file that a key names; it must exist, unless it is looked for ``later``."""
        name = self.get(key)
        if name is None:
            return None
        file = self.file.parent / str(name)
        if not later and not os.path.isfile(file):  # noqa: PTH113 - of what no path can be, Path raises
            self.fail(f"{key}: there is no file {_short(str(file))}; {hint}")
        return file

    def folder(self, key: str) -> Path:
        """The folder or file of images that a key names."""
        path = self.file.parent / str(self.get(key))
        if not os.path.exists(path):  # noqa: PTH110 - of what no path can be, Path raises
            self.fail(f"{key}: there is no folder {_short(str(path))}")
        return path

    def check_name(self, name: Any, what: str = "name", hint: str = "") -> str:
        """A name that may stand for a folder or a column; ``hint`` ends the message."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.fail(
                f"{what} {_short(repr(name))}: allowed are 1 to 100 letters (A to Z, a to z), "
                f"digits, '.', '_' and '-', because it names a folder or a column{hint}"
            )
        if _DEVICES.fullmatch(name):
            self.fail(f"{what} {name!r}: Windows keeps this name for a device; choose another")
        return name

    def below(self, key: str) -> "_Table":
        """The table of a key; empty where it is missing."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.fail(f"{key} = {value!r}: write a table [{key}]")
        return _Table(self.file, f"[{key}]", value)

    def each(self, key: str) -> dict[str, "_Table"]:
        """The tables below a key, by name."""
        tables = {}
        for name, value in self.below(key).values.items():
            if not isinstance(value, dict):
                self.fail(f"[{key}] {name} = {value!r}: write a table [{key}.{name}]")
            shown = f'"{name}"' if "+" in name else name
            tables[name] = _Table(self.file, f"[{key}.{shown}]", value)
        return tables


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _findings(study: _Table) -> tuple[str, ...]:
    findings = study.names("findings") or ()
    if findings and "classes" in study.values:
        study.fail("has findings and classes: write one of the two")
    hint = '. Give it such a name, and values = {NAME = "COLUMN"} below [source] and the targets'
    folders = {study.check_name(folder_of(f), "findings:", hint).casefold() for f in findings}
    if len(folders) < len(findings):
        study.fail(f"has findings = {[*findings]}: two of them would have one folder")
    return findings


def _source(study: _Table) -> SourceDomain:
    if "source" not in study.values:
        study.fail('has no [source]; write [source] with path = "FOLDER"')
    source = study.below("source")
    source.check_keys(_DOMAIN_KEYS | {"validation"})
    domain = SourceDomain(**_domain(source))
    held_out = source.values.get("validation")
    if held_out is None:
        return domain
    if domain.split == GIVEN:
        source.fail('has split = "given" and validation: write one of the two')
    if isinstance(held_out, str):
        return replace(domain, validation=source.folder("validation"))
    if not _is_number(held_out) or not 0 < held_out < 1:
        source.refuse("validation", "is a share between 0 and 1, or a path")
    return replace(domain, validation=float(held_out))


def _targets(study: _Table) -> tuple[TargetDomain, ...]:
    tables = [(name, t, of) for of in ("test", "target") for name, t in study.each(of).items()]
    names = [name for name, _, _ in tables]
    if twice := [name for name in names if names.count(name) > 1]:
        study.fail(f"has [test.{twice[0]}] and [target.{twice[0]}]: choose another name for one")
    return tuple(_target(name, table, is_source_test=of == "test") for name, table, of in tables)


def _target(name: str, target: _Table, *, is_source_test: bool) -> TargetDomain:
    if name == SOURCE:
        target.fail(f"the name {SOURCE!r} is taken by [source]; choose another")
    target.check_keys(_DOMAIN_KEYS | {"labels", "findings"})
    if target.values.get("split") == GIVEN:
        target.fail('split = "given": write the split that it is, such as "test"')
    return TargetDomain(
        name=target.check_name(name),
        labels=target.get("labels", allowed=LABELS) or SEALED,
        is_source_test=is_source_test,
        findings=target.names("findings"),
        **_domain(target, name),
    )


def _domain(table: _Table, name: str = "") -> dict[str, Any]:
    hint = "allowed is a CSV file whose first column is path or patient"
    images = _image_table(table, name)
    group = _group(table)
    if isinstance(group, dict):
        if images is None or "table" not in table.values:
            table.fail(f"group = {group}: a column needs table = FILE")
        images = replace(images, columns={**images.columns, "patient": (group["column"],)})
    label = _pattern(table, "label", "class")
    if label is not None and images is not None:
        table.fail("label: this goes with folders of images")
    split = table.get("split") or ""
    if split.endswith(LIST):
        split = str(table.path("split", "allowed is a text file with a name of an image a line"))
    return {
        "path": _path(table, images, later=bool(name)),
        "table": images,
        "split": split,
        "label": label,
        "group": None if isinstance(group, dict) else group,
        "attributes": table.path("attributes", hint) or table.path("table", hint, later=True),
        "ignore": table.texts("ignore", 'patterns of paths below it, such as ["*/masks/*"]'),
        "window": _window(table),
        "frame": table.get("frame", allowed=("first", "middle")),
    }


def _path(table: _Table, images: ImageTable | None, *, later: bool) -> Path:
    """Where the images are: the folder or ``.npz`` file, or where a table's paths start.

    Of a target they are looked for when they are read: then one fails, and not the study.
    """
    key, other = ("images", "path") if "table" in table.values else ("path", "images")
    if other in table.values:
        table.fail(
            f"{other}: with a table write images = FOLDER, where its paths start; "
            "without one path = FOLDER"
        )
    path = table.get(key)
    if path is not None:
        return table.file.parent / path if later else table.folder(key)
    if images is None:
        table.fail('has no path; write path = "FOLDER" or table = "FILE"')
    return images.file.parent


def _image_table(table: _Table, name: str) -> ImageTable | None:
    file = table.path("table", "allowed is a CSV, TSV or Parquet file", later=bool(name))
    if file is None:
        path = str(table.get("path") or "")
        is_archive = path.lower().endswith(ARCHIVE)
        keys = {"images", "columns", "domain"} | (set() if is_archive else {"values"})
        if wrong := sorted(keys & set(table.values)):
            table.fail(f"{wrong[0]}: this goes with table = FILE")
        archive = ImageTable(file=table.file.parent / path, values=_texts(table, "values"))
        return archive if is_archive else None
    columns = _texts(table, "columns")
    if unknown := sorted(set(columns) - set(COLUMNS)):
        table.fail(f"columns has an unknown key {unknown[0]!r}; allowed: {', '.join(COLUMNS)}")
    domain = table.get("domain") or (name if "domain" in columns else "")
    return ImageTable(file=file, columns=columns, values=_texts(table, "values"), domain=domain)


def _texts(table: _Table, key: str) -> dict[str, tuple[str, ...]]:
    """A table whose values are texts, or lists of them."""
    below = table.get(key, dict) or {}
    lists = {name: [v] if isinstance(v, str) else v for name, v in below.items()}
    for name, texts in lists.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            table.fail(f"{key}: {name} = {texts!r}: allowed is text or a list of it")
    return {composed(name): tuple(map(composed, texts)) for name, texts in lists.items()}


def _window(table: _Table) -> tuple[float, float] | None:
    bits = table.number("bits", 1, _MOST_BITS, kind=int)
    window = table.get("window", list)
    if bits is not None and window is not None:
        table.fail("has bits and window: write one of the two")
    if bits is not None:
        return 0.0, 2.0**bits - 1
    if window is None:
        return None
    if len(window) != 2 or not all(map(_is_number, window)) or not window[0] < window[1]:
        table.refuse("window", "are two numbers that become black and white, such as [0, 4095]")
    return float(window[0]), float(window[1])


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _group(table: _Table) -> str | dict[str, str] | None:
    """A pattern, ``HEADER``, or ``{"column": NAME}``."""
    group = table.values.get("group")
    if isinstance(group, dict):
        ((key, name),) = group.items() if len(group) == 1 else [("", None)]
        if key == "header" and name == HEADER:
            return HEADER
        if key != "column" or not isinstance(name, str):
            table.refuse(
                "group",
                'are a regular expression, {column = "NAME"} of the table, and '
                f'{{header = "{HEADER}"}} of DICOM files',
            )
        return {"column": composed(name)}
    return _pattern(table, "group", "patient")


def _pattern(table: _Table, key: str, what: str) -> str | None:
    pattern: str | None = table.get(key)
    if pattern is None:
        return None
    import regex  # only for patterns

    try:
        captured = regex.compile(pattern).groups
    except regex.error as cause:
        table.fail(f"{key} = {pattern!r} is not a regular expression: {cause}")
    if captured > 1:
        table.fail(
            f"{key} = {pattern!r} captures {captured} parts; one is allowed, the "
            f"{what}: put it in one pair of brackets and write the others as (?:...)"
        )
    return pattern


def _backbones(study: _Table) -> tuple[BackboneChoice, ...]:
    tables = study.each("backbone")
    if not tables:
        study.fail("names no backbone; write for example [backbone.densenet121]")
    return tuple(
        b for name, table in tables.items() if "+" not in name for b in _backbone(name, table)
    )


def _backbone(name: str, table: _Table) -> list[BackboneChoice]:
    """A backbone; of several layers one for each."""
    table.check_keys({"weights", "resize", "precision", "decode", "views", "layers"})
    given = {
        "weights": table.get("weights"),
        "resize": table.get("resize", allowed=_RESIZES),
        "precision": table.get("precision", allowed=PRECISIONS),
        "decode": table.get("decode", allowed=_DECODERS),
        "views": table.number("views", 1, _MOST_VIEWS, kind=int),
    }
    if given["weights"] not in (None, "imagenet"):
        given["weights"] = str(table.path("weights", 'allowed: "imagenet" or a file'))
    choice = BackboneChoice(name=name, **{k: v for k, v in given.items() if v is not None})
    layers = table.names("layers")
    return [replace(choice, name=f"{name}{AT}{layer}") for layer in layers or ()] or [choice]


def _concatenations(study: _Table, backbones: Sequence[BackboneChoice]) -> tuple[str, ...]:
    """Those that the file names, and all layers of a network."""
    joined = []
    views = {choice.name: choice.views for choice in backbones}
    for name, table in study.each("backbone").items():
        layers = [c.name for c in backbones if c.layer and c.network.name == name]
        if "+" not in name:
            joined += ["+".join(layers)] if len(layers) > 1 else []
            continue
        table.check_keys(set())
        joined.append(name)
        for part in (parts := name.split("+")):
            if part not in views or parts.count(part) > 1:
                table.fail(
                    f"has {part!r}, which must stand once in it and have a table "
                    f"[backbone.{part}] of its own; allowed: {', '.join(views)}"
                )
        if len({views[part] for part in parts}) > 1:
            table.fail("has parts with different numbers of views")
    return tuple(joined)


def _head(name: str, table: _Table) -> CustomHead:
    texts = {key: table.get(key) or "" for key in ("estimator", "base")}
    parameters = {k: v for k, v in table.values.items() if k not in texts}
    return CustomHead(name=table.check_name(name), parameters=parameters, **texts)


def _check_subgroups(table: _Table, study: Study) -> None:
    """Refuse an attribute that is in no file; what one file lacks costs its domain alone."""
    from pipeline.data.tables import read_header  # only for studies with subgroups

    files = {domain.attributes for domain in study.domains if domain.attributes}
    if not files:
        table.fail(
            'needs attributes of the images: write attributes = "patients.csv" below [source] '
            "or a target"
        )
    try:
        columns = sorted({name for file in files for name in read_header(file)})
    except StudyError as cause:  # only the stage that needs this file fails
        _LOG.warning("the names in [subgroups] are not checked: %s", cause)
        return
    for attribute in study.subgroups:
        if attribute.name not in columns:
            table.fail(
                f"{attribute.name}: no file of attributes has such a column; the columns are "
                f"{', '.join(map(printable, columns))}"
            )


def _subgroup(table: _Table, name: str) -> Attribute:
    """``sex = true`` makes each text a group, ``age = [18, 65]`` bins."""
    value = table.values[name]
    if value is True:
        return Attribute(name=name)
    numbers = isinstance(value, list) and all(map(_is_number, value))
    if not numbers or not value or any(a >= b for a, b in pairwise(map(float, value))):
        table.refuse(
            name,
            "is true, for one group for each text, or increasing numbers between which bins lie, "
            "such as [18, 40, 65]",
        )
    return Attribute(name=name, edges=tuple(map(float, value)))
