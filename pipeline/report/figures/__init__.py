"""Figures of the stages: which there are, and how they are drawn into a folder.

matplotlib is imported only when a figure is drawn: the page needs names and captions alone.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingResultsError
from pipeline.evaluation.predictions import Predictions, read_predictions, stored_predictions
from pipeline.report.table import Table
from pipeline.results import ResultSet
from pipeline.words import as_file_name, printable

_LOG = logging.getLogger(__name__)
FOLDER = "figures"
KINDS = ("png", "svg")
#: Of a PNG, in an inch.
PNG_DOTS = 200
#: By stage, the file of the probabilities of each image.
PROBABILITIES: Mapping[str, str] = MappingProxyType(
    {"heads": "probabilities.h5", "finetune": "finetune.h5", "shift": "shift.h5"}
)

#: By name: module and function, and what the figure shows and how it is read. To add one: a
#: function of :class:`Results` and one line here. A name begins with its stage.
FIGURES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "heads-forest": ("forest.heads", "Accuracy of each head with its 95 % interval."),
        "heads-roc": ("roc.heads_roc", "ROC curves of the best heads, with their AUROC."),
        "heads-confusion": (
            "roc.heads_confusion",
            "Images by true class (rows) and predicted class (columns) of the best heads.",
        ),
        "heads-curves": (
            "curves.heads",
            "Loss and accuracy by epoch of heads that train in epochs. Thin lines: single seeds.",
        ),
        "finetune-forest": (
            "forest.finetune",
            "Accuracy of each method with its 95 % interval; lp is a head on frozen features.",
        ),
        "finetune-curves": ("curves.finetune", "Loss and accuracy by epoch of each method."),
        "finetune-alpha": (
            "curves.alpha",
            "Accuracy from linear probe to fine-tuned network; dashed: chosen on validation.",
        ),
        "shift-errors": (
            "shift.error_table",
            (
                "Error table (after Ng): errors (grey) and the steps between them. Lines: 95 % "
                "intervals by patient; dotted: with the head fitted again."
            ),
        ),
        "shift-effects": (
            "shift.effects",
            "The lost accuracy divided in several ways: the effects of one colour add up to it.",
        ),
        "shift-scores": (
            "shift.scores",
            "Distribution of the score in each class: source above the line, target below.",
        ),
        "shift-roc": (
            "roc.shift_roc",
            "ROC curves of source and target. Marks: thresholds chosen on the source.",
        ),
        "shift-reliability": (
            "roc.shift_reliability",
            "Observed against predicted probability on source and target.",
        ),
        "shift-map": (
            "shift.feature_map",
            "Images on the first two principal components of their features.",
        ),
        "shift-adaptation": (
            "shift.adaptation",
            "Accuracy gained by each adaptation method. Orange: it uses labels of the target.",
        ),
        "shift-subgroups": (
            "shift.subgroups",
            "The head in each subgroup of source and target, with 95 % intervals.",
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
        parts: Its tables; see :mod:`pipeline.report.table`.
        predictions: Probabilities of each image; None where none are stored.
        file: HDF5 file of these, and of other arrays that are drawn; its bytes.
    """

    file: bytes
    backbone: str
    record: Mapping[str, Any]
    parts: tuple[Any, ...]
    predictions: Predictions | None

    @property
    def classes(self) -> list[str]:
        """Names in label order, fit to be shown."""
        return [printable(name) for name in self.record["classes"]]

    def tables(self, *keys: str) -> list[Table]:
        """Tables with these keys about this backbone, for each domain or target.

        Raises:
            NothingToDrawError: There is none with rows.
        """
        found = [
            part
            for part in self.parts
            if isinstance(part, Table)
            and part.key in keys
            and part.rows
            and part.about["backbone"] == self.backbone
        ]
        if not found:
            raise NothingToDrawError(f"the record has no table {' or '.join(keys)}")
        return found

    def scored(
        self, head: str | None, domain: str, split: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Labels (n,) and probabilities (n, K) of a head, or of the only one, in a domain.

        Raises:
            NothingToDrawError: They are not stored.
        """
        kept = self.predictions
        names = [] if kept is None else list(kept.proba)
        chosen = [n for n in names if head is None or n[0] == head]
        if kept is None or not chosen:
            raise NothingToDrawError(f"no probabilities of {head or 'the head'} are stored")
        rows = kept.domain == domain
        if split is not None:
            rows &= kept.split == split
        if not rows.any():
            raise NothingToDrawError(f"no probabilities of {domain} are stored")
        return kept.label[rows], kept.proba[chosen[0]][rows]


def draw(stage: str, record: Mapping[str, Any], results: Path) -> dict[str, bytes]:
    """Draw all figures of ``heads``, ``finetune`` or ``shift``.

    A figure that cannot be drawn is named in the log with the reason, and the others go on.

    Args:
        stage: That has just been run.
        record: Its JSON values.
        results: Where its probabilities are.

    Returns:
        PNG and SVG of each, by name below ``results``.
    """
    parts = tuple(import_module(f"pipeline.report.{stage}").tables(record))
    try:
        file = stored_predictions(results / PROBABILITIES[stage])
        predictions = read_predictions(results / PROBABILITIES[stage])
    except MissingResultsError:
        file, predictions = b"", {}
    images: dict[str, bytes] = {}
    for backbone in backbones_of(record):
        found = Results(
            file=file,
            backbone=backbone,
            record=record,
            parts=parts,
            predictions=predictions.get(backbone),
        )
        for name in FIGURES:
            if name.startswith(f"{stage}-"):
                images |= _draw_one(name, found)
    return images


def backbones_of(record: Mapping[str, Any]) -> list[str]:
    """Backbones that the record of a stage is about, in its order."""
    rows = [row for name in ("backbones", "targets") for row in record.get(name, ())]
    return list(dict.fromkeys(row["backbone"] for row in rows if isinstance(row, Mapping)))


def _draw_one(name: str, found: Results) -> dict[str, bytes]:
    from pipeline.report.figures.style import image_bytes, styled

    module, function = FIGURES[name][0].split(".")
    make = getattr(import_module(f"pipeline.report.figures.{module}"), function)
    try:
        figure = styled(make)(found)
        return {
            f"{FOLDER}/{_stem(name, found.backbone)}.{kind}": image_bytes(figure, kind)
            for kind in KINDS
        }
    except Exception as error:  # noqa: BLE001 - the numbers are on disk; this costs one figure
        if isinstance(error, NothingToDrawError):
            _LOG.debug("figure %s of %s is not drawn: %s", name, found.backbone, error)
        else:
            reason = f"{type(error).__name__}: {error}"
            _LOG.warning("figure %s of %s is not drawn: %s", name, found.backbone, reason)
        return {}


def _stem(name: str, backbone: str) -> str:
    return f"{name}-{as_file_name(backbone)}"


def drawn(found: ResultSet, backbone: str) -> Iterator[tuple[str, str, bytes]]:
    """Caption, kind and image of each figure of a stage; of PNG and SVG, the smaller."""
    for name, (_, caption) in FIGURES.items():
        files = {kind: f"{FOLDER}/{_stem(name, backbone)}.{kind}" for kind in KINDS}
        images = {kind: found.read(file) for kind, file in files.items() if file in found.digests}
        if name.startswith(f"{found.stage}-") and images:
            kind = min(images, key=lambda kind: len(images[kind]))
            yield caption, kind, images[kind]
