"""Read study.toml: each value is checked here, where it enters: what was got, what is allowed."""

import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from pipeline.data.views import MOST_VIEWS
from pipeline.errors import StudyError
from pipeline.study import (
    ARCHIVE,
    AT,
    COLUMNS,
    DECODERS,
    GIVEN,
    HEADER,
    LABELS,
    LIST,
    PRECISIONS,
    RESIZES,
    SEALED,
    SOURCE,
    Attribute,
    BackboneChoice,
    Concatenation,
    CustomHead,
    ImageTable,
    SourceDomain,
    Study,
    TargetDomain,
    folder_of,
)
from pipeline.words import composed, printable

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
    "path", "table", "images", "columns", "values", "domain", "split", "group", "attributes",
    "ignore", "bits", "window", "frame",
}  # fmt: skip
_FRAMES = ("first", "middle")
_KINDS = {str: "text", int: "int", list: "a list", dict: "a table"}
_LONGEST = 120  # characters of a name in a message


def load_study(file: Path) -> Study:
    """Read and check a study file; relative paths start at the file's own folder.

    Raises:
        StudyError: It cannot be read, is not TOML, has an unknown or missing key, or
            points at a path that is not there.
    """
    table = _Table(file, "the study", _parse(file))
    table.check_keys(_KEYS)
    backbones = _backbones(table)
    store = table.below("store")
    store.check_keys({"path"})
    study = Study(
        name=_study_name(table),
        source=_source(table),
        targets=_targets(table),
        backbones=backbones,
        concatenations=_concatenations(table, backbones),
        heads=tuple(_head(name, below) for name, below in table.each("head").items()),
        classes=_names(table, "classes", least=2),
        findings=_findings(table),
        seed=table.number("seed", 0, _LAST_SEED, kind=int) or 0,
        store=file.parent / str(store.get("path")) if store.values else None,
        human_error=table.number(
            "human_error", 0, _MAX_HUMAN_ERROR, what="the share of images that a person gets wrong"
        ),
        subgroups=_subgroups(table),
        exclude=table.path("exclude", "headrace audit writes one"),
        max_megapixels=table.number("max_megapixels", *_MEGAPIXELS),
    )
    if study.subgroups and all(domain.attributes is None for domain in study.domains):
        table.fail(
            "[subgroups] needs attributes of the images: write attributes = "
            '"patients.csv" below [source] or a target'
        )
    for target in study.targets:
        if unknown := sorted(set(target.findings or ()) - set(study.findings)):
            table.fail(f"[target.{target.name}] findings: {unknown[0]!r} is none of the study's")
    if not study.findings:
        return study
    if without := [d.name for d in study.domains if d.labelled and d.table is None]:
        table.fail(
            f"findings are columns of a table: {without[0]} needs table = FILE, or path = FILE.npz"
        )
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
    """One table of a study file; it refuses what is not allowed.

    Attributes:
        file: The study file.
        where: What the table is called in messages.
        values: Its keys.
    """

    file: Path
    where: str
    values: Mapping[str, Any]

    def fail(self, message: str) -> NoReturn:
        """Raise a StudyError, with the file in front of the message."""
        raise StudyError(f"{self.file}: {message}")

    def check_keys(self, allowed: set[str]) -> None:
        """Refuse a key that nobody reads: it is a slip of the pen."""
        if unknown := sorted(set(self.values) - allowed):
            self.fail(
                f"unknown key {unknown[0]!r} in {self.where}; allowed: {', '.join(sorted(allowed))}"
            )

    def get(self, key: str, kind: Any = str, allowed: tuple[str, ...] = ()) -> Any:
        """The value of a key, of this kind and one of those allowed; None where missing."""
        value = self.values.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            wanted = _KINDS.get(kind, "number")
            self.fail(f"{self.where} {key} = {value!r}: allowed is {wanted}")
        if value is not None and allowed and value not in allowed:
            self.fail(f"{self.where} {key} = {value!r}: allowed are {', '.join(allowed)}")
        return value

    def number(
        self, key: str, low: float, high: float, *, kind: Any = (int, float), what: str = ""
    ) -> Any:
        """A number within bounds; None where the key is missing."""
        value = self.get(key, kind)
        if value is not None and not low <= value <= high:
            allowed = f"{what and f'{what}, '}{low} to {high}"
            self.fail(f"{self.where} {key} = {value}: allowed is {allowed}")
        return value

    def texts(self, key: str, what: str) -> tuple[str, ...] | None:
        """A list of one or more texts; None where the key is missing."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.fail(f"{self.where} {key} = {value!r}: allowed is a list of {what}")
        return tuple(value)

    def path(self, key: str, hint: str, *, later: bool = False) -> Path | None:
        """The file that a key names; None where the key is missing.

        It must be there, or is looked for ``later``, when it is read.
        """
        name = self.get(key)
        if name is None:
            return None
        file = self.file.parent / str(name)
        if not later and not os.path.isfile(file):  # noqa: PTH113 - of what no path can be, Path raises
            self.fail(f"{self.where} {key}: there is no file {_short(str(file))}; {hint}")
        return file

    def name(self, name: Any, where: str) -> str:
        """A name that may stand for a folder or a column."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.fail(
                f"{where} {_short(repr(name))}: allowed are 1 to 100 letters, digits, '.', '_' "
                "and '-', because it names a folder or a column"
            )
        if _DEVICES.fullmatch(name):
            self.fail(f"{where} {name!r}: Windows keeps this name for a device; choose another")
        return name

    def below(self, key: str) -> "_Table":
        """The table of a key; empty where the key is missing."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.fail(f"{key} = {value!r}: write a table [{key}]")
        return _Table(self.file, f"[{key}]", value)

    def each(self, key: str) -> dict[str, "_Table"]:
        """The tables below a key, by name; none where the key is missing."""
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


def _study_name(study: _Table) -> str:
    if "name" in study.values:
        return study.name(study.values["name"], "name")
    return study.name(study.file.stem, 'it has no name = "...", and its own name')


def _findings(study: _Table) -> tuple[str, ...]:
    findings = _names(study, "findings") or ()
    if findings and "classes" in study.values:
        study.fail("it has findings and classes: write one of the two")
    folders = {study.name(folder_of(finding), "findings:").casefold() for finding in findings}
    if len(folders) < len(findings):
        study.fail(f"findings = {[*findings]}: two of them would have one folder")
    return findings


def _names(table: _Table, key: str, *, least: int = 1) -> tuple[str, ...] | None:
    what = f"{'two' if least > 1 else 'one'} or more different names"
    given = table.texts(key, what)
    if given is None:
        return None
    names = tuple(dict.fromkeys(map(composed, given)))
    if not least <= len(names) == len(given):
        table.fail(f"{table.where} {key} = {[*given]}: allowed is a list of {what}")
    return names


def _source(study: _Table) -> SourceDomain:
    if "source" not in study.values:
        study.fail('it has no [source]; a study needs [source] with path = "FOLDER"')
    source = study.below("source")
    if "labels" in source.values:
        source.fail(
            "[source] labels: heads are fitted to the labels of the source, so they are "
            "always read; `labels` says what is known of a [target.NAME]"
        )
    source.check_keys(_DOMAIN_KEYS | {"validation"})
    domain = SourceDomain(**_domain(source))
    held_out = source.values.get("validation")
    if held_out is None:
        return domain
    if domain.split == GIVEN:
        source.fail('[source] has split = "given" and validation: write one of the two')
    if isinstance(held_out, str):
        return replace(domain, validation=_data(source, "validation", held_out))
    if not _is_number(held_out) or not 0 < held_out < 1:
        source.fail(
            f"[source] validation = {held_out!r}: allowed is a share between 0 and 1, or a path"
        )
    return replace(domain, validation=float(held_out))


def _targets(study: _Table) -> tuple[TargetDomain, ...]:
    tables = [(name, t, of) for of in ("test", "target") for name, t in study.each(of).items()]
    names = [name for name, _, _ in tables]
    if twice := [name for name in names if names.count(name) > 1]:
        study.fail(f"[test.{twice[0]}] and [target.{twice[0]}] have one name; choose another")
    return tuple(_target(name, table, of_source=of == "test") for name, table, of in tables)


def _target(name: str, target: _Table, *, of_source: bool) -> TargetDomain:
    if name == SOURCE:
        target.fail(f"{target.where}: the name {SOURCE!r} is taken by [source]; choose another")
    target.check_keys(_DOMAIN_KEYS | {"labels", "findings"})
    if target.values.get("split") == GIVEN:
        target.fail(f'{target.where} split = "given": write the split that it is, such as "test"')
    return TargetDomain(
        name=target.name(name, target.where),
        labels=target.get("labels", allowed=LABELS) or SEALED,
        of_source=of_source,
        findings=_names(target, "findings"),
        **_domain(target, name),
    )


def _domain(table: _Table, name: str = "") -> dict[str, Any]:
    hint = "allowed is a CSV file whose first column is path or patient"
    images = _image_table(table, name)
    group = _group(table)
    if isinstance(group, dict):
        if images is None or "table" not in table.values:
            table.fail(f"{table.where} group = {group}: a column needs table = FILE")
        images = replace(images, columns={**images.columns, "patient": (group["column"],)})
    return {
        "path": _path(table, images, later=bool(name)),
        "table": images,
        "split": _split(table),
        "group": None if isinstance(group, dict) else group,
        "attributes": table.path("attributes", hint) or table.path("table", hint, later=True),
        "ignore": table.texts("ignore", 'patterns of paths below it, such as ["*/masks/*"]'),
        "window": _window(table),
        "frame": table.get("frame", allowed=_FRAMES),
    }


def _split(table: _Table) -> str:
    split = table.get("split") or ""
    if not split.endswith(LIST):
        return str(split)
    return str(table.path("split", "allowed is a text file with a name of an image a line"))


def _path(table: _Table, images: ImageTable | None, *, later: bool) -> Path:
    """Where the images are: the folder or ``.npz`` file, or where a table's paths start.

    Of a target they are looked for when they are read: then one fails, and not the study.
    """
    key, other = ("images", "path") if "table" in table.values else ("path", "images")
    if other in table.values:
        table.fail(
            f"{table.where} {other}: with a table write images = FOLDER, where its paths start; "
            "without one path = FOLDER"
        )
    path = table.get(key)
    if path is not None:
        return table.file.parent / path if later else _data(table, key, path)
    if images is None:
        table.fail(f'{table.where} has no path; write path = "FOLDER" or table = "FILE"')
    return images.file.parent


def _data(table: _Table, key: str, name: str) -> Path:
    path = table.file.parent / name
    if not os.path.exists(path):  # noqa: PTH110 - of what no path can be, Path raises
        table.fail(f"{table.where} {key}: there is no folder {_short(str(path))}")
    return path


def _image_table(table: _Table, name: str) -> ImageTable | None:
    file = table.path("table", "allowed is a CSV, TSV or Parquet file", later=bool(name))
    if file is None:
        path = str(table.get("path") or "")
        is_archive = path.lower().endswith(ARCHIVE)
        keys = {"images", "columns", "domain"} | (set() if is_archive else {"values"})
        if wrong := sorted(keys & set(table.values)):
            table.fail(f"{table.where} {wrong[0]}: this goes with table = FILE")
        archive = ImageTable(file=table.file.parent / path, values=_texts(table, "values"))
        return archive if is_archive else None
    columns = _texts(table, "columns")
    if unknown := sorted(set(columns) - set(COLUMNS)):
        table.fail(
            f"{table.where} columns: {unknown[0]!r} is not known; allowed: {', '.join(COLUMNS)}"
        )
    domain = table.get("domain") or (name if "domain" in columns else "")
    return ImageTable(file=file, columns=columns, values=_texts(table, "values"), domain=domain)


def _texts(table: _Table, key: str) -> dict[str, tuple[str, ...]]:
    """A table whose values are texts, or lists of them."""
    below = table.get(key, dict) or {}
    lists = {name: [v] if isinstance(v, str) else v for name, v in below.items()}
    for name, texts in lists.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            table.fail(f"{table.where} {key}: {name} = {texts!r}: allowed is text or a list of it")
    return {composed(name): tuple(map(composed, texts)) for name, texts in lists.items()}


def _window(table: _Table) -> tuple[float, float] | None:
    bits = table.number("bits", 1, _MOST_BITS, kind=int)
    window = table.get("window", list)
    if bits is not None and window is not None:
        table.fail(f"{table.where} has bits and window: write one of the two")
    if bits is not None:
        return 0.0, 2.0**bits - 1
    if window is None:
        return None
    if len(window) != 2 or not all(map(_is_number, window)) or not window[0] < window[1]:
        table.fail(
            f"{table.where} window = {window!r}: allowed are two numbers, the values that become "
            "black and white, such as [0, 4095]"
        )
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
            table.fail(
                f"{table.where} group = {group!r}: allowed are a regular expression, "
                f'{{column = "NAME"}} of the table, and {{header = "{HEADER}"}} of DICOM files'
            )
        return {"column": composed(name)}
    pattern: str | None = table.get("group")
    if pattern is None:
        return None
    import regex  # only for patterns

    try:
        captured = regex.compile(pattern).groups
    except regex.error as cause:
        table.fail(f"{table.where} group = {pattern!r} is not a regular expression: {cause}")
    if captured > 1:
        table.fail(
            f"{table.where} group = {pattern!r} captures {captured} parts; one is allowed, the "
            "patient: put it in one pair of brackets and write the others as (?:...)"
        )
    return pattern


def _backbones(study: _Table) -> tuple[BackboneChoice, ...]:
    tables = study.each("backbone")
    if not tables:
        study.fail("it names no backbone; write for example [backbone.densenet121]")
    return tuple(
        choice
        for name, table in tables.items()
        if "+" not in name
        for choice in _backbone(name, table)
    )


def _backbone(name: str, table: _Table) -> list[BackboneChoice]:
    """A backbone; of several layers one for each. Stages know which names there are."""
    table.check_keys({"weights", "resize", "precision", "decode", "views", "layers"})
    given = {
        "weights": table.get("weights"),
        "resize": table.get("resize", allowed=RESIZES),
        "precision": table.get("precision", allowed=PRECISIONS),
        "decode": table.get("decode", allowed=DECODERS),
        "views": table.number("views", 1, MOST_VIEWS, kind=int),
    }
    if given["weights"] not in (None, "imagenet"):
        given["weights"] = str(table.path("weights", 'allowed: "imagenet" or a file'))
    choice = BackboneChoice(name=name, **{k: v for k, v in given.items() if v is not None})
    layers = _names(table, "layers")
    return [replace(choice, name=f"{name}{AT}{layer}") for layer in layers or ()] or [choice]


def _concatenations(
    study: _Table, backbones: Sequence[BackboneChoice]
) -> tuple[Concatenation, ...]:
    """Those that the file names, and all layers of a network."""
    tables = study.each("backbone")
    views = {choice.name: choice.views for choice in backbones}
    joined = [Concatenation(name=name) for name in tables if "+" in name]
    for concatenation in joined:
        table, parts = tables[concatenation.name], concatenation.parts
        table.check_keys(set())
        for part in parts:
            if part not in views or parts.count(part) > 1:
                table.fail(
                    f"{table.where}: {part!r} must stand once in it and have a table "
                    f"[backbone.{part}] of its own; known: {', '.join(views)}"
                )
        if len({views[part] for part in parts}) > 1:
            table.fail(f"{table.where}: its parts must have the same number of views")
    for name, table in tables.items():
        layers = [c.name for c in backbones if c.layer and c.network.name == name]
        if "layers" in table.values and len(layers) > 1:
            joined.append(Concatenation(name="+".join(layers)))
    return tuple(joined)


def _head(name: str, table: _Table) -> CustomHead:
    texts = {key: table.get(key) or "" for key in ("estimator", "base")}
    return CustomHead(
        name=table.name(name, table.where),
        parameters={k: v for k, v in table.values.items() if k not in texts},
        **texts,
    )


def _subgroups(study: _Table) -> tuple[Attribute, ...]:
    """``sex = true`` makes each text a group, ``age = [18, 65]`` bins, ``false`` nothing."""
    table = study.below("subgroups")
    return tuple(
        Attribute(name=name, edges=None if value is True else _edges(table, name, value))
        for name, value in table.values.items()
        if value is not False
    )


def _edges(table: _Table, name: str, value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and all(map(_is_number, value))
    if not numbers or not value or any(a >= b for a, b in pairwise(map(float, value))):
        table.fail(
            f"[subgroups] {name} = {value!r}: allowed is true, for one group for each text, or "
            "increasing numbers between which bins lie, such as [18, 40, 65]"
        )
    return tuple(float(edge) for edge in value)
