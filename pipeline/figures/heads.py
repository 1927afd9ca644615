"""Figures of stage 2: how heads rank, what they cost, how they were fitted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.figures.album import FOLDER, draw_album
from pipeline.figures.head_scores import confusions, reliability, roc
from pipeline.figures.heads_data import Entry, HeadsData, Where, is_prior, place_name, read_heads
from pipeline.figures.labels import Label, name_ends, name_points
from pipeline.figures.style import (
    BLUE,
    GREY,
    SKY,
    SMALL,
    VERMILION,
    NothingToDrawError,
    arrangement,
    colour,
    grid,
    new_figure,
    seconds_axis,
)

_ROW = 0.2
_CURVES = ("loss", "accuracy")
_SEEDS: Mapping[str, Any] = MappingProxyType(
    {"linestyle": "", "marker": "o", "color": SKY, "markersize": 2.6, "alpha": 0.8, "mew": 0}
)
_SIDES = (("fit", SKY), ("validation", VERMILION))


def draw(results: Path) -> list[Path]:
    """Draw all figures of ``results/<study>/heads.json`` and the probabilities beside it.

    Returns:
        The files written, in ``results/<study>/figures``.

    Raises:
        MissingPredictionsError: Stage 2 has not been run.
    """
    return [
        path
        for data in read_heads(results)
        for path in draw_album(results / FOLDER, FIGURES, data, data.backbone)
    ]


def forest(data: HeadsData) -> Figure:
    """Accuracy of every head with its interval at each place, in one order for all."""
    places = _places(data)
    rows, columns = arrangement(len(places))
    figure = new_figure(0.75 + rows * (0.45 + _ROW * len(data.entries)))
    grid_of = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, where in zip(grid_of.flat, places, strict=False):
        _forest_panel(axes, data.entries, where)
    for axes in list(grid_of.flat)[len(places) :]:
        axes.set_visible(False)
    figure.suptitle("Accuracy of heads, best validation first", x=0.01, ha="left")
    figure.supxlabel("accuracy with 95 % interval; pale dots: single seeds", fontsize=8)
    return figure


def _forest_panel(axes: Axes, entries: tuple[Entry, ...], where: Where) -> None:
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


def accuracy_against_time(data: HeadsData) -> Figure:
    """What the time that a head takes to fit buys at each place."""
    places = _places(data)
    columns = min(len(places), 2)
    rows = -(-len(places) // columns)
    figure = new_figure(0.5 + 2.7 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    figure.suptitle("Accuracy against time to fit, all seeds together", x=0.01, ha="left")
    named = [
        (axes, _time_panel(axes, data, where)) for axes, where in zip(panels, places, strict=False)
    ]
    for axes, labels in named:
        name_points(axes, labels)
    return figure


def _time_panel(axes: Axes, data: HeadsData, where: Where) -> list[Label]:
    known = [e for e in data.entries if (where, "accuracy") in e.scores and not is_prior(e)]
    if not known:
        raise NothingToDrawError("there is no head but the prior")
    seconds = [max(entry.seconds, 1e-4) for entry in known]
    for number, (entry, x) in enumerate(zip(known, seconds, strict=True)):
        value, low, high = entry.scores[where, "accuracy"]
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=colour(number), linewidth=0.9, alpha=0.6)
        axes.plot([x], [value], "o", color=colour(number), markersize=4.5)
    seconds_axis(axes, seconds, low_pad=4.0, high_pad=8.0)
    axes.set(xlabel="time to fit", ylabel="accuracy", title=place_name(where))
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


def learning_curves(data: HeadsData) -> Figure:
    """Loss and accuracy by epoch for fit and validation: each seed pale, their mean strong."""
    curved: dict[str, list[Mapping[str, Any]]] = {}
    for detail in data.details:
        if detail.get("curves"):
            curved.setdefault(detail["head"], []).append(detail["curves"])
    if not curved:
        raise NothingToDrawError("heads.json has no curves by epoch")
    figure = new_figure(0.4 + 2.3 * len(curved))
    panels = figure.subplots(len(curved), len(_CURVES), squeeze=False)
    figure.suptitle("Learning curves", x=0.01, ha="left")
    named = [
        (axes, _curve_panel(axes, runs, kind))
        for row, (_, runs) in zip(panels, curved.items(), strict=True)
        for axes, kind in zip(row, _CURVES, strict=True)
    ]
    for row, (head, runs) in zip(panels, curved.items(), strict=True):
        row[0].set_title(f"{head}, {len(runs)} seed{'s' * (len(runs) > 1)}")
    figure.draw_without_rendering()
    for axes, labels in named:
        name_ends(axes, labels)
    return figure


def _curve_panel(axes: Axes, runs: list[Mapping[str, Any]], kind: str) -> list[Label]:
    labels = []
    for side, shade in _SIDES:
        found = [run[f"{side}_{kind}"] for run in runs if run.get(f"{side}_{kind}")]
        for values in found:
            axes.plot(_epochs(values), values, color=shade, linewidth=0.5, alpha=0.35)
        if found:
            # Runs that stopped early are shorter: the mean goes as far as all of them go.
            shortest = min(map(len, found))
            mean = np.mean([values[:shortest] for values in found], axis=0)
            axes.plot(_epochs(mean), mean, color=shade)
            labels.append(Label(text=side, x=shortest, y=float(mean[-1]), colour=shade))
    axes.set(xlabel="epoch", ylabel=kind)
    grid(axes, "y")
    return labels


def _epochs(values: Any) -> NDArray[np.intp]:
    return np.arange(1, len(values) + 1)


def regularisation_path(data: HeadsData) -> Figure:
    """Log loss on inner folds along each head's penalty, and what was chosen."""
    paths = {d["head"]: d["path"] for d in data.details if d.get("path")}
    if not paths:
        raise NothingToDrawError("heads.json has no regularisation path")
    rows, columns = arrangement(len(paths))
    figure = new_figure(0.4 + 2.2 * rows, max(3.4, 2.4 * columns))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(paths) :]:
        axes.set_visible(False)
    for axes, (head, path) in zip(panels, paths.items(), strict=False):
        _path_panel(axes, head, path)
    figure.suptitle("Regularisation path", x=0.01, ha="left")
    return figure


def _path_panel(axes: Axes, head: str, path: list[Mapping[str, Any]]) -> None:
    parameter = next(name for name in path[0] if name != "log_loss")
    steps = sorted(path, key=lambda step: step[parameter])
    x = np.array([step[parameter] for step in steps])
    y = np.array([step["log_loss"] for step in steps])
    best = int(y.argmin())
    axes.plot(x, y, "o-", color=BLUE, markersize=3)
    axes.plot(x[best], y[best], "o", color=VERMILION, markersize=6)
    axes.annotate(
        f"{parameter} = {x[best]:g}",
        (x[best], y[best]),
        xytext=(0, 10),
        textcoords="offset points",
        ha="center",
        color=VERMILION,
        fontsize=SMALL,
    )
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x], rotation=45)
    axes.minorticks_off()
    axes.margins(y=0.25)
    axes.set(xlabel=parameter, ylabel="log loss, inner folds", title=head)
    grid(axes, "y")


def _places(data: HeadsData) -> tuple[Where, ...]:
    if not data.places:
        raise NothingToDrawError("heads.json has no rows off the fit split")
    return data.places


#: To add a figure of stage 2: a function of its data, and one line here.
FIGURES: Mapping[str, Callable[[HeadsData], Figure]] = MappingProxyType(
    {
        "heads-forest": forest,
        "heads-roc": roc,
        "heads-reliability": reliability,
        "heads-confusion": confusions,
        "heads-time": accuracy_against_time,
        "heads-curves": learning_curves,
        "heads-path": regularisation_path,
    }
)
