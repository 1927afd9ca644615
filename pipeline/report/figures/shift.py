"""Figures of the shift: errors and effects, scores, features, adaptation, subgroups."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import gaussian_kde

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.forest import draw_intervals
from pipeline.report.figures.roc import event_of
from pipeline.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PURPLE,
    SMALL,
    VERMILION,
    colour,
    grid,
    new_figure,
    panels,
)
from pipeline.report.shift import ERRORS, METRICS, STEPS
from pipeline.report.table import Table
from pipeline.words import printable

_ROW = 0.24
#: Probabilities nearer to 0 or 1 than this are drawn there.
_EDGE = 0.001
Interval = tuple[float, Any, Any]


def error_table(found: Results) -> Figure:
    """Ng's table as steps from the error on training images to that on the target."""
    tables = found.tables("shift_errors")
    names = list(dict.fromkeys(name for table in tables for name in _order(table)))
    height = 0.5 + len(names) * _ROW
    figure, cells = panels(len(tables), height=height, extra=0.6, sharey=True)
    for axes, table in zip(cells, tables, strict=True):
        _draw_errors(axes, table, names)
        axes.set_title(printable(table.about["target"]))
    figure.suptitle("Errors and the steps between them", x=0.01, ha="left")
    figure.supxlabel("error, % of images, with 95 % intervals", fontsize=8)
    return figure


#: Each error with the step that leads from it to the next; the last two divide "mismatch".
_CHAIN = (
    ("human", "avoidable_bias"),
    ("source_training", "variance"),
    ("source_new_patients", "mismatch"),
    ("target", None),
)
_TRANSFER = ("target_hardness", "transfer_gap")


def _order(table: Table) -> list[str]:
    """Names of the lines from above, of those that the table has."""
    chain = [words for e, s in _CHAIN for words in (ERRORS[e], STEPS[s] if s else "")]
    known = set(table.values("of"))
    return [name for name in (*chain, *(STEPS[s] for s in _TRANSFER)) if name in known]


def _draw_errors(axes: Axes, table: Table, names: Sequence[str]) -> None:
    rows = {row["of"]: row for row in (dict(zip(table.names, r, strict=True)) for r in table.rows)}
    heights = {name: float(len(names) - 1 - k) for k, name in enumerate(names)}
    level = 0.0
    for name in _order(table):
        value: Interval = rows[name]["% of images"]
        if rows[name]["kind"] == "error":
            level = value[0]
            _draw_bar(axes, heights[name], 0.0, value, GREY)
        else:
            transfer = name in (STEPS[s] for s in _TRANSFER)
            if name == STEPS["target_hardness"]:
                level = rows[ERRORS["source_new_patients"]]["% of images"][0]
            shade = PURPLE if transfer else VERMILION if value[0] >= 0 else GREEN
            _draw_bar(axes, heights[name], level, value, shade)
            level += value[0] if transfer else 0.0
    axes.set_yticks(list(heights.values()), names)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.axvline(0, color=GREY, linewidth=0.6)
    grid(axes)


def _draw_bar(
    axes: Axes,
    height: float,
    start: float,
    value: Interval,
    shade: str,
) -> None:
    """An error from 0, or a step from one error to the next, in percent."""
    width = 100 * value[0]
    ends = [100 * start, 100 * start + width]
    axes.barh(height, width, left=100 * start, height=0.62, color=shade)
    is_step = shade != GREY
    offset = 100 * start if is_step else 0.0
    if value[1] is not None:
        bounds = [offset + 100 * bound for bound in value[1:]]
        axes.plot(bounds, [height] * 2, color=INK, linewidth=0.9)
        ends += bounds
    _write_right(axes, max(ends), height, f"{width:+.1f}" if is_step else f"{width:.1f}")


def _write_right(axes: Axes, x: float, height: float, text: str) -> None:
    axes.annotate(
        text,
        (x, height),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
    )


def effects(found: Results) -> Figure:
    """Points of accuracy lost by each effect; those of one colour add up to the loss."""
    tables = found.tables("shift_effects")
    divisions = {name: d for t in tables for d, name, *_ in t.rows if d != "AUROC"}
    names = list(divisions)
    shades = [colour(k - 1) if k else GREY for k in range(len(names))]
    shade_of = dict(zip(dict.fromkeys(divisions.values()), shades, strict=False))
    height = 0.5 + len(names) * _ROW
    figure, cells = panels(len(tables), height=height, extra=0.6, sharey=True)
    for axes, table in zip(cells, tables, strict=True):
        values = dict(zip(table.values("effect"), table.values("points lost"), strict=True))
        total = 100 * values[names[0]][0]
        axes.axvline(total, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
        for at, name in zip(range(len(names))[::-1], names, strict=True):
            if value := values.get(name):
                points = [100 * v for v in value]
                axes.barh(at, points[0], height=0.62, color=shade_of[divisions[name]])
                axes.plot(points[1:], [at, at], color=INK, linewidth=0.9)
                _write_right(axes, max(0.0, *points), at, f"{points[0]:+.1f}")
        axes.set_yticks(range(len(names))[::-1], names)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.16)
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.set_title(printable(table.about["target"]))
        grid(axes)
    figure.suptitle("Why accuracy is lost", x=0.01, ha="left")
    figure.supxlabel("points of accuracy lost, with 95 % intervals", fontsize=8)
    return figure


def scores(found: Results) -> Figure:
    """Densities of the score by class: the source upwards, the target downwards."""
    targets = [table.about["target"] for table in found.tables("shift_effects")]
    figure, cells = panels(len(targets), height=2.3)
    binary = len(found.classes) == 2
    names = found.classes if binary else ["wrong", "right"]
    for axes, target in zip(cells, targets, strict=True):
        axes.set_title(printable(target))
        for sign, domain in ((1, "source"), (-1, target)):
            _draw_densities(axes, sign, *event_of(*found.scored(None, domain)))
        _finish_densities(axes, names)
    what = f"P({found.classes[1]})" if binary else "P(most probable class)"
    figure.suptitle("Scores by class, source above and target below", x=0.01, ha="left")
    figure.supxlabel(f"{what}, logit scale", fontsize=8)
    return figure


def _draw_densities(
    axes: Axes, sign: int, event: NDArray[np.bool_], p: NDArray[np.float64]
) -> None:
    at = np.linspace(logit(_EDGE), logit(1 - _EDGE), 301)
    score = logit(np.clip(p.astype(np.float64), _EDGE, 1 - _EDGE))
    for is_event, shade in ((False, BLUE), (True, VERMILION)):
        values = score[event == is_event]
        if len(values) < 3 or np.ptp(values) == 0:
            continue  # too few, or equal values, have no density
        height = sign * np.asarray(gaussian_kde(values)(at)) * np.mean(event == is_event)
        axes.fill_between(at, height, color=shade, alpha=0.3, linewidth=0)
        axes.plot(at, height, color=shade, linewidth=1.0)


def _finish_densities(axes: Axes, names: Sequence[str]) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    largest = max(abs(limit) for limit in axes.get_ylim())
    axes.set_ylim(-1.25 * largest, 1.25 * largest)
    ticks = [0.001, 0.02, 0.5, 0.98, 0.999]
    axes.set_xticks([float(logit(t)) for t in ticks], [f"{t:g}" for t in ticks])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    look: dict[str, Any] = {"transform": axes.transAxes, "fontsize": SMALL}
    axes.text(0.5, 0.97, "source", va="top", ha="center", **look)
    axes.text(0.5, 0.03, "target", va="bottom", ha="center", **look)
    axes.text(0.01, 0.97, names[0], va="top", ha="left", color=BLUE, **look)
    axes.text(0.99, 0.97, names[1], va="top", ha="right", color=VERMILION, **look)


def feature_map(found: Results) -> Figure:
    """Images on two principal components: colour by domain, shade and marker by class."""
    targets = [table.about["target"] for table in found.tables("shift_effects")]
    with h5py.File(BytesIO(found.file)) as file:
        curves = file[found.backbone].get("curves", {})
        maps = {
            name: {key: values[()] for key, values in curves[name].items()}
            for name in targets
            if "embedding" in curves.get(name, ())
        }
    if not maps:
        raise NothingToDrawError("no map of the features is stored")
    figure, cells = panels(len(maps), height=3.2)
    for axes, (target, one) in zip(cells, maps.items(), strict=True):
        axes.set_title(printable(target))
        _draw_map(axes, one, found.classes)
    figure.suptitle("Features on two principal components", x=0.01, ha="left")
    return figure


def _draw_map(axes: Axes, one: Mapping[str, NDArray[Any]], classes: Sequence[str]) -> None:
    x, y = one["embedding"].T
    in_target, label = one["embedding_target"].astype(bool), one["embedding_label"]
    for is_target, domain, hue in ((False, "source", BLUE), (True, "target", VERMILION)):
        for k, name in enumerate(classes):
            rows = (in_target == is_target) & (label == k)
            axes.plot(
                x[rows],
                y[rows],
                MARKERS[k % len(MARKERS)],
                color=_pale(hue, k, len(classes)),
                markersize=2.4,
                alpha=0.7,
                mew=0,
                label=f"{domain}, {name}",
            )
    axes.set(xlabel="component 1", ylabel="component 2")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=2,
        frameon=False,
        markerscale=2.0,
        fontsize=SMALL,
    )


def _pale(hue: str, k: int, classes: int) -> tuple[float, ...]:
    """From pale for the first class to full for the last."""
    strength = 0.45 + 0.55 * k / max(1, classes - 1)
    full = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return tuple(1 - strength * (1 - full))


def adaptation(found: Results) -> Figure:
    """Points of accuracy that methods and labels of the target gain over the unadapted head."""
    tables = found.tables("shift_adaptation")
    curves = [t for t in found.tables("shift_label_curve", "shift_adaptation") if t not in tables]
    gains: list[dict[str, tuple[bool, list[float]]]] = []
    for table in tables:
        labels = [row for curve in curves if curve.about == table.about for row in curve.rows]
        methods = [row for row in table.rows if not (row[1] and labels)]
        rows = [row for row in (*methods, *labels) if row[4]]
        gains.append({row[0]: (row[1], [100 * bound for bound in row[4]]) for row in rows})
    names = list(dict.fromkeys(name for of_target in gains for name in of_target))
    figure, cells = panels(len(tables), height=0.45 + 0.2 * len(names), extra=0.65, sharey=True)
    for axes, table, of_target in zip(cells, tables, gains, strict=True):
        for at, name in zip(range(len(names))[::-1], names, strict=True):
            if name in of_target:
                used, (gain, low, high) = of_target[name]
                look = {"shade": ORANGE, "marker": "s"} if used else {"shade": BLUE}
                draw_intervals(axes, [(at, (gain, low, high))], **look)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_yticks(range(len(names))[::-1], [n.replace("_", " ") for n in names])
        accuracy = table.values("accuracy")[0]
        axes.set_title(f"{printable(table.about['target'])}, from {100 * accuracy:.1f} %")
    figure.suptitle("What adaptation gains (orange: with target labels)", x=0.01, ha="left")
    figure.supxlabel("points of accuracy gained, with 95 % interval", fontsize=8)
    return figure


def subgroups(found: Results) -> Figure:
    """A panel for each metric, a row for each group: the target, and pale the source."""
    tables = found.tables("shift_subgroups")
    metrics = [m for m in METRICS.values() if any(any(t.values(m)) for t in tables)]
    if not metrics:
        raise NothingToDrawError("no subgroup is large enough to have numbers")
    targets = list(dict.fromkeys(table.about["target"] for table in tables))
    rows = list(
        dict.fromkeys((t.about["attribute"], name) for t in tables for name in t.values("group"))
    )
    spread = 0.13 * len(targets) + 0.1
    figure = new_figure(1.0 + spread * len(rows), 1.9 + 1.5 * len(metrics))
    cells = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(cells, metrics, strict=True):
        for table in tables:
            k = targets.index(table.about["target"])
            offset = len(rows) - 1 + (0.13 / spread) * ((len(targets) - 1) / 2 - k)
            names = [(table.about["attribute"], name) for name in table.values("group")]
            heights = [offset - rows.index(name) for name in names]
            values = zip(heights, table.values(metric), strict=True)
            places = [(height, value) for height, value in values if value]
            draw_intervals(axes, places, shade=colour(k), marker=MARKERS[k % len(MARKERS)])
            source = table.values(f"{metric}, source")
            axes.plot(source, heights, "|", color=GREY, markersize=7)
        axes.set_title(metric)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    cells[0].set_yticks(range(len(rows))[::-1], [_short(f"{a}: {name}") for a, name in rows])
    cells[0].set_ylim(-0.6, len(rows) - 0.4)
    handles = [
        Line2D([], [], color=colour(k), marker=MARKERS[k % len(MARKERS)], label=printable(target))
        for k, target in enumerate(targets)
    ]
    figure.legend(
        handles=[*handles, Line2D([], [], color=GREY, marker="|", linestyle="", label="source")],
        title="Subgroups",
        title_fontproperties={"weight": "bold", "size": 9.5},
        alignment="left",
        loc="outside upper left",
        ncols=len(targets) + 1,
        frameon=False,
        labelcolor="linecolor",
        fontsize=8,
    )
    figure.supxlabel(
        "95 % intervals by patient, for all groups at once; no mark: too few images", fontsize=SMALL
    )
    return figure


def _short(name: str) -> str:
    """Both ends of a long name."""
    text = printable(name)
    return text if len(text) <= 40 else f"{text[:20].rstrip()} … {text[-18:].lstrip()}"
