"""Figures from the probability of each image: ROC, reliability, confusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    GREY,
    INK,
    PALE,
    SHADES,
    SMALL,
    arrangement,
    colour,
    dash,
    new_figure,
)
from pipeline.words import printable

#: As many curves as an eye can follow, and as many matrices as fit abreast.
_CURVES, _MATRICES = 5, 3
#: Beyond this many classes a cell is too small for its count.
_COUNTED = 6
_SIDE, _LINE = 2.55, 0.15
_RULES = {"youden": "o", "specificity": "s", "sensitivity": "^"}
Scored = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """One line of a square: ``x`` and ``y`` of shape (m,), and its text below the panel."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    text: str


def heads_roc(found: Results) -> Figure:
    """ROC in each domain: of the best heads for two classes, of each class for more."""
    best, many = _best(found, _CURVES), len(found.classes) > 2
    squares: dict[str, list[_Curve]] = {}
    for table in found.tables("heads"):
        scored = partial(found.scored, domain=table.about["domain"], split=table.about["role"])
        curves = squares.setdefault(table.title.split(":")[0], [])
        if many:
            label, proba = scored(best[0])
            curves += [_roc(label == k, proba[:, k], name) for k, name in enumerate(found.classes)]
        for head in () if many else best:
            label, proba = scored(head)
            curves.append(_roc(label == 1, proba[:, 1], head))
    figure = _squares(squares, ("1 - specificity", "sensitivity"))
    what = f", {best[0]}, each class against the rest" if many else ""
    figure.suptitle(f"ROC with AUROC{printable(what)}", x=0.01, ha="left")
    return figure


def _best(found: Results, count: int) -> list[str]:
    """Names of the first heads, without the one that only knows class frequencies."""
    names = found.tables("heads")[0].values("head")
    if learned := [name for name in names if name != "prior"][:count]:
        return learned
    raise NothingToDrawError("there is no head but the prior")


def shift_roc(found: Results) -> Figure:
    """ROC of source and target, with the thresholds chosen on the source at work on both."""
    if len(found.classes) != 2:
        raise NothingToDrawError("thresholds need two classes")
    squares, marks = {}, {}
    for table in found.tables("shift_thresholds"):
        target = table.about["target"]
        scores = {"source": found.scored(None, "source"), target: found.scored(None, target)}
        squares[target] = [
            _roc(label == 1, proba[:, 1], name) for name, (label, proba) in scores.items()
        ]
        marks[target] = _transferred(
            [dict(zip(table.names, row, strict=True)) for row in table.rows]
        )
    figure = _squares(squares, ("1 - specificity", "sensitivity"), marks)
    figure.suptitle("ROC, with thresholds of the source", x=0.01, ha="left")
    figure.supxlabel("marks: sensitivity/specificity, source → target", fontsize=7)
    return figure


def _transferred(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """By rule: (1 - specificity, sensitivity) where it was chosen, and unchanged on the target."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["rule"] in _RULES and row["moved by"] == "none":
            sensitivity, specificity = row["sensitivity, %"], row["specificity, %"]
            if sensitivity and specificity:
                points.setdefault(row["rule"], []).append((1 - specificity[0], sensitivity[0]))
    return {rule: both for rule, both in points.items() if len(both) == 2}


def shift_reliability(found: Results) -> Figure:
    """Reliability of the head on the source, out of fold, and on each target."""
    targets = [table.about["target"] for table in found.tables("shift_calibration")]
    squares = {
        target: [_reliability(found.scored(None, domain), domain) for domain in ("source", target)]
        for target in targets
    }
    binary = len(found.classes) == 2
    what = f"P({found.classes[1]})" if binary else "P(most probable class)"
    figure = _squares(squares, (f"predicted {what}", "observed (isotonic fit)"))
    figure.suptitle("Reliability, with miscalibration of the Brier score", x=0.01, ha="left")
    return figure


def _roc(positive: NDArray[np.bool_], score: NDArray[Any], name: str) -> _Curve:
    if positive.all() or not positive.any():
        return _Curve(x=np.empty(0), y=np.empty(0), text=f"{name}: one class only")
    false, true, _ = roc_curve(positive, score)
    return _Curve(x=false, y=true, text=f"{roc_auc_score(positive, score):.3f}  {name}")


def _reliability(scored: Scored, name: str) -> _Curve:
    """CORP reliability (Dimitriadis 2021): the monotone curve that recalibration would follow."""
    event, p = event_of(*scored)
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, event)
    # The part of the Brier score that goes when every p is replaced by the curve's value.
    worse = np.mean((p - event) ** 2) - np.mean((fit.predict(p) - event) ** 2)
    return _Curve(x=fit.X_thresholds_, y=fit.y_thresholds_, text=f"{worse:.3f}  {name}")


def event_of(
    label: NDArray[np.int64], proba: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The event and its probability: the second of two classes, else "the prediction is right".

    Args:
        label: Shape (n,).
        proba: Shape (n, K).
    """
    if proba.shape[1] == 2:
        return label == 1, proba[:, 1]
    return proba.argmax(axis=1) == label, proba.max(axis=1)


def _squares(
    squares: Mapping[str, Sequence[_Curve]],
    names: tuple[str, str],
    marks: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] | None = None,
) -> Figure:
    """Panels of shares, with the names of the curves below, where nothing can cover them.

    Args:
        squares: Curves by title; at least one.
        names: Of both axes.
        marks: By title and rule, a point on each curve.
    """
    marks = marks or {}
    rows, columns = arrangement(len(squares))
    lines = max(len(curves) + len(marks.get(title, ())) for title, curves in squares.items())
    text = _LINE * lines + 0.05
    figure = new_figure(0.45 + rows * (_SIDE + text), 0.2 + 2.35 * max(columns, 2))
    # One panel alone stands left of an empty one: the title needs the width.
    cells = figure.add_gridspec(2 * rows, max(columns, 2), height_ratios=[_SIDE, text] * rows)
    for number, (title, curves) in enumerate(squares.items()):
        row, column = divmod(number, columns)
        axes = figure.add_subplot(cells[2 * row, column])
        below = figure.add_subplot(cells[2 * row + 1, column])
        _unit_square(axes, names[0], names[1] if column == 0 else "")
        axes.set_title(printable(title))
        below.set_axis_off()
        below.set(xlim=(0, 1), ylim=(lines, 0))
        for k, curve in enumerate(curves):
            look: dict[str, Any] = {"color": colour(k), "linestyle": dash(k)}
            axes.plot(curve.x, curve.y, linewidth=1.1, **look)
            below.plot([0.0, 0.09], [k + 0.5] * 2, linewidth=1.6, **look)
            _write(below, k + 0.5, printable(curve.text))
        _draw_marks(axes, below, marks.get(title, {}), len(curves) + 0.5)
    return figure


def _unit_square(axes: Axes, x: str, y: str) -> None:
    """Both axes from 0 to 1, equally long, with the diagonal."""
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=0.8, zorder=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_box_aspect(1)


def _draw_marks(
    axes: Axes, below: Axes, marks: Mapping[str, Sequence[tuple[float, float]]], first: float
) -> None:
    for height, (rule, points) in enumerate(marks.items()):
        for k, (x, y) in enumerate(points):
            axes.plot([x], [y], _RULES[rule], color=colour(k), markersize=5, mec="white", mew=0.6)
        below.plot([0.045], [first + height], _RULES[rule], color=INK, markersize=4.5)
        both = " → ".join(f"{y:.2f}/{1 - x:.2f}" for x, y in points)
        _write(below, first + height, f"{both}  {rule}")


def _write(below: Axes, height: float, text: str) -> None:
    # Out of the layout: a long name must not shrink the panel above it.
    below.text(0.12, height, text, color=INK, va="center", fontsize=SMALL).set_in_layout(False)


def heads_confusion(found: Results) -> Figure:
    """Counts of the best heads in each domain, shaded by the share of the true class."""
    best, tables, K = _best(found, _MATRICES), found.tables("heads"), len(found.classes)
    side = max(0.95, 0.28 * K)
    figure = new_figure(0.75 + side * len(tables), 1.6 + (side + 0.12) * max(len(best), 3))
    cells = figure.subplots(len(tables), len(best), squeeze=False)
    for row, table in zip(cells, tables, strict=True):
        for axes, head in zip(row, best, strict=True):
            scored = found.scored(head, table.about["domain"], table.about["role"])
            _matrix(axes, *scored, K)
        row[0].set_yticks(range(K), found.classes)
        row[0].set_ylabel(printable(table.title.split(":")[0]), fontweight="bold", fontsize=SMALL)
    for axes, head in zip(cells[0], best, strict=True):
        axes.set_title(printable(head), fontsize=SMALL, loc="center")
    for axes in cells[-1]:
        axes.set_xticks(range(K), found.classes, rotation=45, ha="right", rotation_mode="anchor")
    figure.suptitle("Images by true class (rows) and predicted class", x=0.01, ha="left")
    return figure


def _matrix(axes: Axes, label: NDArray[Any], proba: NDArray[Any], K: int) -> None:
    counts = confusion_matrix(label, proba.argmax(axis=1), labels=range(K))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY)
    for (i, j), count in np.ndenumerate(counts) if K <= _COUNTED else ():
        shade = "white" if shares[i, j] > 0.6 else INK
        axes.text(j, i, str(count), ha="center", va="center", color=shade, fontsize=6.5)
