"""Figures from the probability of each image: ROC, reliability, confusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.figures.heads_data import Entry, HeadsData, Where, event_of, place_name
from pipeline.figures.style import (
    GREY,
    INK,
    SHADES,
    SMALL,
    NothingToDrawError,
    bare,
    colour,
    dash,
    new_figure,
    square_of_shares,
)
from pipeline.shift.calibration import SCORES, corp
from pipeline.shift.isotonic import fit_monotone

#: As many curves as an eye can follow.
TOP = 5
_CONFUSIONS = 6
_COLUMNS = 3
_BINARY = 2
#: Beyond this many classes a cell is too small for its count.
_COUNTED = 6


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a panel, with what is printed of it below."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    text: str


def roc(data: HeadsData) -> Figure:
    """ROC at each place: of the best heads for two classes, of each class for more."""
    many = len(data.classes) > _BINARY
    series = data.classes if many else data.best(TOP)
    if not data.best(1):
        raise NothingToDrawError("there is no head but the prior")

    def curves(where: Where) -> list[Curve]:
        if many:
            label, proba = data.asked(where, data.best(1)[0])
            return [_roc(label == k, proba[:, k], name) for k, name in enumerate(data.classes)]
        return [_roc(*_binary(data, where, entry), entry.name) for entry in data.best(TOP)]

    figure = _panels(data, curves, len(series), ("1 - specificity", "sensitivity"))
    what = (
        f"one class against the rest, {data.best(1)[0].name}" if many else "best validation first"
    )
    figure.suptitle(f"ROC: {what}, with AUROC", x=0.01, ha="left")
    return figure


def _binary(data: HeadsData, where: Where, entry: Entry) -> tuple[NDArray[Any], NDArray[Any]]:
    label, proba = data.asked(where, entry)
    return label == 1, proba[:, 1]


def _roc(positive: NDArray[np.bool_], score: NDArray[Any], name: str) -> Curve:
    if positive.all() or not positive.any():
        return Curve(x=np.empty(0), y=np.empty(0), text=f"{name}: one class only")
    false, true, _ = roc_curve(positive, score)
    return Curve(x=false, y=true, text=f"{roc_auc_score(positive, score):.3f}  {name}")


def reliability(data: HeadsData) -> Figure:
    """CORP reliability: the monotone curve that recalibration would follow (Dimitriadis 2021)."""
    best = data.best(TOP)
    if not best:
        raise NothingToDrawError("there is no head but the prior")

    def curves(where: Where) -> list[Curve]:
        return [_reliable(*event_of(*data.asked(where, entry)), entry.name) for entry in best]

    event = f"P({data.classes[1]})" if len(data.classes) == _BINARY else "P(most probable class)"
    figure = _panels(data, curves, len(best), (f"foretold {event}", "observed, isotonic fit"))
    figure.suptitle("Reliability (CORP), with miscalibration of the Brier score", x=0.01, ha="left")
    return figure


def _reliable(event: NDArray[np.bool_], p: NDArray[Any], name: str) -> Curve:
    curve = fit_monotone(p, event)
    worse = corp(event, p, SCORES["brier"]).miscalibration
    return Curve(x=curve.x, y=curve.y, text=f"{worse:.3f}  {name}")


def _panels(
    data: HeadsData,
    curves: Callable[[Where], Sequence[Curve]],
    lines: int,
    names: tuple[str, str],
) -> Figure:
    """A square for each place, and below each its curves' names in their colours."""
    if not data.places:
        raise NothingToDrawError("heads.json has no rows off the fit split")
    columns = min(len(data.places), _COLUMNS)
    rows = -(-len(data.places) // columns)
    text = 0.15 * lines + 0.05
    figure = new_figure(0.45 + rows * (2.55 + text), 0.2 + 2.35 * columns)
    cells = figure.add_gridspec(2 * rows, columns, height_ratios=[2.55, text] * rows)
    for number, where in enumerate(data.places):
        row, column = divmod(number, columns)
        axes = figure.add_subplot(cells[2 * row, column])
        below = figure.add_subplot(cells[2 * row + 1, column])
        square_of_shares(axes, names[0], names[1] if column == 0 else "")
        axes.set_title(place_name(where))
        _draw_curves(axes, below, curves(where))
    return figure


def _draw_curves(axes: Axes, below: Axes, curves: Sequence[Curve]) -> None:
    bare(below)
    for number, curve in enumerate(curves):
        shade = colour(number)
        axes.plot(curve.x, curve.y, color=shade, linestyle=dash(number), linewidth=1.1)
        height = 1 - (number + 0.5) / len(curves)
        below.plot([0.0, 0.09], [height] * 2, color=shade, linestyle=dash(number), linewidth=1.6)
        below.text(0.12, height, curve.text, color=INK, va="center", fontsize=SMALL)
    below.set(xlim=(0, 1), ylim=(0, 1))


def confusions(data: HeadsData) -> Figure:
    """Counts of the best heads at each place, shaded by the share of the true class."""
    heads, places, K = data.best(_CONFUSIONS), data.places, len(data.classes)
    if not heads or not places:
        raise NothingToDrawError("there is no head but the prior, or no place to judge it")
    side = max(0.95, 0.28 * K)
    figure = new_figure(0.75 + side * len(places), 1.0 + (side + 0.12) * len(heads))
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
    figure.suptitle("Images by true class (rows) and called class (columns)", x=0.01, ha="left")
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
            shade = "white" if shares[i, j] > 0.6 else INK  # noqa: PLR2004 - dark from there on
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=shade, fontsize=6.5)
