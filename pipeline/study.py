"""The settings of a study, frozen: domains, backbones and choices.

Every default is a field below and is written nowhere else. ``pipeline.study_file`` reads the file.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

SOURCE = "source"
SEALED, ABSENT = LABELS = ("sealed", "absent")
PRECISIONS = ("fp32", "tf32", "bf16")
#: Between the name of a network and that of a layer of it.
AT = "@"
#: Ending of a file of image names, as a value of ``split``; of a file of arrays, of ``path``.
LIST, ARCHIVE = ".txt", ".npz"
#: Value of ``split`` with which the source keeps the split of its data.
GIVEN = "given"
#: Value of ``group`` for patients from the headers of DICOM files.
HEADER = "PatientID"
#: What a column of a table may be for.
COLUMNS = ("path", "label", "patient", "domain", "split")


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """A table with a row for each image; see :mod:`pipeline.data.tables`.

    Attributes:
        file: CSV, TSV or Parquet.
        columns: Names of columns by their use, an entry of ``COLUMNS``. If ``label`` has several,
            each is named like a class and holds a 1 for its images. Columns that are not named
            are searched by their usual names.
        values: For each class, patterns of the label cells that mean it; empty: each text is a
            class. For each finding, its name in this table: a column (in a ``.npz`` file its
            number), or a text of the label.
        domain: Text of the domain column in the rows that are taken; empty: all rows.
        finding: The finding that is the label, if images can have several; empty: images are
            taken without a label. None: each image has one class.
    """

    file: Path
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    domain: str = ""
    finding: str | None = None


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One hospital or data set.

    Attributes:
        path: Folder of class folders or of ``.npy`` stacks, a ``.npz`` file, or where the
            paths of a table start.
        table: The table that lists the images, or what the labels of a ``.npz`` file mean.
        split: The part of the data that is taken, by the data's own name, or a ``.txt`` file
            with the names of its images; ``given``: the source keeps the split of its data.
            Empty: all images.
        label: Regular expression for the class, searched as ``group`` is; None: the folder below
            ``path``, or the table's column.
        group: Regular expression for the patient id in a file's name, or, if it has a ``/``, in
            the path below ``path``; its one group, or else the whole match, is the id.
            ``HEADER``: the hashed patient id of DICOM files. None: the table's column, or each
            image counts as its own patient.
        attributes: CSV file with attributes of images or patients.
        name: Name of the domain in tables; the source is called ``source``.
        ignore: Patterns of paths below ``path`` to leave out, such as ``*/masks/*``. None:
            nothing is left out, and a layout that looks wrong is refused.
        window: Values that become black and white, for images with more than 8 bits. None: that
            of the DICOM files; otherwise guessed from all images of the domain.
        frame: ``first`` or ``middle``, for files with several frames; None: they are refused.
    """

    path: Path
    table: ImageTable | None = None
    split: str = ""
    label: str | None = None
    group: str | None = None
    attributes: Path | None = None
    name: str = SOURCE
    ignore: tuple[str, ...] | None = None
    window: tuple[float, float] | None = None
    frame: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether its images have classes."""
        return self.table is None or self.table.finding != ""

    def with_label(self, finding: str) -> Self:
        """The same images with this finding as their label; empty: without a label."""
        return replace(self, table=self.table and replace(self.table, finding=finding))


@dataclass(frozen=True, kw_only=True)
class SourceDomain(Domain):
    """The labelled hospital.

    Attributes:
        validation: The share held out by patient, or the folder or file that is held out.
    """

    validation: float | Path = 0.2

    @property
    def keeps_split(self) -> bool:
        """Whether the source keeps the split of its data."""
        return self.split == GIVEN or isinstance(self.validation, Path)


@dataclass(frozen=True, kw_only=True)
class TargetDomain(Domain):
    """Another hospital, or a test part of the source's data set.

    Attributes:
        labels: ``sealed`` (they measure, and no adaptation method sees them) or ``absent`` (there
            are none, and folders do not name classes).
        is_source_test: Whether it is a test part of the source's own data set (``[test.NAME]``),
            so that a patient id means the same person in both.
        findings: The study's findings for which it has labels; None: all.
    """

    labels: str = SEALED
    is_source_test: bool = False
    findings: tuple[str, ...] | None = None

    @property
    def labelled(self) -> bool:
        """Whether its images have classes."""
        return self.labels != ABSENT and super().labelled


@dataclass(frozen=True, kw_only=True)
class BackboneChoice:
    """A frozen network as the study asks for it.

    Attributes:
        name: An entry of ``BACKBONES``, ``timm:NAME``, or ``ENTRY@LAYER`` for the features of
            a layer within it.
        weights: ``imagenet``, or the path of a file with the network's state dict.
        resize: ``stretch`` (whole image to the network's square), ``crop`` (as for ImageNet:
            shorter side, then the centre) or ``fast`` (``stretch``, large JPEG files decoded
            at a part of their size).
        precision: An entry of ``PRECISIONS``.
        decode: ``cpu``, or ``gpu``: JPEG files are decoded on a CUDA device.
        views: How many fixed augmented views of each image the network sees.
        mask: What the audit hides of each image; not a setting of the study file.
    """

    name: str
    weights: str = "imagenet"
    resize: str = "stretch"
    precision: str = "fp32"
    decode: str = "cpu"
    views: int = 1
    mask: str = "none"

    @property
    def network(self) -> "BackboneChoice":
        """The plain network: its last features, with one view."""
        return replace(self, name=self.name.partition(AT)[0], views=1)

    @property
    def layer(self) -> str:
        """The layer whose features are taken; empty: the network's output."""
        return self.name.partition(AT)[2]


@dataclass(frozen=True, kw_only=True)
class CustomHead:
    """A head that the study adds to the table of heads; see :mod:`pipeline.heads.custom`.

    Attributes:
        name: Its name, which must not be one of ``HEADS``.
        estimator: ``sklearn.MODULE.CLASS``, or empty.
        base: An entry of ``HEADS``, or empty; exactly one of the two is given.
        parameters: Parameters of the constructor.
    """

    name: str
    estimator: str = ""
    base: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """An attribute of images or patients by which results are divided into subgroups.

    Attributes:
        name: Name of its column in the attribute file.
        edges: Edges between the bins of its numbers, increasing; an edge belongs to the upper
            bin. None: each text is a group.
    """

    name: str
    edges: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study: data, backbones, seed.

    Attributes:
        name: Results go to ``results/<name>/``.
        source: The labelled domain that heads are fitted on.
        targets: The other domains, in the file's order.
        backbones: The networks, in the file's order; stage 1 runs these.
        concatenations: Names of backbones joined by ``+``, whose features are concatenated.
        heads: Heads that the study adds to the table of heads.
        classes: Class names in label order; None: see :func:`pipeline.words.class_order`.
        findings: Findings, of which an image may have several. Each is run as its own study, see
            :meth:`of_finding`; this one has all images and no label.
        seed: Seed of all random choices.
        store: Folder of the feature stores; see :attr:`store_root`.
        human_error: Share of the source's images that a person gets wrong, 0 to 0.5, from
            another source; the first row of the error table.
        subgroups: Attributes by which stage 4 divides the images.
        exclude: Text file of images that no stage uses; see :mod:`pipeline.data.samples`.
        max_megapixels: Larger images of files are refused; None for the usual limit.
    """

    name: str
    source: SourceDomain
    targets: tuple[TargetDomain, ...] = ()
    backbones: tuple[BackboneChoice, ...]
    concatenations: tuple[str, ...] = ()
    heads: tuple[CustomHead, ...] = ()
    classes: tuple[str, ...] | None = None
    findings: tuple[str, ...] = ()
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
    def variants(self) -> dict[str, list[BackboneChoice]]:
        """The parts of each backbone and concatenation, by the name that later stages use."""
        by_name = {choice.name: choice for choice in self.backbones}
        names = (*by_name, *self.concatenations)
        return {name: [by_name[part] for part in name.split("+")] for name in names}

    @property
    def results(self) -> Path:
        """Folder that all stages write to."""
        return Path("results") / self.name

    @property
    def store_root(self) -> Path:
        """Folder of the feature stores: from the study, the environment, or the default."""
        return self.store or default_store()

    def of_finding(self, finding: str) -> "Study":
        """The study of one finding, with the images that are labelled for it."""
        targets = (t for t in self.targets if t.findings is None or finding in t.findings)
        return replace(
            replace(self, targets=tuple(targets)).with_label(finding),
            name=f"{self.name}/{folder_of(finding)}",
            classes=classes_of(finding),
            findings=(),
        )

    def with_label(self, finding: str) -> "Study":
        """The study with another label, see :meth:`Domain.with_label`."""
        targets = tuple(target.with_label(finding) for target in self.targets)
        return replace(self, source=self.source.with_label(finding), targets=targets)

    def with_recipe(self, **changed: str | None) -> "Study":
        """The same study with another precision or decoder for every backbone; None: as it is."""
        given: dict[str, Any] = {name: value for name, value in changed.items() if value}
        return replace(self, backbones=tuple(replace(b, **given) for b in self.backbones))


def default_store() -> Path:
    """Default folder of the stores."""
    return Path(os.environ.get("HEADRACE_FEATURES") or "features")


def classes_of(finding: str) -> tuple[str, str]:
    """The two class names of one finding: without it, and with it."""
    return f"not {finding}", finding


def folder_of(finding: str) -> str:
    """Name of the folder of a finding's results."""
    return finding.replace(" ", "_")
