"""Figures of the stages: which there are, and how they are drawn into a folder.

matplotlib is imported only when a figure is drawn: the page needs names and captions alone.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any

from pipeline.evaluation.predictions import Predictions, predictions_in
from pipeline.parallel import run_each
from pipeline.report import parts_of
from pipeline.report.table import Part, Table
from pipeline.results import ResultSet
from pipeline.words import as_file_name, printable

_LOG = logging.getLogger(__name__)
FOLDER = "figures"
#: Begins the names of pictures of patients; see :mod:`pipeline.report.pictures`.
ERROR_SHEET = "heads-errors"

_POINT = (
    "A point is the estimate and the line through it its 95 % interval over patients. Where the "
    "line crosses 0, no difference is shown."
)
_BAR = "The thin line is the 95 % interval over patients."
_EPOCHS = (
    "Blue: images that were trained on. Orange: validation. Where the orange loss rises again, the "
    "training images are learned by heart."
)

#: By name: module and function, what the figure shows, and how it is read, which the page says
#: once. To add one: a function of :class:`Results` and one line here. A name begins with its
#: stage.
FIGURES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "heads-forest": (
            "forest.heads",
            "Is a head better than the baseline? Points of accuracy gained on the same images.",
            _POINT,
        ),
        "heads-roc": (
            "curves.roc",
            "How well does the best head separate the classes, and are its probabilities true?",
            (
                "ROC: the nearer to the upper left corner, the better; on the grey line the head "
                "guesses. A dot is the choice of the most probable class. Reliability: on the grey "
                "line, of 100 images called 80 % probable, 80 are so."
            ),
        ),
        "heads-benefit": (
            "curves.benefit",
            "Is it worth treating by the best head, rather than all or nobody?",
            (
                "A false positive costs the odds of the threshold. The head is worth using where "
                "its line is above both grey ones."
            ),
        ),
        "heads-confusion": (
            "curves.confusion",
            "Which classes does the best head confuse? Images by true and predicted class.",
            "Each row holds the images of one class; those on the diagonal are classified rightly.",
        ),
        "heads-curves": ("curves.heads", "Has training by epochs settled?", _EPOCHS),
        "finetune-forest": (
            "forest.finetune",
            "Is a trained network better than lp, the head on frozen features?",
            _POINT,
        ),
        "finetune-curves": ("curves.finetune", "Has training of the networks settled?", _EPOCHS),
        "shift-effects": (
            "forest.effects",
            "Why is accuracy lost? The loss of the head, divided in several ways.",
            f"Bars of one colour add up to the loss, the dashed line. {_BAR}",
        ),
        "shift-adaptation": (
            "forest.adaptation",
            "What helps on the target? Points of accuracy that a linear head gains by adaptation.",
            f"Orange squares use labels of the target. {_POINT}",
        ),
        "shift-map": (
            "curves.feature_map",
            "Do images of the domains look alike to the network?",
            (
                "A point is an image; images with like features lie close together. The axes are "
                "the first two principal components."
            ),
        ),
        "shift-subgroups": (
            "forest.subgroups",
            "Does the head fail a group of patients?",
            "A point is the target, a tick the source. Groups without a mark have too few images.",
        ),
    }
)


class NothingToDrawError(Exception):
    """The stage's files do not hold what this figure shows; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a stage found on one backbone.

    Attributes:
        record: The stage's JSON values.
        parts: Its tables and sentences.
        predictions: Probabilities of each image; None where none are stored.
        file: Bytes of the HDF5 file of these, and of other arrays that are drawn.
    """

    file: bytes
    backbone: str
    record: Mapping[str, Any]
    parts: tuple[Part, ...]
    predictions: Predictions | None

    @property
    def classes(self) -> list[str]:
        """Names in label order, fit to be shown."""
        return [printable(name) for name in self.record["classes"]]

    @property
    def of_backbone(self) -> Mapping[str, Any]:
        """What the record has of the backbone."""
        rows: list[Mapping[str, Any]] = self.record["backbones"]
        return next(row for row in rows if row["backbone"] == self.backbone)

    def tables(self, key: str) -> list[Table]:
        """Tables with this key about this backbone that have rows; at least one, or it raises."""
        tables = [
            part
            for part in self.parts
            if isinstance(part, Table)
            and (part.key, part.about.get("backbone")) == (key, self.backbone)
            and part.records
        ]
        if not tables:
            raise NothingToDrawError(f"the record has no table {key}")
        return tables


def stored_arrays(results: ResultSet) -> bytes:
    """The file of a stage's probabilities; empty where it has none."""
    return next((results.read(name) for name in results.digests if name.endswith(".h5")), b"")


def draw(
    stage: str,
    record: Mapping[str, Any],
    file: bytes,
    beside: Mapping[str, Callable[[], dict[str, bytes]]] = MappingProxyType({}),
) -> dict[str, bytes]:
    """Draw all figures of ``heads``, ``finetune`` or ``shift``, one on each core.

    A figure that cannot be drawn is named in the log with the reason, and the others go on.

    Args:
        stage: That has just been run.
        record: Its JSON values.
        file: Its probabilities; see :func:`stored_arrays`.
        beside: By name, what else is drawn at the same time, and returns such images too.

    Returns:
        PNG of each, by name below the study's results.
    """
    predictions = predictions_in(file) if file else {}
    parts = tuple(parts_of(stage, record))
    jobs: dict[str, Callable[[], dict[str, bytes]]] = {**beside}
    for backbone in backbones_of(record):
        results = Results(
            file=file,
            backbone=backbone,
            record=record,
            parts=parts,
            predictions=predictions.get(backbone),
        )
        for name in FIGURES:
            if name.startswith(f"{stage}-"):
                jobs[f"{name} of {backbone}"] = partial(_draw_figure, name, results)
    images: dict[str, bytes] = {}
    for name, drawn in zip(jobs, run_each(list(jobs.values())), strict=True):
        if isinstance(drawn, dict):
            images |= drawn
        else:  # the numbers are on disk; this costs one figure
            level = logging.DEBUG if isinstance(drawn, NothingToDrawError) else logging.WARNING
            _LOG.log(level, "figure %s is not drawn: %s: %s", name, type(drawn).__name__, drawn)
    return images


def backbones_of(record: Mapping[str, Any]) -> list[str]:
    """Backbones that the record of a stage is about, in its order."""
    rows = [row for name in ("backbones", "targets") for row in record.get(name, ())]
    return list(dict.fromkeys(row["backbone"] for row in rows if isinstance(row, Mapping)))


def _draw_figure(name: str, results: Results) -> dict[str, bytes]:
    from pipeline.report.figures.style import png_of

    module, function = FIGURES[name][0].split(".")
    make = getattr(import_module(f"pipeline.report.figures.{module}"), function)
    return {_file(name, results.backbone): png_of(make, results)}


def _file(name: str, backbone: str) -> str:
    return f"{FOLDER}/{name}-{as_file_name(backbone)}.png"


def drawn(results: ResultSet, backbone: str) -> Iterator[tuple[str, bytes]]:
    """Name of each figure of a stage, and its PNG."""
    for name in FIGURES:
        file = _file(name, backbone)
        if name.startswith(f"{results.stage}-") and file in results.digests:
            yield name, results.read(file)
