"""Values with their intervals, one row each: heads, methods, and the figure of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    MARKERS,
    colour,
    grid,
    new_figure,
    panels,
)
from pipeline.words import printable

#: (estimate, low, high); bounds may be None.
Interval = tuple[float, Any, Any]
#: Value and look of a row by its name.
Rows = Mapping[str, tuple[Interval, Mapping[str, Any]]]


def heads(results: Results) -> Figure:
    """Points of accuracy that each head gains over the baseline, in each domain."""
    return _against(results, "heads", "head", results.record["baseline"])


def finetune(results: Results) -> Figure:
    """The same of methods, against the head on frozen features."""
    return _against(results, "finetune", "method", "lp")


def _against(results: Results, key: str, column: str, baseline: str) -> Figure:
    """Without the head that knows class frequencies alone: it would press the others flat."""
    of_panel: dict[str, Rows] = {}
    for table in results.tables(key):
        names = table.values(column)
        accuracy = dict(zip(names, table.values("accuracy"), strict=True)).get(baseline)
        points = zip(names, table.values("points"), strict=True)
        level = f", {baseline} {100 * accuracy[0]:.1f} %" if accuracy else ""
        of_panel[table.title.split(":")[0] + level] = {
            name: (value, {}) for name, value in points if value and name != "prior"
        }
    return gains(of_panel, f"Accuracy against {baseline}")


def aurocs(series: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """AUROC of each finding by domain, a line at chance: the figure of the page over findings."""
    of_panel: dict[str, Rows] = {
        domain: {finding: (value, {}) for finding, value in values.items()}
        for domain, values in series.items()
    }
    figure = gains(of_panel, "AUROC by finding", "AUROC", line=0.5, scale=1)
    of_domains = figure.axes[: len(series)]
    left, right = zip(*(axes.get_xlim() for axes in of_domains), strict=True)
    for axes in of_domains:  # side by side they are compared
        axes.set_xlim(min(left), max(right))
    return figure


def gains(
    of_panel: Mapping[str, Rows],
    title: str,
    measure: str = "points of accuracy gained",
    *,
    line: float = 0,
    scale: float = 100,
) -> Figure:
    """A panel for each domain, a row for each name, around a line.

    Args:
        of_panel: Shares of images by title of the panel and name of the row.
        title: Of the figure.
        measure: What the axis shows.
        line: Where the measure says that there is nothing.
        scale: By which shares are multiplied.
    """
    names = list(dict.fromkeys(name for rows in of_panel.values() for name in rows))
    if not names:
        raise NothingToDrawError("nothing is compared")
    height = 0.45 + 0.2 * len(names)
    figure, cells = panels(len(of_panel), height=height, extra=0.7, sharey=True)
    for axes, (panel, rows) in zip(cells, of_panel.items(), strict=True):
        axes.axvline(line, color=GREY, linewidth=0.8)
        for name, (value, look) in rows.items():
            at = float(len(names) - 1 - names.index(name))
            draw_intervals(axes, [(at, _percent(value, scale))], **look)
        name_rows(axes, names)
        axes.set_title(printable(panel))
    figure.suptitle(printable(title), x=0.01, ha="left")
    figure.supxlabel(f"{measure}, with 95 % interval", fontsize=8)
    return figure


def _percent(interval: Interval, scale: float = 100) -> Interval:
    low, high = (None if bound is None else scale * bound for bound in interval[1:])
    return scale * interval[0], low, high


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write names from above at the heights n - 1 to 0."""
    axes.set_yticks(range(len(names))[::-1], [printable(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)


def draw_intervals(
    axes: Axes,
    rows: Sequence[tuple[float, Any]],
    *,
    shade: str = BLUE,
    marker: str = "o",
) -> None:
    """A point and its interval, whose bounds may be None, at each height, above a pale grid."""
    for height, (value, low, high) in rows:
        if low is not None and high is not None:
            axes.plot([low, high], [height, height], color=shade, linewidth=1.2)
        axes.plot([value], [height], marker, color=shade, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    grid(axes)


def summary(series: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Accuracy by domain, a colour and a marker for each model: the figure of the page.

    Args:
        series: By name of the model, its accuracy by domain; of the first in every domain.
    """
    domains = list(next(iter(series.values())))
    # Narrow, so that it can be read on a phone.
    figure = new_figure(0.65 + len(domains) * (0.2 + 0.16 * len(series)), 4.2)
    axes = figure.subplots()
    for number, (name, values) in enumerate(series.items()):
        shift = 0.7 * ((len(series) - 1) / 2 - number) / len(series)
        look = {"shade": colour(number), "marker": MARKERS[number % len(MARKERS)]}
        shown = [
            (len(domains) - 1 - domains.index(d) + shift, _percent(v)) for d, v in values.items()
        ]
        draw_intervals(axes, shown, **look)
        axes.plot([], [], color=look["shade"], marker=look["marker"], label=printable(name))
        for height, (value, *_) in shown:
            place = axes.get_yaxis_transform()
            axes.text(1.01, height, f"{value:.1f}", transform=place, va="center")
    name_rows(axes, domains)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.set_ylim(-0.5, len(domains) - 0.5)
    axes.set_xlabel("accuracy in %, with 95 % interval")
    ncols = 1 if max(map(len, series)) > 24 else 3
    figure.legend(loc="outside upper left", ncols=ncols, frameon=False, fontsize=8)
    return figure
