"""What a study is: its domains, backbones and choices, as frozen settings.

Every default of a study is a field below and is written nowhere else; the study file is
read by :mod:`pipeline.study`.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.attributes import Attribute

if TYPE_CHECKING:
    from pipeline.heads.custom import NamedHead
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.checked_tables import CheckedTables
from pipeline.data.attributes import attribute_settings
from pipeline.data.items import Item
from pipeline.data.sources import scan
from pipeline.errors import StudyError, UnknownNameError, WeightsError
from pipeline.features.backbones import NO_DOWNLOAD, check_backbone_name, weights_file
from pipeline.words import counted

SOURCE = "source"
SEALED, OPEN, ABSENT = "sealed", "open", "absent"
LABELS = (SEALED, OPEN, ABSENT)
PRECISIONS = ("fp32", "tf32", "bf16")
RESIZES = ("stretch", "crop")


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One hospital or data set.

    Attributes:
        path: Folder of class folders, or of ``.npy`` stacks.
        group: Regular expression for the patient id in a file's name; its one group,
            or else the whole match, is the id. None: every image is its own patient.
        attributes: CSV file with attributes of images or patients; see
            :mod:`pipeline.data.attributes`.
        name: How the domain is called in tables; the source is called ``source``.
    """

    path: Path
    group: str | None = None
    attributes: Path | None = None
    name: str = SOURCE

    @property
    def labelled(self) -> bool:
        """Whether its images have classes that are known."""
        return True


@dataclass(frozen=True, kw_only=True)
class Source(Domain):
    """The labelled hospital; ``validation`` is the share held out by patient."""

    validation: float = 0.2


@dataclass(frozen=True, kw_only=True)
class TargetDomain(Domain):
    """Another hospital.

    Attributes:
        labels: ``sealed`` (read once, at the end), ``open`` (somebody has looked at them
            or tuned on them: one half by patient counts as a development set), or
            ``absent`` (nobody has them: whatever folders there are name no class).
    """

    labels: str = SEALED

    @property
    def labelled(self) -> bool:
        """Whether its images have classes that are known."""
        return self.labels != ABSENT


@dataclass(frozen=True, kw_only=True)
class BackboneChoice:
    """A frozen network as the study asks for it.

    Attributes:
        name: An entry of ``BACKBONES``, or ``timm:NAME``.
        weights: ``imagenet``, or the path of a file with the network's state dict.
        resize: ``stretch`` (whole picture to the network's square) or ``crop``
            (ImageNet's habit: shorter side, then the centre).
        precision: ``fp32``, ``tf32`` or ``bf16``.
        mask: What a probe hides of each picture; no setting of the study file.
    """

    name: str
    weights: str = "imagenet"
    resize: str = "stretch"
    precision: str = "fp32"
    mask: str = "none"


@dataclass(frozen=True, kw_only=True)
class Concatenation:
    """Features of several backbones side by side, as ``[backbone."a+b"]`` asks for.

    Attributes:
        name: The names of the parts with ``+`` between them.
    """

    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Backbones of the study, in order of their columns."""
        return tuple(self.name.split("+"))


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study: data, backbones, seed.

    Attributes:
        name: Results go to ``results/<name>/``.
        source: The labelled domain that heads are fitted on.
        targets: The other domains, in the file's order.
        backbones: The networks, in the file's order; stage 1 runs these.
        concatenations: Of backbones; they have no features of their own.
        heads: What the study adds to the table of heads.
        classes: Class names in label order; None means the sorted names found.
        seed: From which every random choice is derived.
        store: Folder of the feature stores; see :func:`store_root`.
        human_error: Share of the source's images that a person gets wrong, 0 to 0.5, known
            from elsewhere; where Ng's table starts.
        subgroups: Attributes by which stage 4 divides the images.
        exclude: Text file of images that no stage uses; see :mod:`pipeline.data.samples`.
    """

    name: str
    source: Source
    targets: tuple[TargetDomain, ...] = ()
    backbones: tuple[BackboneChoice, ...]
    concatenations: tuple[Concatenation, ...] = ()
    heads: tuple["NamedHead", ...] = ()
    classes: tuple[str, ...] | None = None
    seed: int = 0
    store: Path | None = None
    human_error: float | None = None
    subgroups: tuple[Attribute, ...] = ()
    exclude: Path | None = None

    @property
    def domains(self) -> tuple[Domain, ...]:
        """The source, then the targets."""
        return (self.source, *self.targets)

    @property
    def variants(self) -> tuple[BackboneChoice | Concatenation, ...]:
        """Whatever later stages compare: each backbone, then the concatenations."""
        return (*self.backbones, *self.concatenations)

    def parts_of(self, joined: Concatenation) -> list[BackboneChoice]:
        """The backbones of a concatenation, in the order of their columns."""
        by_name = {choice.name: choice for choice in self.backbones}
        return [by_name[name] for name in joined.parts]

    @property
    def results(self) -> Path:
        """Folder that all stages write to."""
        return Path("results") / self.name

    @property
    def store_root(self) -> Path:
        """Where the feature stores live: the study's word, the environment's, the default."""
        return self.store or Path(os.environ.get("HEADRACE_FEATURES") or "features")

    def with_precision(self, precision: str | None) -> "Study":
        """The same study with every backbone at another precision; None changes nothing."""
        if precision is None:
            return self
        chosen = tuple(replace(b, precision=precision) for b in self.backbones)
        return replace(self, backbones=chosen)


# The study file: one TOML file to the settings of ``pipeline.study``, checked where it enters.


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
        from pipeline.heads.custom import NamedHead, heads_with

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
        if not names or len(set(classes)) != len(classes) or len(classes) < 2:
            self.fail(f"classes = {classes!r}: allowed is a list of two or more different names")
        return tuple(classes)


# Write a study file for given folders, with guesses that the user can correct.


#: Names of common public chest X-ray sets and of the demo; a guess must fit most names.
PATIENT_PATTERNS = (
    r"^(patient\d+)",
    r"^(person\d+|(?:NORMAL2-)?IM-\d+)",
    r"^(\d{8})_\d{3}",
)
_MOST = 0.95
PREFERRED = "densenet121"


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
    lines = [f"name = {_text(_study_name(output))}", "seed = 0", ""]
    for folder, role in zip(data, _roles(data), strict=True):
        lines += _domain(folder, output, notes, role)
    lines += [f"[backbone.{_key(name)}]" for name in dict.fromkeys(backbones)]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return notes


def demo_backbone() -> tuple[str, str]:
    """DenseNet121 where its weights can be had, else the one that needs no download.

    Returns:
        Name, and the reason for a person.
    """
    try:
        weights_file(PREFERRED, "imagenet")
    except WeightsError:
        return NO_DOWNLOAD, (
            f"the weights of {PREFERRED} are not here and cannot be downloaded; "
            f"those of {NO_DOWNLOAD} came with its package"
        )
    return PREFERRED, "its ImageNet weights are here"


def _study_name(output: Path) -> str:
    """``chest.toml`` is called chest; ``study.toml`` is called as its folder."""
    file = output.resolve()
    return _folder_name(file.parent.name if file.stem == "study" else file.stem)


def _folder_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-") or "study"


def _roles(data: Sequence[Path]) -> list[str]:
    """``source``, then ``target.NAME``; equal folder names get a number."""
    names: list[str] = ["source"]
    for folder in data[1:]:
        name = wanted = _folder_name(folder.resolve().name)
        while name in names:
            name = f"{wanted}_{len(names)}"
        names.append(name)
    return ["source", *(f"target.{_key(name)}" for name in names[1:])]


def _key(name: str) -> str:
    return name if name.isidentifier() else _text(name)


def _domain(folder: Path, output: Path, notes: list[str], role: str) -> list[str]:
    listing = scan(folder)
    classes = sorted({item.label for item in listing.items})
    notes.append(f"[{role}] {counted(len(listing.items), 'image')}, classes: {', '.join(classes)}")
    path = _relative(folder, output)
    lines = [f"[{role}]", f"path = {_text(path)}", _group_line(listing.items, role, notes)]
    if role == "source":
        lines.append("validation = 0.2              # held out by patient, stratified by class")
    return [*lines, ""]


def _group_line(items: Sequence[Item], role: str, notes: list[str]) -> str:
    names = [PurePosixPath(item.path).name for item in items]
    for pattern in PATIENT_PATTERNS:
        if sum(bool(re.search(pattern, name)) for name in names) >= _MOST * len(names):
            return f"group = '{pattern}'"
    notes.append(
        f"[{role}] give the patient's id as `group`, a regular expression for names such as "
        f"{names[0]}; without it two images of one patient may stand on both sides of a split"
    )
    return "# group = '^([^_]+)'           # patient id in the file name"


def _relative(folder: Path, output: Path) -> str:
    """The folder as seen from the study file, so that both can move together."""
    return Path(os.path.relpath(folder.resolve(), output.resolve().parent)).as_posix()


def _text(text: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return json.dumps(text, ensure_ascii=False)
