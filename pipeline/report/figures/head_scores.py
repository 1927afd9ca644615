"""Figures from the probability of each image: ROC, reliability, confusion."""

from collections.abc import Callable
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.report.figures.heads_data import HeadsData
from pipeline.report.figures.ranked import Entry, Where, place_name
from pipeline.report.figures.squares import (
    Curve,
    Square,
    event_of,
    foretold,
    reliability_of,
    roc_of,
    squares,
)
from pipeline.report.figures.style import GREY, INK, SHADES, SMALL, NothingToDrawError, new_figure

#: As many curves as an eye can follow.
TOP = 5
_CONFUSIONS = 6
_BINARY = 2
#: Beyond this many classes a cell is too small for its count.
_COUNTED = 6


def roc(data: HeadsData) -> Figure:
    """ROC at each place: of the best heads for two classes, of each class for more."""
    best = _learners(data)
    many = len(data.classes) > _BINARY

    def curves(where: Where) -> list[Curve]:
        if many:
            label, proba = data.asked(where, best[0])
            return [roc_of(label == k, proba[:, k], name) for k, name in enumerate(data.classes)]
        found = [(entry.name, *data.asked(where, entry)) for entry in best]
        return [roc_of(label == 1, proba[:, 1], name) for name, label, proba in found]

    figure = squares(_each(data, curves), ("1 - specificity", "sensitivity"))
    what = f"each class against the rest, {best[0].name}" if many else "best validation first"
    figure.suptitle(f"ROC: {what}, with AUROC", x=0.01, ha="left")
    return figure


def reliability(data: HeadsData) -> Figure:
    """CORP reliability: the monotone curve that recalibration would follow."""
    best = _learners(data)

    def curves(where: Where) -> list[Curve]:
        return [reliability_of(*event_of(*data.asked(where, e)), e.name) for e in best]

    names = (f"foretold {foretold(data.classes)}", "observed, isotonic fit")
    figure = squares(_each(data, curves), names)
    figure.suptitle("Reliability (CORP), with miscalibration of the Brier score", x=0.01, ha="left")
    return figure


def _learners(data: HeadsData) -> list[Entry]:
    best = data.best(TOP)
    if not best:
        raise NothingToDrawError("there is no head but the prior")
    return best


def _each(data: HeadsData, curves: Callable[[Where], list[Curve]]) -> list[Square]:
    return [Square(title=place_name(w), curves=tuple(curves(w))) for w in data.places]


def confusions(data: HeadsData) -> Figure:
    """Counts of the best heads at each place, shaded by the share of the true class."""
    heads, places, K = data.best(_CONFUSIONS), data.places, len(data.classes)
    if not heads or not places:
        raise NothingToDrawError("there is no head but the prior, or no place to judge it")
    side = max(0.95, 0.28 * K)
    figure = new_figure(0.75 + side * len(places), 1.0 + (side + 0.12) * max(len(heads), 3))
    cells = figure.subplots(len(places), len(heads), squeeze=False)
    for row, where in zip(cells, places, strict=True):
        for axes, entry in zip(row, heads, strict=True):
            _matrix(axes, *data.asked(where, entry), K)
        row[0].set_yticks(range(K), data.classes)
        row[0].set_ylabel("\n".join(wrap(place_name(where), 14)), fontweight="bold", fontsize=SMALL)
    for axes, entry in zip(cells[0], heads, strict=True):
        axes.set_title(entry.name.replace(" (", "\n("), fontsize=SMALL, loc="center")
    for axes in cells[-1]:
        axes.set_xticks(range(K), data.classes, rotation=45, ha="right", rotation_mode="anchor")
    figure.suptitle("Images by true class (rows) and called class", x=0.01, ha="left")
    return figure


def _matrix(axes: Axes, label: NDArray[Any], proba: NDArray[Any], K: int) -> None:
    counts = np.zeros((K, K), dtype=np.int64)
    np.add.at(counts, (label, proba.argmax(axis=1)), 1)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY)
    if _COUNTED < K:
        return
    for i in range(K):
        for j in range(K):
            shade = "white" if shares[i, j] > 0.6 else INK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=shade, fontsize=6.5)
