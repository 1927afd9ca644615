"""The study file: one TOML file to the settings of ``pipeline.study``, checked where it enters."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backbones import check_backbone_name
from pipeline.errors import StudyError, UnknownNameError
from pipeline.study import (
    LABELS,
    PRECISIONS,
    RESIZES,
    SEALED,
    SOURCE,
    BackboneChoice,
    Concatenation,
    Source,
    Study,
    TargetDomain,
)
from pipeline.study.attributes import attribute_settings
from pipeline.study.checked_tables import CheckedTables

if TYPE_CHECKING:
    from pipeline.heads.named import NamedHead

_CHANCE = 0.5  # a person who errs more often is worse than a coin
_SEEDS = 2**31  # room for further seeds above the study's


def load_study(file: Path) -> Study:
    """Read and check a study file; relative paths start at the file's own folder.

    Raises:
        StudyError: It cannot be read, is not TOML, has an unknown or missing key, or
            points at a path that is not there.
    """
    return _Reader(file).study(_parse(file))


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
    except (ValueError, RecursionError) as cause:  # of tomllib, of the encoding, of huge numbers
        raise StudyError(f"{file} is not a TOML file: {cause}") from cause


@dataclass(frozen=True)
class _Reader(CheckedTables):
    """Turns tables of one file into settings."""

    _top: tuple[str, ...] = field(
        default=(
            "name",
            "classes",
            "seed",
            "human_error",
            "exclude",
            "source",
            "target",
            "backbone",
            "head",
            "store",
            "subgroups",
        )
    )

    def study(self, table: Mapping[str, Any]) -> Study:
        self.known(table, self._top, "the study")
        store = self.table(table, "store")
        self.known(store, ("path",), "[store]")
        path = self.typed(store, "path", str, "[store]")
        optional: dict[str, Any] = {"seed": self.typed(table, "seed", int, "the study")}
        if not 0 <= (optional["seed"] or 0) < _SEEDS:
            self.fail(f"seed = {optional['seed']}: allowed is 0 to {_SEEDS - 1}")
        optional["human_error"] = self._human_error(table)
        optional["exclude"] = self._exclude(table)
        found = Study(
            name=self.name(
                table.get("name", self.file.stem),
                "name" if "name" in table else 'it has no name = "...", and its own name',
            ),
            classes=self._classes(table.get("classes")),
            source=self._source(table),
            targets=tuple(self._target(n, t) for n, t in self.tables(table, "target").items()),
            backbones=self._backbones(table),
            concatenations=self._concatenations(table),
            heads=self._heads(table),
            store=None if path is None else self.file.parent / path,
            subgroups=attribute_settings(self, self.table(table, "subgroups")),
            **{k: v for k, v in optional.items() if v is not None},
        )
        if found.subgroups and all(domain.attributes is None for domain in found.domains):
            self.fail(
                "[subgroups] needs attributes of the images: write attributes = "
                '"patients.csv" below [source] or a target'
            )
        return found

    def _human_error(self, table: Mapping[str, Any]) -> float | None:
        error = self.typed(table, "human_error", (int, float), "the study")
        if error is not None and not 0 <= error <= _CHANCE:
            self.fail(
                f"human_error = {error}: allowed is the share of images that a person gets "
                f"wrong, 0 to {_CHANCE}, such as 0.03"
            )
        return None if error is None else float(error)

    def _exclude(self, table: Mapping[str, Any]) -> Path | None:
        name = self.typed(table, "exclude", str, "the study")
        if name is None:
            return None
        file = self.file.parent / str(name)
        if not file.is_file():
            self.fail(f"exclude: there is no file {file}; headrace audit writes one")
        return file

    def _source(self, table: Mapping[str, Any]) -> Source:
        if "source" not in table:
            self.fail('it has no [source]; a study needs [source] with path = "FOLDER"')
        source = self.table(table, "source")
        if "labels" in source:
            self.fail(
                "[source] labels: heads are fitted to the labels of the source, so they are "
                "always read; `labels` says what is known of a [target.NAME]"
            )
        self.known(source, ("path", "group", "attributes", "validation"), "[source]")
        share = self.typed(source, "validation", (int, float), "[source]")
        settings = self._domain(source, "[source]")
        if share is None:
            return Source(**settings)
        if not 0 < share < 1:
            self.fail(f"[source] validation = {share}: allowed is a share between 0 and 1")
        return Source(validation=float(share), **settings)

    def _target(self, name: str, table: Mapping[str, Any]) -> TargetDomain:
        where = f"[target.{name}]"
        if name == SOURCE:
            self.fail(f"{where}: the name {SOURCE!r} is taken by [source]; choose another")
        self.known(table, ("path", "group", "attributes", "labels"), where)
        labels = self.typed(table, "labels", str, where) or SEALED
        self.one_of(labels, LABELS, f"{where} labels")
        return TargetDomain(
            name=self.name(name, where), labels=labels, **self._domain(table, where)
        )

    def _domain(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        path = self.typed(table, "path", str, where)
        if path is None:
            self.fail(f'{where} has no path; write path = "FOLDER"')
        folder = self.file.parent / str(path)
        if not folder.is_dir():
            self.fail(f"{where} path: there is no folder {folder}")
        return {
            "path": folder,
            "group": self._pattern(table, where),
            "attributes": self._attributes(table, where),
        }

    def _attributes(self, table: Mapping[str, Any], where: str) -> Path | None:
        name = self.typed(table, "attributes", str, where)
        if name is None:
            return None
        file = self.file.parent / str(name)
        if not file.is_file():
            self.fail(
                f"{where} attributes: no file {file}; allowed is a CSV file whose first column is "
                "path or patient"
            )
        return file

    def _pattern(self, table: Mapping[str, Any], where: str) -> str | None:
        pattern = self.typed(table, "group", str, where)
        try:
            captured = re.compile(pattern or "").groups
        except re.error as cause:
            self.fail(f"{where} group = {pattern!r} is not a regular expression: {cause}")
        if captured > 1:
            self.fail(
                f"{where} group = {pattern!r} captures {captured} parts; one is allowed, the "
                "patient: put it in one pair of brackets and write the others as (?:...)"
            )
        return None if pattern is None else str(pattern)

    def _backbones(self, table: Mapping[str, Any]) -> tuple[BackboneChoice, ...]:
        tables = self.tables(table, "backbone")
        if not tables:
            self.fail("it names no backbone; write for example [backbone.densenet121]")
        return tuple(self._backbone(name, t) for name, t in tables.items() if "+" not in name)

    def _concatenations(self, table: Mapping[str, Any]) -> tuple[Concatenation, ...]:
        tables = self.tables(table, "backbone")
        alone = [name for name in tables if "+" not in name]
        found = tuple(Concatenation(name=name) for name in tables if "+" in name)
        for one in found:
            where = f'[backbone."{one.name}"]'
            self.known(tables[one.name], (), where)
            for part in one.parts:
                if part not in alone or one.parts.count(part) > 1:
                    self.fail(
                        f"{where}: {part!r} must stand once in it and have a table "
                        f"[backbone.{part}] of its own; known: {', '.join(alone)}"
                    )
        return found

    def _heads(self, table: Mapping[str, Any]) -> tuple["NamedHead", ...]:
        tables = self.tables(table, "head")
        if not tables:
            return ()
        from pipeline.heads.named import NamedHead, heads_with

        found = []
        for name, values in tables.items():
            where, given = f"[head.{name}]", dict(values)
            texts = {key: self.typed(given, key, str, where) or "" for key in ("estimator", "base")}
            parameters = {k: v for k, v in given.items() if k not in texts}
            found.append(NamedHead(name=self.name(name, where), parameters=parameters, **texts))
        try:
            heads_with(tuple(found))
        except StudyError as cause:
            self.fail(str(cause))
        return tuple(found)

    def _backbone(self, name: str, table: Mapping[str, Any]) -> BackboneChoice:
        where = f"[backbone.{name}]"
        try:
            check_backbone_name(name)
        except UnknownNameError as cause:
            self.fail(f"{where}: {cause}")
        known = [f.name for f in fields(BackboneChoice) if f.name not in ("name", "mask")]
        self.known(table, known, where)
        given = {k: str(self.typed(table, k, str, where)) for k in table}
        self.one_of(given.get("precision"), PRECISIONS, f"{where} precision")
        self.one_of(given.get("resize"), RESIZES, f"{where} resize")
        if given.get("weights", "imagenet") != "imagenet":
            weights = self.file.parent / given["weights"]
            if not weights.is_file():
                self.fail(f'{where} weights: no file {weights}; allowed: "imagenet" or a file')
            given["weights"] = str(weights)
        return BackboneChoice(name=name, **given)

    def _classes(self, classes: Any) -> tuple[str, ...] | None:
        if classes is None:
            return None
        names = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
        if not names or len(set(classes)) != len(classes) or len(classes) < 2:  # noqa: PLR2004 - a choice needs two
            self.fail(f"classes = {classes!r}: allowed is a list of two or more different names")
        return tuple(classes)
