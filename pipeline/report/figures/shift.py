"""Figures of the shift: effects, adaptation, features, subgroups."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.forest import draw_intervals, gains, name_rows
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    SMALL,
    VERMILION,
    colour,
    grid,
    legend_below,
    new_figure,
    panels,
    shortened,
)
from pipeline.report.shift import METRICS
from pipeline.report.table import Table
from pipeline.words import printable


def effects(results: Results) -> Figure:
    """Points of accuracy lost by each effect; those of one colour add up to the loss."""
    tables = results.tables("shift_effects")
    rows_of = [[row[:3] for row in t.rows if row[0] != "AUROC" and row[2]] for t in tables]
    divisions = list(dict.fromkeys(row[0] for rows in rows_of for row in rows))
    names = list(dict.fromkeys(row[1] for rows in rows_of for row in rows))
    figure, cells = panels(len(tables), height=0.5 + 0.24 * len(names), extra=0.6, sharey=True)
    for axes, table, rows in zip(cells, tables, rows_of, strict=True):
        for division, name, shares in rows:
            k, at = divisions.index(division), len(names) - 1 - names.index(name)
            points, *ends = (100 * share for share in shares if share is not None)
            axes.barh(at, points, height=0.62, color=colour(k - 1) if k else GREY)
            axes.plot(ends, [at] * len(ends), color=INK, linewidth=0.9)
            axes.annotate(
                f"{points:+.1f}" if k else f"{points:.1f}",
                (max(0.0, points, *ends), at),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
            )
        name_rows(axes, names)
        axes.set_title(printable(table.about["target"]))
        axes.margins(x=0.16)
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.axvline(
            100 * rows[0][2][0], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=0
        )
        grid(axes)
    heads = (t["head"] for t in results.record["targets"] if t["backbone"] == results.backbone)
    figure.suptitle(f"Why accuracy of {printable(next(heads))} is lost", x=0.01, ha="left")
    figure.supxlabel("points of accuracy lost, with 95 % intervals", fontsize=8)
    return figure


def adaptation(results: Results) -> Figure:
    """Points of accuracy that methods and labels of the target gain over the unadapted head."""
    of_panel = {}
    with_labels = {"shade": ORANGE, "marker": "s"}
    for table in results.tables("shift_adaptation"):
        title = f"{table.about['target']}, from {100 * table.values('accuracy')[0]:.1f} %"
        of_panel[title] = {
            method.replace("_", " "): (gain, with_labels if labels else {})
            for method, labels, _, _, gain, _ in table.rows
            if gain
        }
    return gains(of_panel, "What adaptation gains a linear head (orange: with target labels)")


def feature_map(results: Results) -> Figure:
    """Images on two principal components: colour by domain, shade and marker by class."""
    with h5py.File(BytesIO(results.file)) as file:
        curves = file[results.backbone].get("curves", {})
        maps = {
            table.about["target"]: {name: curves[path][name][()] for name in curves[path]}
            for table in results.tables("shift_effects")
            if "embedding" in curves.get(path := table.about["target"], ())
        }
    if not maps:
        raise NothingToDrawError("no map of the features is stored")
    figure, cells = panels(len(maps), height=3.2)
    for axes, (target, arrays) in zip(cells, maps.items(), strict=True):
        axes.set_title(printable(target))
        _draw_map(axes, arrays, results.classes)
    figure.suptitle("Features on two principal components", x=0.01, ha="left")
    return figure


def _draw_map(axes: Axes, arrays: Mapping[str, Any], classes: Sequence[str]) -> None:
    x, y = arrays["embedding"].T
    in_target, label = arrays["embedding_target"].astype(bool), arrays["embedding_label"]
    for is_target, domain, hue in ((False, "source", BLUE), (True, "target", VERMILION)):
        for k, name in enumerate(classes):
            rows = (in_target == is_target) & (label == k)
            look: dict[str, Any] = {"color": _pale(hue, k, len(classes)), "markersize": 2.4}
            marker = MARKERS[k % len(MARKERS)]
            axes.plot(x[rows], y[rows], marker, alpha=0.7, mew=0, label=f"{domain}, {name}", **look)
    axes.set(xlabel="component 1", ylabel="component 2", xticks=[], yticks=[])
    legend_below(axes, gap=0.12, ncols=2, markerscale=2.0)


def _pale(hue: str, k: int, classes: int) -> tuple[float, ...]:
    """From pale for the first class to full for the last."""
    strength = 0.45 + 0.55 * k / max(1, classes - 1)
    full = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return tuple(1 - strength * (1 - full))


def subgroups(results: Results) -> Figure:
    """A panel for each metric, a row for each group: the target, and as a tick the source."""
    tables = results.tables("shift_subgroups")
    metrics = [m for m in METRICS.values() if any(any(t.values(m)) for t in tables)]
    if not metrics:
        raise NothingToDrawError("no subgroup is large enough to have numbers")
    targets = list(dict.fromkeys(table.about["target"] for table in tables))
    names = list(dict.fromkeys(name for table in tables for name in _groups(table)))
    spread = 0.13 * len(targets) + 0.1
    figure = new_figure(1.0 + spread * len(names), 1.9 + 1.5 * len(metrics))
    cells = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(cells, metrics, strict=True):
        for table in tables:
            k = targets.index(table.about["target"])
            top = len(names) - 1 + (0.13 / spread) * ((len(targets) - 1) / 2 - k)
            heights = [top - names.index(name) for name in _groups(table)]
            rows = [row for row in zip(heights, table.values(metric), strict=True) if row[1]]
            draw_intervals(axes, rows, shade=colour(k), marker=MARKERS[k % len(MARKERS)])
            source = table.values(f"{metric}, source")
            axes.plot(source, heights, "|", color=GREY, markersize=7)
        axes.set_title(metric)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    name_rows(cells[0], [shortened(name) for name in names])
    _legend_of_targets(figure, targets)
    figure.suptitle("Subgroups", x=0.01, ha="left")
    figure.supxlabel("95 % intervals by patient, for all groups at once", fontsize=SMALL)
    return figure


def _groups(table: Table) -> list[str]:
    return [f"{table.about['attribute']}: {name}" for name in table.values("group")]


def _legend_of_targets(figure: Figure, targets: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=colour(k), marker=MARKERS[k % len(MARKERS)], label=printable(target))
        for k, target in enumerate(targets)
    ]
    handles.append(Line2D([], [], color=GREY, marker="|", linestyle="", label="source"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
