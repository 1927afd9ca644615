"""Forest plots: heads, methods, effects, subgroups, and the page's first figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    SMALL,
    colour,
    grid,
    new_figure,
    panels,
    shortened,
)
from pipeline.report.shift import METRICS
from pipeline.report.table import Table
from pipeline.words import printable

#: (estimate, low, high); bounds may be None.
_Interval = tuple[float, Any, Any]
#: Value and style of each row, by its name.
_Rows = Mapping[str, tuple[_Interval, Mapping[str, Any]]]


def heads(results: Results) -> Figure:
    """Points of accuracy that each head gains over the baseline, in each domain."""
    return _differences(results, "heads", "head", results.record["baseline"])


def finetune(results: Results) -> Figure:
    """Points of accuracy that each method gains over the head on frozen features."""
    return _differences(results, "finetune", "method", "lp")


def _differences(results: Results, key: str, column: str, baseline: str) -> Figure:
    """Differences from the baseline; without ``prior``, whose large one would hide the others."""
    of_panel: dict[str, _Rows] = {}
    for table in results.tables(key):
        names = table.values(column)
        accuracy = dict(zip(names, table.values("accuracy"), strict=True)).get(baseline)
        points = zip(names, table.values("points"), strict=True)
        level = f", {baseline} {100 * accuracy[0]:.1f} %" if accuracy else ""
        of_panel[table.title.split(":")[0] + level] = {
            name: (value, {}) for name, value in points if value and name != "prior"
        }
    return _gains(of_panel, f"Accuracy against {baseline}")


def adaptation(results: Results) -> Figure:
    """Points of accuracy that adaptation and target labels gain over the unadapted head."""
    of_panel: dict[str, _Rows] = {}
    with_labels = {"color": ORANGE, "marker": "s"}
    for table in results.tables("shift_adaptation"):
        title = f"{table.about['target']}, from {100 * table.values('accuracy')[0]:.1f} %"
        of_panel[title] = {
            method.replace("_", " "): (gain, with_labels if labels else {})
            for method, labels, _, _, gain, _ in table.rows
            if gain
        }
    return _gains(of_panel, "What adaptation gains a linear head")


def aurocs(series: Mapping[str, Mapping[str, _Interval]]) -> Figure:
    """AUROC of each finding by domain, with a line at chance: first figure of the index page."""
    of_panel: dict[str, _Rows] = {
        domain: {finding: (value, {}) for finding, value in values.items()}
        for domain, values in series.items()
    }
    figure = _gains(of_panel, "AUROC by finding", "AUROC", line=0.5, scale=1)
    of_domains = figure.axes[: len(series)]
    left, right = zip(*(axes.get_xlim() for axes in of_domains), strict=True)
    for axes in of_domains:  # side by side they are compared
        axes.set_xlim(min(left), max(right))
    return figure


def _gains(
    of_panel: Mapping[str, _Rows],
    title: str,
    measure: str = "points of accuracy gained",
    *,
    line: float = 0,
    scale: float = 100,
) -> Figure:
    """A panel for each domain, a row for each name, and a line at no difference."""
    names = list(dict.fromkeys(name for rows in of_panel.values() for name in rows))
    if not names:
        raise NothingToDrawError("nothing is compared")
    height = 0.45 + 0.2 * len(names)
    figure, cells = panels(len(of_panel), height=height, extra=0.7, sharey=True)
    for axes, (panel, rows) in zip(cells, of_panel.items(), strict=True):
        axes.axvline(line, color=GREY, linewidth=0.8)
        heights = _heights(names)
        for name, (value, look) in rows.items():
            _draw_intervals(axes, [(heights[name], _in_percent(value, scale))], **look)
        _name_rows(axes, names)
        axes.set_title(printable(panel))
    figure.suptitle(printable(title), x=0.01, ha="left")
    figure.supxlabel(f"{measure}, with 95 % interval", fontsize=8)
    return figure


def effects(results: Results) -> Figure:
    """Points of accuracy lost by each effect; those of one colour add up to the loss."""
    tables = results.tables("shift_effects")
    rows_of = [[row[:3] for row in t.rows if row[0] != "AUROC" and row[2]] for t in tables]
    decompositions = list(dict.fromkeys(row[0] for rows in rows_of for row in rows))
    names = list(dict.fromkeys(row[1] for rows in rows_of for row in rows))
    figure, cells = panels(len(tables), height=0.5 + 0.24 * len(names), extra=0.6, sharey=True)
    for axes, table, rows in zip(cells, tables, rows_of, strict=True):
        for decomposition, name, shares in rows:
            k, at = decompositions.index(decomposition), _heights(names)[name]
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
        _name_rows(axes, names)
        axes.set_title(printable(table.about["target"]))
        axes.margins(x=0.16)
        axes.axvline(0, color=GREY, linewidth=0.6)
        loss = 100 * rows[0][2][0]
        axes.axvline(loss, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
        grid(axes)
    heads = (t["head"] for t in results.record["targets"] if t["backbone"] == results.backbone)
    figure.suptitle(f"Why accuracy of {printable(next(heads))} is lost", x=0.01, ha="left")
    figure.supxlabel("points of accuracy lost, with 95 % intervals", fontsize=8)
    return figure


def subgroups(results: Results) -> Figure:
    """A panel for each metric and a row for each group; a tick is the value on the source."""
    tables = results.tables("shift_subgroups")
    metrics = [m for m in METRICS.values() if any(any(t.values(m)) for t in tables)]
    if not metrics:
        raise NothingToDrawError("no subgroup is large enough to have numbers")
    targets = list(dict.fromkeys(table.about["target"] for table in tables))
    names = list(dict.fromkeys(name for table in tables for name in _groups(table)))
    size = 1.0 + (0.13 * len(targets) + 0.1) * len(names), 1.9 + 1.5 * len(metrics)
    figure = new_figure(*size)
    cells = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(cells, metrics, strict=True):
        for table in tables:
            number = targets.index(table.about["target"])
            heights = _heights(names, number, len(targets))
            at = [heights[name] for name in _groups(table)]
            rows = [row for row in zip(at, table.values(metric), strict=True) if row[1]]
            _draw_intervals(axes, rows, **_line_style(number))
            axes.plot(table.values(f"{metric}, source"), at, "|", color=GREY, markersize=7)
        axes.set_title(metric)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    _name_rows(cells[0], [shortened(name) for name in names])
    for number, target in enumerate(targets):
        cells[0].plot([], [], label=printable(target), **_line_style(number))
    cells[0].plot([], [], "|", color=GREY, label="source")
    figure.legend(loc="outside upper right", ncols=len(targets) + 1, frameon=False)
    figure.suptitle("Subgroups", x=0.01, ha="left")
    figure.supxlabel("95 % intervals by patient, for all groups at once", fontsize=SMALL)
    return figure


def _groups(table: Table) -> list[str]:
    return [f"{table.about['attribute']}: {name}" for name in table.values("group")]


def summary(series: Mapping[str, Mapping[str, _Interval]]) -> Figure:
    """Accuracy by domain, with a colour and a marker for each model: the page's first figure.

    Args:
        series: Accuracy by domain for each model, by name; the first model has every domain.
    """
    domains = list(next(iter(series.values())))
    # Narrow, so that it can be read on a phone.
    figure = new_figure(0.65 + len(domains) * (0.2 + 0.16 * len(series)), 4.2)
    axes = figure.subplots()
    for number, (name, values) in enumerate(series.items()):
        heights = _heights(domains, number, len(series))
        rows = [(heights[domain], _in_percent(value)) for domain, value in values.items()]
        _draw_intervals(axes, rows, **_line_style(number))
        axes.plot([], [], label=printable(name), **_line_style(number))
        for height, (value, *_) in rows:
            transform = axes.get_yaxis_transform()
            axes.text(1.01, height, f"{value:.1f}", transform=transform, va="center")
    _name_rows(axes, domains)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.set_ylim(-0.5, len(domains) - 0.5)
    axes.set_xlabel("accuracy in %, with 95 % interval")
    ncols = 1 if max(map(len, series)) > 24 else 3
    figure.legend(loc="outside upper left", ncols=ncols, frameon=False, fontsize=8)
    return figure


def _line_style(number: int) -> dict[str, Any]:
    return {"color": colour(number), "marker": MARKERS[number % len(MARKERS)]}


def _heights(names: Sequence[str], number: int = 0, series: int = 1) -> dict[str, float]:
    """The heights of the rows of one of several series, the first name on top."""
    top = len(names) - 1 + 0.7 * ((series - 1) / 2 - number) / series
    return {name: top - k for k, name in enumerate(names)}


def _in_percent(interval: _Interval, scale: float = 100) -> _Interval:
    low, high = (None if bound is None else scale * bound for bound in interval[1:])
    return scale * interval[0], low, high


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names))[::-1], [printable(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)


def _draw_intervals(
    axes: Axes, rows: Sequence[tuple[float, Any]], *, color: str = BLUE, marker: str = "o"
) -> None:
    """A point and its interval at each height, above a pale grid."""
    for height, (value, low, high) in rows:
        if low is not None and high is not None:
            axes.plot([low, high], [height, height], color=color, linewidth=1.2)
        axes.plot([value], [height], marker, color=color, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    grid(axes)
