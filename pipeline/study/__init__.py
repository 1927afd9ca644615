"""What a study is: its domains, backbones and choices, as frozen settings.

Every default of a study is a field below and is written nowhere else; the study file is
read by :mod:`pipeline.study.file`.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.study.attributes import Attribute

if TYPE_CHECKING:
    from pipeline.heads.named import NamedHead

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
            :mod:`pipeline.study.attributes`.
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
        exclude: Text file of images that no stage uses; see :mod:`pipeline.samples.exclusions`.
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
