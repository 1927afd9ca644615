"""Values with their intervals, one row each: heads, methods, and the figure of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    MARKERS,
    SMALL,
    colour,
    grid,
    new_figure,
    panels,
)
from pipeline.report.table import Table
from pipeline.words import printable

_ROW = 0.2
#: (estimate, low, high); bounds may be None.
Interval = tuple[float, Any, Any]


def heads(found: Results) -> Figure:
    """Accuracy of every head in each domain, in one order for all."""
    title = "Accuracy of heads, best on validation first"
    return _ranked(found.tables("heads"), "head", title)


def finetune(found: Results) -> Figure:
    """Frozen and fine-tuned networks beside each other."""
    return _ranked(found.tables("finetune"), "method", "Frozen (lp) and fine-tuned networks")


def _ranked(tables: Sequence[Table], column: str, title: str) -> Figure:
    names = list(dict.fromkeys(name for table in tables for name in table.values(column)))
    height = 0.45 + _ROW * len(names)
    figure, cells = panels(len(tables), height=height, extra=0.75, sharey=True)
    for axes, table in zip(cells, tables, strict=True):
        values = dict(zip(table.values(column), table.values("accuracy"), strict=True))
        rows = {name: values[name] for name in names if values.get(name)}
        prior = rows.pop("prior", None)
        heights = {name: float(len(names) - 1 - k) for k, name in enumerate(names)}
        draw_intervals(axes, [(heights[name], value) for name, value in rows.items()])
        if prior is not None:
            _draw_prior(axes, heights["prior"], prior, alone=not rows)
        axes.set_yticks(list(heights.values()), [printable(name) for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_title(printable(table.title.split(":")[0]))
    figure.suptitle(title, x=0.01, ha="left")
    figure.supxlabel("accuracy with 95 % interval", fontsize=8)
    return figure


def draw_intervals(
    axes: Axes,
    rows: Sequence[tuple[float, Interval]],
    *,
    shade: str = BLUE,
    marker: str = "o",
    label: str = "",
) -> None:
    """A point and its interval at each height, above a pale grid.

    Args:
        axes: A panel whose vertical axis counts rows.
        rows: Height and value of each.
        shade: Colour.
        marker: Of matplotlib.
        label: For a legend.
    """
    for height, (value, low, high) in rows:
        if low is not None and high is not None:
            axes.plot([low, high], [height, height], color=shade, linewidth=1.2)
        axes.plot([value], [height], marker, color=shade, markersize=4, label=label)
        label = ""
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    grid(axes)


def _draw_prior(axes: Axes, height: float, value: Interval, *, alone: bool) -> None:
    """The head that knows only class frequencies, far off: it would press the others together."""
    left = axes.get_xlim()[0]
    if alone or value[0] >= left:
        draw_intervals(axes, [(height, value)])
        return
    axes.set_xlim(left, axes.get_xlim()[1])
    axes.plot([left], [height], "<", color=GREY, markersize=3.5, clip_on=False)
    axes.annotate(
        f"{value[0]:.3f}",
        (left, height),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=GREY,
        fontsize=SMALL,
    )


def summary(series: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Accuracy by domain, a colour and a marker for each model: the figure of the page.

    Args:
        series: By name of the model, its accuracy by domain.
    """
    domains = list(dict.fromkeys(domain for values in series.values() for domain in values))
    if not domains:
        raise NothingToDrawError("no accuracy is known")
    # Narrow, so that it can be read on a phone.
    figure = new_figure(0.6 + len(domains) * (0.2 + 0.15 * len(series)), 5.4)
    axes = figure.subplots()
    step = 0.7 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        shift = step * ((len(series) - 1) / 2 - number)
        rows = [
            (len(domains) - 1 - k + shift, values[domain])
            for k, domain in enumerate(domains)
            if domain in values
        ]
        draw_intervals(
            axes,
            rows,
            shade=colour(number),
            marker=MARKERS[number % len(MARKERS)],
            label=printable(name),
        )
        for height, (value, *_) in rows:
            axes.annotate(
                f"{100 * value:.1f} %",
                (1.01, height),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                color=colour(number),
                fontsize=SMALL,
            )
    axes.set_yticks(np.arange(len(domains))[::-1], [printable(domain) for domain in domains])
    axes.tick_params(axis="y", labelsize=8.5)
    axes.set_ylim(-0.5, len(domains) - 0.5)
    axes.set_xlabel("accuracy with 95 % interval")
    if len(series) > 1:
        figure.legend(
            loc="outside upper left",
            ncols=len(series),
            frameon=False,
            labelcolor="linecolor",
            fontsize=8,
        )
    return figure
