"""Models ranked beside each other: their scores with intervals, and what these cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures.labels import Label, name_points
from pipeline.report.figures.style import (
    BLUE,
    GREY,
    SKY,
    SMALL,
    NothingToDrawError,
    arrangement,
    colour,
    grid,
    new_figure,
    seconds_axis,
)
from pipeline.study import SOURCE

_ROW = 0.2
_SEEDS: Mapping[str, Any] = MappingProxyType(
    {"linestyle": "", "marker": "o", "color": SKY, "markersize": 2.6, "alpha": 0.8, "mew": 0}
)

#: Where a model was judged: domain and role.
Where = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model, or one kind of head with several seeds: their ensemble.

    Attributes:
        head: Its name in the files (``..._ensemble`` for an ensemble of heads).
        name: To print.
        seconds: To train it, all seeds together; 0 where that is not known.
        scores: (value, low, high) by place and metric; a bound may be None.
        seeds: Values of the single seeds by place and metric; empty where there is one.
    """

    head: str
    name: str
    seed: int
    seconds: float
    scores: Mapping[tuple[Where, str], tuple[float, float | None, float | None]]
    seeds: Mapping[tuple[Where, str], tuple[float, ...]]


def is_prior(entry: Entry) -> bool:
    """Whether the head learned no more than how frequent the classes are."""
    return entry.head == "prior"


def place_name(where: Where) -> str:
    """``source, validation`` for the source, else the target's name."""
    return f"{where[0]}, {where[1]}" if where[0] == SOURCE else where[0]


def forest(entries: Sequence[Entry], places: Sequence[Where], title: str) -> Figure:
    """Accuracy of every model with its interval at each place, in one order for all.

    Args:
        entries: In the order of the rows, from above.
        places: A panel each.
        title: Of the figure.
    """
    _refuse_nothing(entries, places)
    rows, columns = arrangement(len(places))
    figure = new_figure(0.75 + rows * (0.45 + _ROW * len(entries)))
    grid_of = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, where in zip(grid_of.flat, places, strict=False):
        _forest_panel(axes, entries, where)
    for axes in list(grid_of.flat)[len(places) :]:
        axes.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left")
    dots = "; pale dots: single seeds" if any(entry.seeds for entry in entries) else ""
    figure.supxlabel(f"accuracy with 95 % interval{dots}", fontsize=8)
    return figure


def _forest_panel(axes: Axes, entries: Sequence[Entry], where: Where) -> None:
    heights = np.arange(len(entries))[::-1]
    axes.set_yticks(heights, [entry.name for entry in entries])
    axes.set_ylim(-0.6, len(entries) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_title(place_name(where))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    grid(axes)
    # The heads that learn set the scale: the prior, far off, would press them together.
    for height, entry in sorted(zip(heights, entries, strict=True), key=lambda x: is_prior(x[1])):
        if (where, "accuracy") not in entry.scores:
            continue
        value, low, high = entry.scores[where, "accuracy"]
        if is_prior(entry) and len(entries) > 1 and value < axes.get_xlim()[0]:
            _point_outside(axes, height, value)
            continue
        seeds = entry.seeds.get((where, "accuracy"), ())
        axes.plot(seeds, np.full(len(seeds), height - 0.26), **_SEEDS)
        if low is not None and high is not None:
            axes.plot([low, high], [height, height], color=BLUE, linewidth=1.2)
        axes.plot([value], [height], "o", color=BLUE, markersize=4)


def _point_outside(axes: Axes, height: float, value: float) -> None:
    left = axes.get_xlim()[0]
    axes.plot([left], [height], "<", color=GREY, markersize=3.5, clip_on=False)
    axes.annotate(
        f"{value:.3f}",
        (left, height),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=GREY,
        fontsize=SMALL,
    )


def accuracy_against_time(entries: Sequence[Entry], places: Sequence[Where], title: str) -> Figure:
    """What the time to train buys at each place; arguments as in :func:`forest`."""
    _refuse_nothing(entries, places)
    columns = min(len(places), 2)
    rows = -(-len(places) // columns)
    figure = new_figure(0.5 + 2.7 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left")
    named = [
        (axes, _time_panel(axes, entries, where))
        for axes, where in zip(panels, places, strict=False)
    ]
    for axes, labels in named:
        name_points(axes, labels)
    return figure


def _time_panel(axes: Axes, entries: Sequence[Entry], where: Where) -> list[Label]:
    known = [e for e in entries if (where, "accuracy") in e.scores and not is_prior(e)]
    if not known:
        raise NothingToDrawError("there is nothing but the prior")
    seconds = [max(entry.seconds, 1e-4) for entry in known]
    for number, (entry, x) in enumerate(zip(known, seconds, strict=True)):
        value, low, high = entry.scores[where, "accuracy"]
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=colour(number), linewidth=0.9, alpha=0.6)
        axes.plot([x], [value], "o", color=colour(number), markersize=4.5)
    seconds_axis(axes, seconds, low_pad=4.0, high_pad=8.0)
    axes.set(xlabel="time to train", ylabel="accuracy", title=place_name(where))
    grid(axes, "both")
    return [
        Label(
            text=entry.name,
            x=x,
            y=entry.scores[where, "accuracy"][0],
            colour=colour(number),
            span=entry.scores[where, "accuracy"][1:],
        )
        for number, (entry, x) in enumerate(zip(known, seconds, strict=True))
    ]


def _refuse_nothing(entries: Sequence[Entry], places: Sequence[Where]) -> None:
    if not entries or not places:
        raise NothingToDrawError("there are no rows off the fit split")
