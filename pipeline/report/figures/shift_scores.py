"""Figures of how features and scores differ between domains: nulls, map, densities, curves."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import gaussian_kde

from pipeline.report.figures.labels import Label, name_points
from pipeline.report.figures.shift_data import ShiftData, Side
from pipeline.report.figures.squares import (
    Mark,
    Square,
    event_of,
    foretold,
    reliability_of,
    roc_of,
    squares,
)
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    SMALL,
    VERMILION,
    WIDTH,
    NothingToDrawError,
    arrangement,
    new_figure,
)
from pipeline.shift.operating import Scores, choose_threshold

_BINARY = 2
_NULL_COLUMNS = 6
#: Probabilities nearer to 0 or 1 than this are drawn there.
_EDGE = 0.001
#: Rules of operating points, as they are named in a figure, with their markers.
_RULES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "youden": ("Youden", "o"),
        "specificity": ("spec ≥ 90 %", "s"),
        "sensitivity": ("sens ≥ 95 %", "^"),
    }
)


def nulls(data: ShiftData) -> Figure:
    """Each test's values under relabelled patients, and the value observed."""
    shown = [
        (t["target"], [row for row in t["detect"] if row.get("null") and "|" not in row["name"]])
        for t in data.having("detect", "shift.json has no tests", blind=True)
    ]
    shown = [(name, rows) for name, rows in shown if rows]
    if not shown:
        raise NothingToDrawError("shift.json keeps no values under relabelling")
    lines = [-(-len(rows) // _NULL_COLUMNS) for _, rows in shown]
    figure = new_figure(0.45 + sum(0.35 + 0.98 * n for n in lines))
    heights = [0.35 + n for n in lines]
    parts: Any = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (name, rows), count in zip(parts, shown, lines, strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=8.5, fontweight="normal")
        panels = list(part.subplots(count, _NULL_COLUMNS, squeeze=False).flat)
        for axes, row in zip(panels, rows, strict=False):
            _null_panel(axes, row)
        for axes in panels[len(rows) :]:
            axes.set_visible(False)
    figure.suptitle(
        "Tests of shift: observed (orange) against relabelled patients (grey)", x=0.01, ha="left"
    )
    return figure


def _null_panel(axes: Axes, row: Mapping[str, Any]) -> None:
    edges, counts = row["null"]["edges"], row["null"]["counts"]
    axes.stairs(counts, edges, fill=True, color="#A9A9A9")
    axes.axvline(row["statistic"], color=VERMILION, linewidth=1.4)
    name = row["name"].replace("_", " ").replace("sliced wasserstein", "sliced W.")
    weight = "bold" if row["primary"] else "normal"
    axes.set_title(f"{name}\np = {row['p']:.3g}", fontsize=6.5, fontweight=weight)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    low, high = min(edges[0], row["statistic"]), max(edges[-1], row["statistic"])
    decimals = max(0, 1 - int(np.floor(np.log10(high - low)))) if high > low else 2
    axes.set_xticks([low, high], [f"{x:.{decimals}f}" for x in (low, high)], fontsize=6)
    for text, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        text.set(horizontalalignment=side)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def feature_map(data: ShiftData) -> Figure:
    """Images on two principal components: colour by domain, shade and marker by class."""
    targets = data.having("map", "shift.json has no map")
    rows, columns = arrangement(len(targets))
    figure = new_figure(0.4 + 3.0 * rows, WIDTH if columns > 1 else 4.4)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(targets) :]:
        axes.set_visible(False)
    figure.suptitle("Features on two principal components", x=0.01, ha="left")
    named = []
    for axes, target in zip(panels, targets, strict=False):
        axes.set_title(target["target"])
        named.append((axes, _map_panel(axes, target["map"], data.classes)))
    for axes, labels in named:
        name_points(axes, labels)
    return figure


def _map_panel(axes: Axes, found: Mapping[str, Any], classes: tuple[str, ...]) -> list[Label]:
    x, y = np.array(found["x"]), np.array(found["y"])
    target, label = np.array(found["target"], bool), np.array(found["label"])
    labels = []
    for there, name, hue in ((False, "source", BLUE), (True, "target", VERMILION)):
        for k, of_class in enumerate(classes):
            rows = (target == there) & (label == k)
            if not rows.any():
                continue
            shade = _shade(hue, k, len(classes))
            axes.scatter(
                x[rows],
                y[rows],
                s=7,
                marker=MARKERS[k % len(MARKERS)],
                color=shade,
                alpha=0.65,
                linewidth=0,
                rasterized=True,
            )
            middle = float(np.median(x[rows])), float(np.median(y[rows]))
            axes.plot(
                *middle, MARKERS[k % len(MARKERS)], color=shade, markersize=8, mec=INK, mew=0.8
            )
            labels.append(Label(text=f"{name}: {of_class}", x=middle[0], y=middle[1], colour=hue))
    first, second = found["explained"]
    axes.set(xlabel=f"component 1 ({first:.0%})", ylabel=f"component 2 ({second:.0%})")
    axes.set_xticks([])
    axes.set_yticks([])
    return labels


def _shade(hue: str, k: int, classes: int) -> tuple[float, ...]:
    """From pale for the first class to full for the last."""
    strength = 0.45 + 0.55 * k / max(1, classes - 1)
    full = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return tuple(1 - strength * (1 - full))


def densities(data: ShiftData) -> Figure:
    """Densities of the score by class: the source upwards, the target downwards."""
    sides = data.sides()
    rows, columns = arrangement(len(sides))
    figure = new_figure(0.55 + 2.3 * rows, WIDTH if columns > 1 else 4.4)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(sides) :]:
        axes.set_visible(False)
    for axes, (name, here, there) in zip(panels, sides, strict=False):
        axes.set_title(name)
        _density_panel(axes, here, there, data.classes)
    figure.suptitle("Scores by class, source above and target below", x=0.01, ha="left")
    figure.supxlabel(f"{foretold(data.classes)}, logit scale", fontsize=8)
    return figure


def _density_panel(axes: Axes, here: Side, there: Side, classes: tuple[str, ...]) -> None:
    names = classes if len(classes) == _BINARY else ("called wrongly", "called rightly")
    at = np.linspace(logit(_EDGE), logit(1 - _EDGE), 301)
    for sign, side in ((1, here), (-1, there)):
        event, p = event_of(side.label, side.proba)
        score = logit(np.clip(p.astype(np.float64), _EDGE, 1 - _EDGE))
        for is_event, shade in ((False, BLUE), (True, VERMILION)):
            height = sign * _density(score[event == is_event], at) * np.mean(event == is_event)
            axes.fill_between(at, height, color=shade, alpha=0.3, linewidth=0)
            axes.plot(at, height, color=shade, linewidth=1.0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    largest = max(abs(limit) for limit in axes.get_ylim())
    axes.set_ylim(-1.25 * largest, 1.25 * largest)
    ticks = [0.001, 0.02, 0.5, 0.98, 0.999]
    axes.set_xticks([float(logit(t)) for t in ticks], [f"{t:g}" for t in ticks])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for text, place, align in (("source", 0.97, "top"), ("target", 0.03, "bottom")):
        axes.text(0.5, place, text, transform=axes.transAxes, va=align, ha="center", fontsize=SMALL)
    for text, place, align, shade in (
        (names[0], 0.01, "left", BLUE),
        (names[1], 0.99, "right", VERMILION),
    ):
        axes.text(
            place, 0.97, text, transform=axes.transAxes, va="top", ha=align, color=shade,
            fontsize=SMALL,
        )  # fmt: skip


def _density(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian kernel density; zero where there are too few or equal values for one."""
    if len(values) < 3 or np.ptp(values) == 0:
        return np.zeros_like(at)
    return np.asarray(gaussian_kde(values)(at), np.float64)


def reliability(data: ShiftData) -> Figure:
    """CORP reliability on the source, out of fold, and on each target."""
    panels = [
        Square(
            title=name,
            curves=tuple(
                reliability_of(*event_of(side.label, side.proba), title)
                for title, side in (("source, out of fold", here), (name, there))
            ),
        )
        for name, here, there in data.sides()
    ]
    figure = squares(panels, (f"foretold {foretold(data.classes)}", "observed, isotonic fit"))
    figure.suptitle("Reliability (CORP), with miscalibration", x=0.01, ha="left")
    return figure


def roc(data: ShiftData) -> Figure:
    """ROC on both domains, with thresholds chosen on the source at work on each."""
    if len(data.classes) != _BINARY:
        raise NothingToDrawError("operating points need two classes")
    panels = [
        Square(
            title=name,
            curves=(
                roc_of(here.label == 1, here.proba[:, 1], "source, out of fold"),
                roc_of(there.label == 1, there.proba[:, 1], name),
            ),
            marks=_carried(here, there),
        )
        for name, here, there in data.sides()
    ]
    figure = squares(panels, ("1 - specificity", "sensitivity"))
    figure.suptitle("ROC, with thresholds of the source carried over", x=0.01, ha="left")
    figure.supxlabel("marks: sensitivity/specificity, source → target", fontsize=7)
    return figure


def _carried(here: Side, there: Side) -> tuple[Mark, ...]:
    source = Scores(probability=here.proba[:, 1], positive=here.label == 1, groups=here.patient)
    marks = []
    for rule, (name, marker) in _RULES.items():
        threshold = choose_threshold(rule, source)
        points = tuple(_at(side, threshold) for side in (here, there))
        (x0, y0), (x1, y1) = points
        text = f"{y0:.2f}/{1 - x0:.2f} → {y1:.2f}/{1 - x1:.2f}  {name}"
        marks.append(Mark(points=points, marker=marker, text=text))
    return tuple(marks)


def _at(side: Side, threshold: float) -> tuple[float, float]:
    """(1 - specificity, sensitivity); not a number where a class is absent."""
    called, ill = side.proba[:, 1] >= threshold, side.label == 1
    return tuple(float(called[of].mean()) if of.any() else float("nan") for of in (~ill, ill))  # type: ignore[return-value]
