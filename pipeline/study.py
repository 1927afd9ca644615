"""What a study is: its domains, backbones and choices, as frozen settings read from study.toml.

Every default of a study is a field below and is written nowhere else. Each value of the file
is checked here, where it enters: what was got, what is allowed.
"""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import StudyError, UnknownNameError
from pipeline.words import composed

SOURCE = "source"
SEALED, ABSENT = LABELS = ("sealed", "absent")
PRECISIONS = ("fp32", "tf32", "bf16")
RESIZES = ("stretch", "crop", "fast")

_MAX_HUMAN_ERROR = 0.5  # a person who errs more often is worse than a coin
_MOST_MEGAPIXELS = 1000  # 3 GB decoded
_SEEDS = 2**31  # room for further seeds above the study's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SETTINGS = {"name", "classes", "seed", "human_error", "exclude", "max_megapixels"}
_TABLES = {"source", "target", "backbone", "head", "store", "subgroups"}


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One hospital or data set.

    Attributes:
        path: Folder of class folders, or of ``.npy`` stacks.
        group: Regular expression for the patient id in a file's name, or with a ``/`` in it
            in the path below ``path``; its one group, or else the whole match, is the id.
            None: every image is its own patient.
        attributes: CSV file with attributes of images or patients; see
            :mod:`pipeline.data.attributes`.
        name: How the domain is called in tables; the source is called ``source``.
        ignore: Patterns of paths below ``path`` to leave out, such as ``*/masks/*``. None:
            nothing is left out, and a layout that looks wrong is refused.
    """

    path: Path
    group: str | None = None
    attributes: Path | None = None
    name: str = SOURCE
    ignore: tuple[str, ...] | None = None

    @property
    def labelled(self) -> bool:
        """Whether its images have classes that are known."""
        return True


@dataclass(frozen=True, kw_only=True)
class SourceDomain(Domain):
    """The labelled hospital; ``validation`` is the share held out by patient."""

    validation: float = 0.2


@dataclass(frozen=True, kw_only=True)
class TargetDomain(Domain):
    """Another hospital.

    Attributes:
        labels: ``sealed`` (read once, at the end) or ``absent`` (nobody has them: whatever
            folders there are name no class).
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
        resize: ``stretch`` (whole picture to the network's square), ``crop`` (as for ImageNet:
            shorter side, then the centre) or ``fast`` (``stretch``, large JPEG files decoded
            at a part of their size).
        precision: ``fp32``, ``tf32`` or ``bf16``.
        mask: What the audit hides of each picture; no setting of the study file.
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
class CustomHead:
    """A head that the study adds to the table of heads; see :mod:`pipeline.heads.custom`.

    Attributes:
        name: How it is called; none of ``HEADS``.
        estimator: ``sklearn.MODULE.CLASS``, or empty.
        base: An entry of ``HEADS``, or empty; exactly one of the two is given.
        parameters: Of the constructor.
    """

    name: str
    estimator: str = ""
    base: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """An attribute of images or patients by which results are divided into subgroups.

    Attributes:
        name: Of its column in the attribute file.
        edges: Where bins of its numbers meet, increasing; an edge belongs to the bin above
            it. None: each text that stands there is a group.
    """

    name: str
    edges: tuple[float, ...] | None = None

    def bins(self) -> tuple[str, ...]:
        """``< 18``, ``18 to < 40``, ``40 or more``: names of the bins, lowest first."""
        if self.edges is None:
            return ()
        # All digits: a date such as 20200101 has eight that count.
        edges = [repr(edge).removesuffix(".0") for edge in self.edges]
        middle = (f"{low} to < {high}" for low, high in pairwise(edges))
        return (f"< {edges[0]}", *middle, f"{edges[-1]} or more")

    def bin_of(self, value: float) -> str:
        """Name of the bin that holds a finite number."""
        return self.bins()[sum(value >= edge for edge in self.edges or ())]


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
        store: Folder of the feature stores; see :attr:`store_root`.
        human_error: Share of the source's images that a person gets wrong, 0 to 0.5, known
            from elsewhere; where the error table starts.
        subgroups: Attributes by which stage 4 divides the images.
        exclude: Text file of images that no stage uses; see :mod:`pipeline.data.samples`.
        max_megapixels: Larger images of files are refused; None for the usual limit.
    """

    name: str
    source: SourceDomain
    targets: tuple[TargetDomain, ...] = ()
    backbones: tuple[BackboneChoice, ...]
    concatenations: tuple[Concatenation, ...] = ()
    heads: tuple[CustomHead, ...] = ()
    classes: tuple[str, ...] | None = None
    seed: int = 0
    store: Path | None = None
    human_error: float | None = None
    subgroups: tuple[Attribute, ...] = ()
    exclude: Path | None = None
    max_megapixels: float | None = None

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
        """Where the feature stores are: as the study says, the environment, or by default."""
        return self.store or Path(os.environ.get("HEADRACE_FEATURES") or "features")

    def with_precision(self, precision: str | None) -> "Study":
        """The same study with every backbone at another precision; None changes nothing."""
        if precision is None:
            return self
        chosen = tuple(replace(b, precision=precision) for b in self.backbones)
        return replace(self, backbones=chosen)


def load_study(file: Path) -> Study:
    """Read and check a study file; relative paths start at the file's own folder.

    Raises:
        StudyError: It cannot be read, is not TOML, has an unknown or missing key, or
            points at a path that is not there.
    """
    table = _Table(file, "the study", _parse(file))
    table.check_keys(_SETTINGS | _TABLES)
    seed = table.get("seed", int)
    if seed is not None and not 0 <= seed < _SEEDS:
        table.fail(f"seed = {seed}: allowed is 0 to {_SEEDS - 1}")
    study = Study(
        name=_study_name(table),
        source=_source(table),
        targets=tuple(_target(name, t) for name, t in table.each("target").items()),
        backbones=_backbones(table),
        concatenations=_concatenations(table),
        heads=_heads(table),
        classes=_classes(table),
        seed=seed or 0,
        store=_store(table),
        human_error=_human_error(table),
        subgroups=_subgroups(table),
        exclude=table.path("exclude", "headrace audit writes one"),
        max_megapixels=_max_megapixels(table),
    )
    if study.subgroups and all(domain.attributes is None for domain in study.domains):
        table.fail(
            "[subgroups] needs attributes of the images: write attributes = "
            '"patients.csv" below [source] or a target'
        )
    return study


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
            wanted = getattr(kind, "__name__", "number").replace("str", "text")
            self.fail(f"{self.where} {key} = {value!r}: allowed is {wanted}")
        if value is not None and allowed and value not in allowed:
            self.fail(f"{self.where} {key} = {value!r}: allowed are {', '.join(allowed)}")
        return value

    def path(self, key: str, hint: str) -> Path | None:
        """The file that a key names, which must be there; None where the key is missing."""
        name = self.get(key)
        if name is None:
            return None
        file = self.file.parent / str(name)
        if not file.is_file():
            self.fail(f"{self.where} {key}: there is no file {file}; {hint}")
        return file

    def name(self, name: Any, where: str) -> str:
        """A name that may stand for a folder or a column."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.fail(
                f"{where} {name!r}: allowed are letters, digits, '.', '_' and '-', "
                "because it names a folder or a column"
            )
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


def _study_name(study: _Table) -> str:
    if "name" in study.values:
        return study.name(study.values["name"], "name")
    return study.name(study.file.stem, 'it has no name = "...", and its own name')


def _classes(study: _Table) -> tuple[str, ...] | None:
    classes = study.values.get("classes")
    if classes is None:
        return None
    names = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    labels = tuple(composed(name) for name in classes) if names else ()
    if len(set(labels)) != len(labels) or len(labels) < 2:
        study.fail(f"classes = {classes!r}: allowed is a list of two or more different names")
    return labels


def _store(study: _Table) -> Path | None:
    store = study.below("store")
    store.check_keys({"path"})
    path = store.get("path")
    return None if path is None else study.file.parent / str(path)


def _human_error(study: _Table) -> float | None:
    error = study.get("human_error", (int, float))
    if error is not None and not 0 <= error <= _MAX_HUMAN_ERROR:
        study.fail(
            f"human_error = {error}: allowed is the share of images that a person gets "
            f"wrong, 0 to {_MAX_HUMAN_ERROR}, such as 0.03"
        )
    return None if error is None else float(error)


def _max_megapixels(study: _Table) -> float | None:
    limit = study.get("max_megapixels", (int, float))
    if limit is not None and not 0 < limit <= _MOST_MEGAPIXELS:
        study.fail(f"max_megapixels = {limit}: allowed is more than 0, up to {_MOST_MEGAPIXELS}")
    return None if limit is None else float(limit)


def _source(study: _Table) -> SourceDomain:
    if "source" not in study.values:
        study.fail('it has no [source]; a study needs [source] with path = "FOLDER"')
    source = study.below("source")
    if "labels" in source.values:
        source.fail(
            "[source] labels: heads are fitted to the labels of the source, so they are "
            "always read; `labels` says what is known of a [target.NAME]"
        )
    source.check_keys({"path", "group", "attributes", "ignore", "validation"})
    share = source.get("validation", (int, float))
    if share is not None and not 0 < share < 1:
        source.fail(f"[source] validation = {share}: allowed is a share between 0 and 1")
    given: dict[str, Any] = {} if share is None else {"validation": float(share)}
    return SourceDomain(**_domain(source), **given)


def _target(name: str, target: _Table) -> TargetDomain:
    if name == SOURCE:
        target.fail(f"{target.where}: the name {SOURCE!r} is taken by [source]; choose another")
    target.check_keys({"path", "group", "attributes", "ignore", "labels"})
    return TargetDomain(
        name=target.name(name, target.where),
        labels=target.get("labels", allowed=LABELS) or SEALED,
        **_domain(target),
    )


def _domain(table: _Table) -> dict[str, Any]:
    path = table.get("path")
    if path is None:
        table.fail(f'{table.where} has no path; write path = "FOLDER"')
    folder = table.file.parent / str(path)
    if not folder.is_dir():
        table.fail(f"{table.where} path: there is no folder {folder}")
    hint = "allowed is a CSV file whose first column is path or patient"
    return {
        "path": folder,
        "group": _pattern(table),
        "attributes": table.path("attributes", hint),
        "ignore": _ignore(table),
    }


def _ignore(table: _Table) -> tuple[str, ...] | None:
    patterns = table.values.get("ignore")
    if patterns is None:
        return None
    if not isinstance(patterns, list) or not all(isinstance(p, str) and p for p in patterns):
        table.fail(
            f"{table.where} ignore = {patterns!r}: allowed is a list of patterns of paths below "
            'its folder, such as ["*/masks/*"]'
        )
    return tuple(patterns)


def _pattern(table: _Table) -> str | None:
    pattern: str | None = table.get("group")
    try:
        captured = re.compile(pattern or "").groups
    except re.error as cause:
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
    return tuple(_backbone(name, table) for name, table in tables.items() if "+" not in name)


def _backbone(name: str, table: _Table) -> BackboneChoice:
    # Only now: the table of backbones is above this module, and a wrong name must end here.
    from pipeline.features.backbones import check_backbone_name

    try:
        check_backbone_name(name)
    except UnknownNameError as cause:
        table.fail(f"{table.where}: {cause}")
    table.check_keys({"weights", "resize", "precision"})
    given = {
        "weights": table.get("weights"),
        "resize": table.get("resize", allowed=RESIZES),
        "precision": table.get("precision", allowed=PRECISIONS),
    }
    if given["weights"] not in (None, "imagenet"):
        given["weights"] = str(table.path("weights", 'allowed: "imagenet" or a file'))
    return BackboneChoice(name=name, **{k: v for k, v in given.items() if v is not None})


def _concatenations(study: _Table) -> tuple[Concatenation, ...]:
    tables = study.each("backbone")
    single = [name for name in tables if "+" not in name]
    joined = [Concatenation(name=name) for name in tables if "+" in name]
    for concatenation in joined:
        table = tables[concatenation.name]
        table.check_keys(set())
        for part in concatenation.parts:
            if part not in single or concatenation.parts.count(part) > 1:
                table.fail(
                    f"{table.where}: {part!r} must stand once in it and have a table "
                    f"[backbone.{part}] of its own; known: {', '.join(single)}"
                )
    return tuple(joined)


def _heads(study: _Table) -> tuple[CustomHead, ...]:
    heads = tuple(_head(name, table) for name, table in study.each("head").items())
    if heads:
        # Only now, as for backbones; most studies name no head, and need no scikit-learn here.
        from pipeline.heads.custom import all_heads

        try:
            all_heads(heads)
        except StudyError as cause:
            study.fail(str(cause))
    return heads


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
    numbers = isinstance(value, list) and all(
        isinstance(edge, int | float) and not isinstance(edge, bool) and math.isfinite(edge)
        for edge in value
    )
    if not numbers or not value or any(a >= b for a, b in pairwise(map(float, value))):
        table.fail(
            f"[subgroups] {name} = {value!r}: allowed is true, for one group for each text, or "
            "increasing numbers between which bins lie, such as [18, 40, 65]"
        )
    return tuple(float(edge) for edge in value)
