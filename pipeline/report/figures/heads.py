"""Figures of stage 2: how heads rank, what they cost, how they were fitted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.figures import curves, ranked
from pipeline.report.figures.album import FOLDER, draw_album
from pipeline.report.figures.curves import Run
from pipeline.report.figures.head_scores import confusions, reliability, roc
from pipeline.report.figures.heads_data import HeadsData, read_heads
from pipeline.report.figures.style import (
    BLUE,
    SMALL,
    VERMILION,
    NothingToDrawError,
    arrangement,
    grid,
    new_figure,
)


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
    return ranked.forest(data.entries, data.places, "Accuracy of heads, best validation first")


def accuracy_against_time(data: HeadsData) -> Figure:
    """What the time that a head takes to fit buys at each place."""
    title = "Accuracy against time to fit, all seeds together"
    return ranked.accuracy_against_time(data.entries, data.places, title)


def learning_curves(data: HeadsData) -> Figure:
    """Loss and accuracy by epoch of the heads that have epochs."""
    curved: dict[str, list[Run]] = {}
    for detail in data.details:
        if detail.get("curves"):
            curved.setdefault(detail["head"], []).append(detail["curves"])
    return curves.learning_curves(
        {f"{head}, {len(runs)} seed{'s' * (len(runs) > 1)}": runs for head, runs in curved.items()}
    )


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


#: Powers of ten that stand beside one another on one panel.
_DECADES = 5


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
        xytext=(0, -8),
        textcoords="offset points",
        ha="center",
        va="top",
        color=VERMILION,
        fontsize=SMALL,
    )
    axes.set_xscale("log")
    first, last = np.ceil(np.log10(x[0])), np.floor(np.log10(x[-1]))
    decades = np.arange(first, last + 1, 1 if last - first < _DECADES else 2)
    axes.set_xticks(10**decades, [f"{10**power:g}" for power in decades])
    axes.minorticks_off()
    axes.margins(y=0.25)
    axes.set(xlabel=parameter, ylabel="log loss, inner folds", title=head)
    grid(axes, "y")


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
