"""Learning curves: loss and accuracy by epoch, fit beside validation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.report.figures.labels import Label, name_ends
from pipeline.report.figures.style import SKY, VERMILION, NothingToDrawError, grid, new_figure

_KINDS = ("loss", "accuracy")
_SIDES = (("fit", SKY), ("validation", VERMILION))

#: Values by epoch under ``fit_loss``, ``fit_accuracy``, ``validation_loss`` and so on.
Run = Mapping[str, Sequence[float]]


def learning_curves(runs: Mapping[str, Sequence[Run]], title: str = "Learning curves") -> Figure:
    """A row for each model: each seed pale, their mean strong.

    Args:
        runs: By title, one for each seed.
        title: Of the figure.
    """
    if not runs:
        raise NothingToDrawError("there are no curves by epoch")
    figure = new_figure(0.4 + (2.3 if len(runs) < 3 else 1.5) * len(runs))
    panels = figure.subplots(len(runs), len(_KINDS), squeeze=False)
    figure.suptitle(title, x=0.01, ha="left")
    named = [
        (axes, _curve_panel(axes, of_one, kind))
        for row, of_one in zip(panels, runs.values(), strict=True)
        for axes, kind in zip(row, _KINDS, strict=True)
    ]
    for row, name in zip(panels, runs, strict=True):
        row[0].set_title(name)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    figure.draw_without_rendering()
    for axes, labels in named:
        name_ends(axes, labels)
    return figure


def _curve_panel(axes: Axes, runs: Sequence[Run], kind: str) -> list[Label]:
    labels = []
    for side, shade in _SIDES:
        found = [run[f"{side}_{kind}"] for run in runs if run.get(f"{side}_{kind}")]
        for values in found:
            axes.plot(_epochs(values), values, color=shade, linewidth=0.5, alpha=0.35)
        if found:
            # Runs that stopped early are shorter: the mean goes as far as all of them go.
            shortest = min(map(len, found))
            mean = np.mean([values[:shortest] for values in found], axis=0)
            # One epoch alone is a point, and no line would show.
            axes.plot(_epochs(mean), mean, "o-" if shortest == 1 else "-", color=shade)
            labels.append(Label(text=side, x=shortest, y=float(mean[-1]), colour=shade))
    axes.set_ylabel(kind)
    last = max((label.x for label in labels), default=1)
    ticks = MaxNLocator(6, integer=True, min_n_ticks=1).tick_values(1, last)
    # Epochs are whole and counted from 1, also where there is one alone.
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= last and tick % 1 == 0])
    grid(axes, "y")
    return labels


def _epochs(values: Any) -> NDArray[np.intp]:
    return np.arange(1, len(values) + 1)
