"""Squares of shares with several curves each: ROC and reliability, their names below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.evaluation.isotonic import fit_monotone
from pipeline.report.figures.style import (
    INK,
    SMALL,
    NothingToDrawError,
    arrangement,
    bare,
    colour,
    dash,
    new_figure,
    square_of_shares,
)
from pipeline.shift.calibrate import SCORES, corp

_BINARY = 2
_SIDE = 2.55
_LINE = 0.15


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a panel.

    Attributes:
        x: Shape (m,), in [0, 1]; empty where there is no curve.
        y: Shape (m,).
        text: What is printed of it below the panel.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    text: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point on a curve, such as an operating point.

    Attributes:
        points: (x, y) on each curve, in their order.
        marker: Of matplotlib.
        text: What is printed of it below the panel.
    """

    points: tuple[tuple[float, float], ...]
    marker: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Square:
    """One panel."""

    title: str
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()


def roc_of(positive: NDArray[np.bool_], score: NDArray[Any], name: str) -> Curve:
    """ROC with its area; no curve where one class is absent.

    Args:
        positive: Shape (n,).
        score: Shape (n,), larger means more probably positive.
        name: Printed after the area.
    """
    if positive.all() or not positive.any():
        which = "no other here" if positive.any() else "none here"
        return Curve(x=np.empty(0), y=np.empty(0), text=f"{name}: {which}")
    false, true, _ = roc_curve(positive, score)
    return Curve(x=false, y=true, text=f"{roc_auc_score(positive, score):.3f}  {name}")


def reliability_of(event: NDArray[np.bool_], p: NDArray[Any], name: str) -> Curve:
    """CORP reliability with the miscalibration of the Brier score (Dimitriadis 2021).

    Args:
        event: Shape (n,): it happened.
        p: Shape (n,), foretold probability.
        name: Printed after the number.
    """
    curve = fit_monotone(p, event)
    worse = corp(event, p, SCORES["brier"]).miscalibration
    return Curve(x=curve.x, y=curve.y, text=f"{worse:.3f}  {name}")


def event_of(label: NDArray[Any], proba: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """What is foretold and with which probability: the second of two classes, else "right".

    Args:
        label: Shape (n,).
        proba: Shape (n, K).
    """
    if proba.shape[1] == _BINARY:
        return label == 1, proba[:, 1]
    return proba.argmax(axis=1) == label, proba.max(axis=1)


def foretold(classes: Sequence[str]) -> str:
    """The name of the probability that :func:`event_of` gives."""
    return f"P({classes[1]})" if len(classes) == _BINARY else "P(most probable class)"


def squares(panels: Sequence[Square], names: tuple[str, str]) -> Figure:
    """Draw the panels, each with its curves' names below it, where nothing can cover them.

    Args:
        panels: At least one.
        names: Of both axes.
    """
    if not panels:
        raise NothingToDrawError("there is no place off the fit split")
    rows, columns = arrangement(len(panels))
    lines = max(len(panel.curves) + len(panel.marks) for panel in panels)
    text = _LINE * lines + 0.05
    figure = new_figure(0.45 + rows * (_SIDE + text), 0.2 + 2.35 * max(columns, 2))
    # One panel alone stands left of an empty one: the title needs the width.
    cells = figure.add_gridspec(2 * rows, max(columns, 2), height_ratios=[_SIDE, text] * rows)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        axes = figure.add_subplot(cells[2 * row, column])
        below = figure.add_subplot(cells[2 * row + 1, column])
        square_of_shares(axes, names[0], names[1] if column == 0 else "")
        axes.set_title(panel.title)
        bare(below)
        below.set(xlim=(0, 1), ylim=(lines, 0))
        _draw_curves(axes, below, panel.curves)
        _draw_marks(axes, below, panel)
    return figure


def _draw_curves(axes: Axes, below: Axes, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        look: Mapping[str, Any] = {"color": colour(number), "linestyle": dash(number)}
        axes.plot(curve.x, curve.y, linewidth=1.1, **look)
        below.plot([0.0, 0.09], [number + 0.5] * 2, linewidth=1.6, **look)
        _write(below, number + 0.5, curve.text)


def _draw_marks(axes: Axes, below: Axes, panel: Square) -> None:
    for number, mark in enumerate(panel.marks):
        height = len(panel.curves) + number + 0.5
        for series, (x, y) in enumerate(mark.points):
            look: Mapping[str, Any] = {"color": colour(series), "marker": mark.marker}
            axes.plot([x], [y], linestyle="", markersize=5, mec="white", mew=0.6, **look)
        below.plot([0.045], [height], mark.marker, color=INK, markersize=4.5)
        _write(below, height, mark.text)


def _write(below: Axes, height: float, text: str) -> None:
    # Out of the layout: a long name must not shrink the panel above it.
    below.text(0.12, height, text, color=INK, va="center", fontsize=SMALL).set_in_layout(False)
