"""Learning curves by epoch, and accuracy between two networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.figures import NothingToDrawError, Results
from pipeline.report.figures.style import (
    GREY,
    SKY,
    SMALL,
    VERMILION,
    colour,
    grid,
    new_figure,
    panels,
)
from pipeline.words import printable

_KINDS = ("loss", "accuracy")
_SPLITS = (("fit", SKY), ("validation", VERMILION))
#: Values by epoch under ``fit_loss``, ``fit_accuracy``, ``validation_loss`` and so on.
Run = Mapping[str, Sequence[float]]


def heads(found: Results) -> Figure:
    """Curves of heads that train in epochs, of their first seed."""
    runs: dict[str, list[Run]] = {}
    for backbone in found.record["backbones"]:
        if backbone["backbone"] == found.backbone:
            runs |= {one["head"]: [one["curves"]] for one in backbone["heads"] if one["curves"]}
    return learning_curves(runs)


def finetune(found: Results) -> Figure:
    """Curves of each method that trains; the fit split with dropout, as it was trained."""
    runs: dict[str, list[Run]] = {}
    for model in _models(found):
        if model["curves"]:
            runs.setdefault(model["method"], []).append(_by_name(model["curves"]))
    return learning_curves(runs)


def _models(found: Results) -> list[Mapping[str, Any]]:
    backbones = found.record["backbones"]
    return [m for one in backbones if one["backbone"] == found.backbone for m in one["models"]]


def _by_name(epochs: Sequence[Mapping[str, Any]]) -> Run:
    """Rows by epoch turned into values by name; a name without a value in one is left out."""
    names = [f"{split}_{kind}" for split, _ in _SPLITS for kind in _KINDS]
    return {
        name: [epoch[name] for epoch in epochs]
        for name in names
        if all(epoch.get(name) is not None for epoch in epochs)
    }


def learning_curves(runs: Mapping[str, Sequence[Run]]) -> Figure:
    """A row of two panels for each model.

    Args:
        runs: By title, one for each seed.
    """
    if not runs:
        raise NothingToDrawError("there are no curves by epoch")
    figure = new_figure(0.4 + (2.0 if len(runs) < 3 else 1.5) * len(runs))
    cells = figure.subplots(len(runs), len(_KINDS), squeeze=False)
    for row, (title, of_model) in zip(cells, runs.items(), strict=True):
        row[0].set_title(printable(title))
        for axes, kind in zip(row, _KINDS, strict=True):
            _draw_curves(axes, of_model, kind)
    for axes in cells[-1]:
        axes.set_xlabel("epoch")
    cells[0][0].legend(frameon=False, labelcolor="linecolor", fontsize=SMALL)
    figure.suptitle("Learning curves", x=0.01, ha="left")
    return figure


def _draw_curves(axes: Axes, runs: Sequence[Run], kind: str) -> None:
    last = 1
    for split, shade in _SPLITS:
        found = [run[f"{split}_{kind}"] for run in runs if run.get(f"{split}_{kind}")]
        for values in found if len(found) > 1 else ():
            axes.plot(range(1, len(values) + 1), values, color=shade, linewidth=0.5, alpha=0.35)
        if found:
            # Runs that stopped early are shorter: the mean goes as far as all of them go.
            shortest = min(map(len, found))
            mean = np.mean([values[:shortest] for values in found], axis=0)
            look = "o-" if shortest == 1 else "-"  # one epoch alone is a point
            axes.plot(range(1, shortest + 1), mean, look, color=shade, label=split)
            last = max(last, *map(len, found))
    axes.set_ylabel(kind)
    # Epochs are whole and counted from 1, also where there is only one.
    ticks = MaxNLocator(6, integer=True, min_n_ticks=1).tick_values(1, last)
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= last and tick % 1 == 0])
    grid(axes, "y")


def alpha(found: Results) -> Figure:
    """Accuracy on the straight line from the linear probe to the fine-tuned network."""
    between = {m["method"]: m["interpolated"] for m in _models(found) if m["interpolated"]}
    if not between:
        raise NothingToDrawError("no method interpolates weights")
    figure, cells = panels(len(between), height=2.4)
    for axes, (name, one) in zip(cells, between.items(), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for step in one["curve"]:
            for d in step["domains"]:
                domain = d["domain"] if d["role"] == "target" else f"{d['domain']}, {d['role']}"
                lines.setdefault(domain, []).append((step["alpha"], d["accuracy"]))
        for number, (domain, points) in enumerate(lines.items()):
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, "o-", color=colour(number), markersize=3, label=printable(domain))
        axes.axvline(one["alpha"], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [one["from"], "0.25", "0.5", "0.75", one["to"]])
        axes.set(xlabel="alpha", ylabel="accuracy", title=printable(name))
        axes.legend(frameon=False, labelcolor="linecolor", fontsize=SMALL)
        grid(axes, "y")
    figure.suptitle("WiSE-FT: accuracy between the probe and the network", x=0.01, ha="left")
    return figure
