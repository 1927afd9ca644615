"""The figures of all stages: their captions, and how they are drawn.

matplotlib is imported only when a figure is drawn: the page needs only names and captions.
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
#: Start of the names of files with images of patients; see :mod:`pipeline.report.strips`.
ERROR_SHEET = "heads-errors"

_POINT = (
    "A point is the estimate; the line through it is its 95 % interval over patients. If the line "
    "crosses 0, no difference is shown."
)
_BAR = "The thin line is the 95 % interval over patients."
_EPOCHS = (
    "Blue is the training images, orange is validation. If the orange loss rises again, the model "
    "overfits the training images."
)

#: By name: module and function; what the figure shows; how to read it, which the page says once.
#: To add one: write a function of :class:`Results` and one line here. A name begins with its
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
            "How well does the best head separate the classes? Are its probabilities right?",
            (
                "ROC: a curve near the upper left corner is good; the grey line is guessing. A dot "
                "marks the choice of the most probable class. Reliability: on the grey line, 80 "
                "of 100 images with a probability of 80 % are positive."
            ),
        ),
        "heads-benefit": (
            "curves.benefit",
            "Is it better to treat by the best head than to treat all or nobody?",
            (
                "A false positive costs the odds of the threshold. The head is useful where its "
                "line is above both grey lines."
            ),
        ),
        "heads-confusion": (
            "curves.confusion",
            "Which classes does the best head confuse? Images by true and predicted class.",
            "A row holds the images of one class. Those on the diagonal are classified correctly.",
        ),
        "heads-curves": ("curves.heads", "Has the training of the heads converged?", _EPOCHS),
        "finetune-forest": (
            "forest.finetune",
            "Is a trained network better than lp, the head on frozen features?",
            _POINT,
        ),
        "finetune-curves": (
            "curves.finetune",
            "Has the training of the networks converged?",
            _EPOCHS,
        ),
        "shift-effects": (
            "forest.effects",
            "Why is accuracy lost? The loss of the head, divided in several ways.",
            f"Bars of one colour add up to the loss, which is the dashed line. {_BAR}",
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
                "A point is an image; images with similar features lie close together. The axes "
                "are the first two principal components."
            ),
        ),
        "shift-subgroups": (
            "forest.subgroups",
            "Is the head worse for a group of patients?",
            "A point is the target, a tick the source. Groups without a mark have too few images.",
        ),
    }
)


class NothingToDrawError(Exception):
    """The stage's files lack what this figure shows; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a stage on one backbone.

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
        """The tables with this key and with rows about this backbone.

        Raises:
            NothingToDrawError: There is none.
        """
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
    """The content of a stage's file of probabilities; empty if it has none."""
    return next((results.read(name) for name in results.digests if name.endswith(".h5")), b"")


def draw(
    stage: str,
    record: Mapping[str, Any],
    file: bytes,
    others: Mapping[str, Callable[[], dict[str, bytes]]] = MappingProxyType({}),
) -> dict[str, bytes]:
    """Draw all figures of ``heads``, ``finetune`` or ``shift``, one on each core.

    A figure that cannot be drawn is named in the log with the reason, and the others go on.

    Args:
        stage: The stage that has just been run.
        record: Its JSON values.
        file: Its probabilities; see :func:`stored_arrays`.
        others: By name, other functions that return such images; they run at the same time.

    Returns:
        The PNG files, by name below the study's results.
    """
    predictions = predictions_in(file) if file else {}
    parts = tuple(parts_of(stage, record))
    jobs: dict[str, Callable[[], dict[str, bytes]]] = {**others}
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
    """The backbones in the record of a stage, in its order."""
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
